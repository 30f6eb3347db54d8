package bench

import (
	"fmt"
	"slices"
	"strconv"
	"time"
)

// A Job is one fio run: one process, io_uring, O_DIRECT.
type Job struct {
	Name  string
	RW    string // fio's rw=
	Block int    // bytes
	Depth int
}

// The jobs, in the order in which a subject does them.
var (
	RandRead1   = Job{"4k-randread-qd1", "randread", 4 << 10, 1}
	RandRead32  = Job{"4k-randread-qd32", "randread", 4 << 10, 32}
	SeqRead     = Job{"128k-read-qd8", "read", 128 << 10, 8}
	RandWrite1  = Job{"4k-randwrite-qd1", "randwrite", 4 << 10, 1}
	RandWrite32 = Job{"4k-randwrite-qd32", "randwrite", 4 << 10, 32}
	SeqWrite    = Job{"128k-write-qd8", "write", 128 << 10, 8}
)

// Jobs lists every job in the order of the report.
func Jobs() []Job {
	return []Job{RandRead32, RandRead1, RandWrite32, RandWrite1, SeqRead, SeqWrite}
}

var (
	reads  = []Job{RandRead1, RandRead32, SeqRead}
	writes = []Job{RandWrite1, RandWrite32, SeqWrite}
)

// Args returns fio's arguments for the job on device, for the time given. With once, the job ends
// early when it has touched every block, so that a first-touch write never becomes an overwrite.
func (j Job) Args(device string, runtime time.Duration, once bool, resultFile string) []string {
	args := []string{
		"--name=" + j.Name, "--filename=" + device,
		"--rw=" + j.RW, "--bs=" + strconv.Itoa(j.Block), "--iodepth=" + strconv.Itoa(j.Depth),
		"--ioengine=io_uring", "--direct=1", "--numjobs=1", "--thread",
		"--runtime=" + strconv.FormatFloat(runtime.Seconds(), 'f', -1, 64) + "s",
		"--output-format=json", "--output=" + resultFile,
	}
	if !once {
		args = append(args, "--time_based=1")
	}
	return args
}

// A SubjectName names a kind of device in events and reports.
type SubjectName string

// The subjects. Baseline is what the others' ratios refer to.
const (
	Baseline        SubjectName = "loop, direct I/O, RAM disk"
	LoopFile        SubjectName = "loop, direct I/O, file on tmpfs"
	Null            SubjectName = "null"
	Memory          SubjectName = "memory"
	LeafRead        SubjectName = "union, leaf read, not verified"
	LeafReadChecked SubjectName = "union, leaf read, verified"
	RootRead        SubjectName = "union, root read"
	Overwrite       SubjectName = "union, overwrite"
	FirstTouch      SubjectName = "union, first-touch write"
	SnapshotRoot    SubjectName = "dm-snapshot, root read"
	SnapshotLeaf    SubjectName = "dm-snapshot, copied block"
	SnapshotFirst   SubjectName = "dm-snapshot, first-touch write"
)

// A Subject is a device with a history, and the jobs done on it.
type Subject struct {
	Name SubjectName
	Jobs []Job
	// Fresh asks for a new device before each job: its blocks have never been written.
	Fresh bool
}

// Subjects lists every subject in the order of odd rounds.
func Subjects() []Subject {
	all := slices.Concat(reads, writes)
	return []Subject{
		{Name: Baseline, Jobs: all},
		{Name: LoopFile, Jobs: all},
		{Name: Null, Jobs: all},
		{Name: Memory, Jobs: all},
		{Name: LeafRead, Jobs: reads},
		{Name: Overwrite, Jobs: writes},
		{Name: LeafReadChecked, Jobs: reads},
		{Name: RootRead, Jobs: reads},
		{Name: FirstTouch, Jobs: writes, Fresh: true},
		{Name: SnapshotRoot, Jobs: reads},
		{Name: SnapshotFirst, Jobs: writes, Fresh: true},
		{Name: SnapshotLeaf, Jobs: all},
	}
}

// Round returns the subjects in the order of round n, which counts from 1.
func Round(n int) []Subject {
	subjects := Subjects()
	if n%2 == 0 {
		slices.Reverse(subjects)
	}
	return subjects
}

// A Goal is a ratio to the baseline that a subject must reach in a job.
type Goal struct {
	Subject SubjectName
	Job     Job
	AtLeast float64
}

// Goals lists what the project asks of itself.
func Goals() []Goal {
	return []Goal{
		{Null, RandRead32, 0.9},
		{Null, RandWrite32, 0.9},
		{Memory, RandRead32, 0.8},
		{Memory, RandWrite32, 0.8},
		{LeafRead, RandRead32, 0.6},
		{FirstTouch, RandWrite32, 0.4},
	}
}

// EstimatedRun returns about how long a run takes, with half as much again for making devices and
// starting fio.
func EstimatedRun(rounds int, perJob time.Duration) time.Duration {
	jobs := 0
	for _, s := range Subjects() {
		jobs += len(s.Jobs)
	}
	return time.Duration(rounds*jobs) * (perJob*3/2 + time.Second)
}

func (j Job) String() string {
	kind := map[string]string{
		"randread": "random read", "randwrite": "random write",
		"read": "sequential read", "write": "sequential write",
	}[j.RW]
	return fmt.Sprintf("%d KiB %s, depth %d", j.Block>>10, kind, j.Depth)
}
