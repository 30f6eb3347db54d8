//go:build vm && long

package vmtests

// longTags are the build tags that guest tests get beside vm.
var longTags = []string{"long"}

// What TestPowerCut does: so many states at least, and xfs in every so many of them.
const (
	cutStates   = 2400
	cutXFSEvery = 1
)
