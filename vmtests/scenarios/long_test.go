//go:build vm && long

package scenarios

// kills is how often TestDaemonIsKilledUnderLoad does it; some successors are killed besides.
const kills = 200

// ghostly is how many daemons die in TestGhostWrites with writes under way.
const ghostly = 3

// replacements are the builds that TestDaemonIsReplacedUnderLoad goes through.
var replacements = []string{"coppice", "coppice-next", "coppice"}

// filled are the file systems of TestFileSystemsOnFullStore.
var filled = []string{"ext4", "xfs"}

// comparedParts are the directories whose files TestImageRoot and TestDebianInstall compare: all there are.
var comparedParts = []string{"."}

// installs are the packages that TestDebianInstall installs, in rounds.
var installs = [][]string{{"jq", "sqlite3"}, {"nginx-light", "rsync", "tmux"}}

// verified are the packages whose files dpkg verifies at the end of TestDebianInstall: all.
const verified = ""

// indexDigests says whether TestIndexOfDebian compares contents, too.
const indexDigests = true

// modelSteps is how many operations the tests of raw images do in each region, between two comparisons of all of it.
const modelSteps = 300

// fioShare divides the sizes of TestRawFio's jobs.
const fioShare = 1

// edgeMiB is where fio's job at the end of the root begins and how much it covers; the root ends at 192 MiB and three sectors.
var edgeMiB = [2]int{188, 12}

// remoteMiB is how much fio writes to a leaf that is far away.
const remoteMiB = 64

// nfsDisk makes the disk that lies on NFS.
const nfsDisk = "dd if=/dev/disk/by-id/virtio-repo of=export/raw bs=1M conv=sparse status=none"

// geometries are those that the tests of raw images go through.
var geometries = []geometry{{512, 1}, {512, 2}, {4096, 1}, {4096, 2}}
