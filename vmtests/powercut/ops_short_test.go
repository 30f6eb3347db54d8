//go:build vm && !long

package powercut

// How many things each client does.
const (
	fileOps = 90
	rawOps  = 130
)
