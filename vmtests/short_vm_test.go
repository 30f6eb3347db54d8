//go:build vm && !long

package vmtests

import "time"

// longTags are the build tags that guest tests get beside vm.
var longTags []string

// cutStates is how many states TestPowerCut judges, or one more.
const cutStates = 160

// scenariosLimit is how long all tests of package scenarios may take together.
const scenariosLimit = 25 * time.Minute

// secondVersions tells whether TestImages makes second versions of the Debian system: that takes minutes.
const secondVersions = false

// imagesLimit is how long all tests of TestImages in the guest may take together.
const imagesLimit = 15 * time.Minute

// shortReboots tells whether TestBoot leaves out of all boots but the first what has nothing to do with the root.
const shortReboots = true
