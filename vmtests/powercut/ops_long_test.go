//go:build vm && long

package powercut

// How many things each client does.
const (
	fileOps = 450
	rawOps  = 700
)
