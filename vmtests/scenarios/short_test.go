//go:build vm && !long

package scenarios

// kills is how often TestDaemonIsKilledUnderLoad does it; some successors are killed besides.
const kills = 30

// comparedParts are the directories whose files TestImageRoot and TestDebianInstall compare. The whole system takes minutes under emulation.
var comparedParts = []string{"etc", "usr/bin", "usr/sbin", "var"}

// installs are the packages that TestDebianInstall installs, in rounds.
var installs = [][]string{{"jq"}, {"rsync"}}

// fioShare divides the sizes of TestRawFio's jobs.
const fioShare = 2
