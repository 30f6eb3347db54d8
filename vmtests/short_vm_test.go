//go:build vm && !long

package vmtests

// longTags are the build tags that guest tests get beside vm.
var longTags []string
