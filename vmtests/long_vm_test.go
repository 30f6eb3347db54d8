//go:build vm && long

package vmtests

import "time"

// longTags are the build tags that guest tests get beside vm.
var longTags = []string{"long"}

// cutStates is how many states TestPowerCut judges, or one more.
const cutStates = 2400

// scenariosLimit is how long all tests of package scenarios may take together.
const scenariosLimit = time.Hour

// secondVersions tells whether TestImages makes second versions of the Debian system, by upgrades in the guest and from scratch.
const secondVersions = true

// imagesLimit is how long all tests of TestImages in the guest may take together.
const imagesLimit = time.Hour

// shortReboots tells whether TestBoot leaves out of all boots but the first what has nothing to do with the root: none does.
const shortReboots = false
