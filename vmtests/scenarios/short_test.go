//go:build vm && !long

package scenarios

// kills is how often TestDaemonIsKilledUnderLoad does it; some successors are killed besides.
const kills = 4

// ghostly is how many daemons die in TestGhostWrites with writes under way.
const ghostly = 1

// replacements are the builds that TestDaemonIsReplacedUnderLoad goes through.
var replacements = []string{"coppice-next", "coppice"}

// filled are the file systems of TestFileSystemsOnFullStore.
var filled = []string{"ext4"}

// comparedParts are the directories whose files TestImageRoot and TestDebianInstall compare. The whole system takes minutes under emulation.
var comparedParts = []string{"etc", "usr/sbin", "var/lib"}

// installs are the packages that TestDebianInstall installs, in rounds.
var installs = [][]string{{"jq"}, {"rsync"}}

// verified are the packages whose files dpkg verifies at the end of TestDebianInstall: the new ones and some of the root's.
const verified = "jq rsync dpkg base-files"

// indexDigests says whether TestIndexOfDebian compares contents, too.
const indexDigests = false

// modelSteps is how many operations the tests of raw images do in each region, between two comparisons of all of it.
const modelSteps = 100

// fioShare divides the sizes of TestRawFio's jobs.
const fioShare = 4

// edgeMiB is where fio's job at the end of the root begins and how much it covers; the root ends at 192 MiB and three sectors.
var edgeMiB = [2]int{190, 4}

// remoteMiB is how much fio writes to a leaf that is far away.
const remoteMiB = 32

// nfsDisk makes the disk that lies on NFS.
const nfsDisk = "truncate -s 24M export/raw; mkfs.ext4 -q -m 0 -d /usr/sbin export/raw"

// geometries are those that the tests of raw images go through.
var geometries = []geometry{{512, 2}, {4096, 1}}
