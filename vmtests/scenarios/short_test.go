//go:build vm && !long

package scenarios

// kills is how often TestDaemonIsKilledUnderLoad does it; some successors are killed besides.
const kills = 15

// comparedParts are the directories whose files TestImageRoot and TestDebianInstall compare. The whole system takes minutes under emulation.
var comparedParts = []string{"etc", "usr/bin", "usr/sbin", "var"}

// installs are the packages that TestDebianInstall installs, in rounds.
var installs = [][]string{{"jq"}, {"rsync"}}

// fioShare divides the sizes of TestRawFio's jobs.
const fioShare = 2

// geometries are those that the tests of raw images go through.
var geometries = []geometry{{512, 2}, {4096, 1}}
