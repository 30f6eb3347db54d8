package bench

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"time"
)

// A Job is one fio run (one process, io_uring, O_DIRECT), or the making of devices.
type Job struct {
	Name  string
	RW    string // fio's rw=; "": devices are made, and fio has no part in it
	Block int    // bytes
	Depth int
	Fsync int         // writes after which comes an fsync; 0: none
	Base  SubjectName // what the ratios of the job's table refer to
}

// The jobs, in the order in which a subject does them.
var (
	RandRead1   = Job{"4k-randread-qd1", "randread", 4 << 10, 1, 0, Baseline}
	RandRead32  = Job{"4k-randread-qd32", "randread", 4 << 10, 32, 0, Baseline}
	SeqRead     = Job{"128k-read-qd8", "read", 128 << 10, 8, 0, Baseline}
	RandWrite1  = Job{"4k-randwrite-qd1", "randwrite", 4 << 10, 1, 0, Baseline}
	RandWrite32 = Job{"4k-randwrite-qd32", "randwrite", 4 << 10, 32, 0, Baseline}
	SeqWrite    = Job{"128k-write-qd8", "write", 128 << 10, 8, 0, Baseline}
	Fsync1      = Job{"4k-randwrite-fsync1", "randwrite", 4 << 10, 32, 1, VirtioPlain}
	Fsync32     = Job{"4k-randwrite-fsync32", "randwrite", 4 << 10, 32, 32, VirtioPlain}
	Create      = Job{"create", "", 0, 0, 0, CreateLoop}
)

// Jobs lists every job in the order of the report.
func Jobs() []Job {
	return []Job{RandRead32, RandRead1, RandWrite32, RandWrite1, SeqRead, SeqWrite, Fsync1, Fsync32, Create}
}

var (
	reads   = []Job{RandRead1, RandRead32, SeqRead}
	writes  = []Job{RandWrite1, RandWrite32, SeqWrite}
	fsyncs  = []Job{Fsync1, Fsync32}
	creates = []Job{Create}
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
	if j.Fsync > 0 {
		args = append(args, "--fsync="+strconv.Itoa(j.Fsync))
	}
	if !once {
		args = append(args, "--time_based=1")
	}
	return args
}

// A SubjectName names a kind of device in events and reports.
type SubjectName string

// The subjects. Baseline is what most ratios refer to.
const (
	Baseline     SubjectName = "loop, direct I/O"
	LoopBuffered SubjectName = "loop, buffered I/O"
	NullBlk      SubjectName = "null_blk"

	Null            SubjectName = "null"
	Memory          SubjectName = "memory"
	Cached          SubjectName = "union, cached read"
	RootRead        SubjectName = "union, raw root read"
	LeafRead        SubjectName = "union, leaf read, not verified"
	LeafReadChecked SubjectName = "union, leaf read, verified"
	Chain1          SubjectName = "union, on 1 sealed layer"
	Chain64         SubjectName = "union, on 64 sealed layers"
	Overwrite       SubjectName = "union, overwrite"
	FirstTouch      SubjectName = "union, first-touch write"

	SnapshotRoot  SubjectName = "dm-snapshot, root read"
	SnapshotLeaf  SubjectName = "dm-snapshot, copied block"
	SnapshotFirst SubjectName = "dm-snapshot, first-touch write"
	QemuRoot      SubjectName = "qemu-nbd, root read"
	QemuLeaf      SubjectName = "qemu-nbd, copied block"
	QemuFirst     SubjectName = "qemu-nbd, first-touch write"
	NbdkitRoot    SubjectName = "nbdkit cow, root read"
	NbdkitLeaf    SubjectName = "nbdkit cow, copied block"
	NbdkitFirst   SubjectName = "nbdkit cow, first-touch write"

	VirtioPlain    SubjectName = "virtio disk itself, in place"
	VirtioUnion    SubjectName = "virtio disk: union, first-touch write"
	VirtioSnapshot SubjectName = "virtio disk: dm-snapshot, first-touch write"
	VirtioQemu     SubjectName = "virtio disk: qemu-nbd, first-touch write"

	CreateLoop     SubjectName = "10 TiB: loop"
	CreateSnapshot SubjectName = "10 TiB: dm-snapshot on loop"
	CreateUnion    SubjectName = "10 TiB: union on an image"
	CreateUnionRaw SubjectName = "10 TiB: union on a raw file"
	CreateQemu     SubjectName = "10 TiB: qemu-img create, qemu-nbd"
)

// A Subject is a device with a history, and the jobs done on it.
type Subject struct {
	Name SubjectName
	Jobs []Job
	// Fresh asks for a new device before each job: its blocks have never been written.
	Fresh bool
	// Ours marks what this project makes.
	Ours bool
}

// Subjects lists every subject in the order of odd rounds.
func Subjects() []Subject {
	all := slices.Concat(reads, writes)
	copied := []Job{RandRead32, RandWrite32}
	return []Subject{
		{Name: Baseline, Jobs: all},
		{Name: LoopBuffered, Jobs: all},
		{Name: NullBlk, Jobs: all},
		{Name: Null, Jobs: all, Ours: true},
		{Name: Memory, Jobs: all, Ours: true},
		{Name: Cached, Jobs: reads, Ours: true},
		{Name: LeafRead, Jobs: reads, Ours: true},
		{Name: Overwrite, Jobs: writes, Ours: true},
		{Name: LeafReadChecked, Jobs: reads, Ours: true},
		{Name: Chain1, Jobs: []Job{RandRead32}, Ours: true},
		{Name: Chain64, Jobs: []Job{RandRead32}, Ours: true},
		{Name: RootRead, Jobs: reads, Ours: true},
		{Name: FirstTouch, Jobs: writes, Fresh: true, Ours: true},
		{Name: SnapshotRoot, Jobs: reads},
		{Name: SnapshotFirst, Jobs: writes, Fresh: true},
		{Name: SnapshotLeaf, Jobs: all},
		{Name: QemuRoot, Jobs: reads},
		{Name: QemuFirst, Jobs: []Job{RandWrite32, SeqWrite}, Fresh: true},
		{Name: QemuLeaf, Jobs: copied},
		{Name: NbdkitRoot, Jobs: reads},
		{Name: NbdkitFirst, Jobs: []Job{RandWrite32, SeqWrite}, Fresh: true},
		{Name: NbdkitLeaf, Jobs: copied},
		{Name: VirtioPlain, Jobs: fsyncs},
		{Name: VirtioUnion, Jobs: fsyncs, Fresh: true, Ours: true},
		{Name: VirtioSnapshot, Jobs: fsyncs, Fresh: true},
		{Name: VirtioQemu, Jobs: fsyncs, Fresh: true},
		{Name: CreateLoop, Jobs: creates},
		{Name: CreateUnion, Jobs: creates, Ours: true},
		{Name: CreateUnionRaw, Jobs: creates, Ours: true},
		{Name: CreateSnapshot, Jobs: creates},
		{Name: CreateQemu, Jobs: creates},
	}
}

// A Selection says which part of the plan is run.
type Selection struct{ Subjects, Jobs *regexp.Regexp }

// Select returns the subjects whose names match one pattern, with those of their jobs whose names match the other, and what the
// ratios of these jobs refer to. Empty patterns match all.
func Select(subjects, jobs string) (Selection, error) {
	s, err := regexp.Compile(subjects)
	if err != nil {
		return Selection{}, fmt.Errorf("read pattern of subjects: %w", err)
	}
	j, err := regexp.Compile(jobs)
	if err != nil {
		return Selection{}, fmt.Errorf("read pattern of jobs: %w", err)
	}
	sel := Selection{Subjects: s, Jobs: j}
	if len(sel.Plan()) == 0 {
		return sel, fmt.Errorf("no subject matches %q with a job that matches %q", subjects, jobs)
	}
	return sel, nil
}

// Plan is what the selection leaves of [Subjects].
func (s Selection) Plan() (plan []Subject) {
	bases := map[SubjectName][]string{}
	for _, subject := range Subjects() {
		if !s.Subjects.MatchString(string(subject.Name)) {
			continue
		}
		for _, job := range subject.Jobs {
			if s.Jobs.MatchString(job.Name) {
				bases[job.Base] = append(bases[job.Base], job.Name)
				bases[subject.Name] = append(bases[subject.Name], job.Name)
			}
		}
	}
	for _, subject := range Subjects() {
		subject.Jobs = slices.DeleteFunc(slices.Clone(subject.Jobs), func(job Job) bool { return !slices.Contains(bases[subject.Name], job.Name) })
		if len(subject.Jobs) > 0 {
			plan = append(plan, subject)
		}
	}
	return plan
}

// Round returns the plan in the order of round n, which counts from 1: every other round is reversed.
func (s Selection) Round(n int) []Subject {
	subjects := s.Plan()
	if n%2 == 0 {
		slices.Reverse(subjects)
	}
	return subjects
}

// EstimatedRun returns about how long a run takes, with half as much again for making devices and
// starting fio.
func (s Selection) EstimatedRun(rounds int, perJob time.Duration) time.Duration {
	jobs := 0
	for _, s := range s.Plan() {
		jobs += len(s.Jobs)
	}
	return time.Duration(rounds*jobs)*(perJob*3/2+1500*time.Millisecond) + time.Minute
}

func (j Job) String() string {
	if j.RW == "" {
		return "From the first command to the first read of a writable device"
	}
	kind := map[string]string{
		"randread": "random read", "randwrite": "random write",
		"read": "sequential read", "write": "sequential write",
	}[j.RW]
	text := fmt.Sprintf("%d KiB %s, depth %d", j.Block>>10, kind, j.Depth)
	switch j.Fsync {
	case 0:
	case 1:
		text += ", fsync after each"
	default:
		text += fmt.Sprintf(", fsync after every %d", j.Fsync)
	}
	return text
}

// Creations is how many devices a job makes that makes any.
const Creations = 5
