//go:build vm && !long

package scenarios

// kills is how often TestDaemonIsKilledUnderLoad does it; some successors are killed besides.
const kills = 10

// comparedParts are the directories whose files TestImageRoot and TestDebianInstall compare. The whole system takes minutes under emulation.
var comparedParts = []string{"etc", "usr/sbin", "var/lib"}

// installs are the packages that TestDebianInstall installs, in rounds.
var installs = [][]string{{"jq"}, {"rsync"}}

// modelSteps is how many operations the tests of raw images do in each region, between two comparisons of all of it.
const modelSteps = 100

// fioShare divides the sizes of TestRawFio's jobs.
const fioShare = 2

// geometries are those that the tests of raw images go through.
var geometries = []geometry{{512, 2}, {4096, 1}}
