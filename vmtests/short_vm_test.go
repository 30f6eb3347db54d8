//go:build vm && !long

package vmtests

// longTags are the build tags that guest tests get beside vm.
var longTags []string

// What TestPowerCut does: so many states at least, and xfs in every so many of them.
const (
	cutStates   = 240
	cutXFSEvery = 2
)
