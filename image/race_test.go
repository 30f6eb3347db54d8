//go:build race

package image

func init() { raced = true }
