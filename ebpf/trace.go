package ebpf

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	cilium "github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// DefaultTracePins is where what records requests is pinned. It is none of those that [Load] has for its own.
const DefaultTracePins = "/sys/fs/bpf/coppice-trace"

// TraceConfig says what is recorded. Its zero value means the defaults.
type TraceConfig struct {
	Pins string // directory in a bpf file system; "" for [DefaultTracePins]
	// RingBytes is the memory for events that nobody has read yet, [TracedBytes] for each: a power of two, 4 KiB to 256 MiB; 0 means 8 MiB.
	RingBytes int
	// Disks is what the names of the disks begin with; "" means those of ublk.
	Disks string
	// Marks is the directory of the pins of programs that [Load] has loaded, whose disks say where their data comes from. "" means that nobody says so.
	Marks string
}

const (
	// TracedBytes is what an event takes of the ring.
	TracedBytes = int(unsafe.Sizeof(traceEvent{})) + 8

	defaultRing = 8 << 20
	minRing     = 4 << 10
	maxRing     = 256 << 20
	ublkDisks   = "ublkb"
)

// ErrOtherTrace tells that another version of this program records.
var ErrOtherTrace = errors.New("another version of coppice records")

func (c TraceConfig) withDefaults() TraceConfig {
	if c.Pins == "" {
		c.Pins = DefaultTracePins
	}
	if c.RingBytes == 0 {
		c.RingBytes = defaultRing
	}
	if c.Disks == "" {
		c.Disks = ublkDisks
	}
	return c
}

// Validate tells what is wrong with it.
func (c TraceConfig) Validate() error {
	c = c.withDefaults()
	if c.RingBytes < minRing || c.RingBytes > maxRing || c.RingBytes&(c.RingBytes-1) != 0 {
		return fmt.Errorf("a ring of %d bytes is not a power of two between %d and %d", c.RingBytes, minRing, maxRing)
	}
	if len(c.Disks) > tracePrefix {
		return fmt.Errorf("the name %q of disks is longer than %d bytes", c.Disks, tracePrefix)
	}
	return nil
}

// tracePrefix is how long the beginning of a disk's name can be (PREFIX in c/trace.bpf.c).
const tracePrefix = 15

// tracePoints is where each program is attached, in this order: what has been issued before the first is there belongs to nobody.
var tracePoints = []struct{ program, point string }{
	{traceProgEndRequest, "block_rq_complete"},
	{traceProgIssueRequest, "block_rq_issue"},
}

// Recording is the kernel recording requests, as this process sees it. It goes on until [Recording.Stop], whatever becomes of the process. It is not for use by several goroutines.
type Recording struct {
	Dir string // of the pins
	New bool   // nothing was recorded before
	// Marked tells that it is recorded where data comes from. It is not known of a recording that is not new.
	Marked bool

	events, counts *cilium.Map
	reader         *ringbuf.Reader
}

// StartRecording has requests recorded, unless that is done already: then it goes on as it was started. It fails with a [LackError] where the machine cannot. It needs CAP_BPF and
// CAP_PERFMON.
func StartRecording(cfg TraceConfig) (*Recording, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("start to record requests: %w", err)
	}
	r, err := startRecording(cfg.withDefaults())
	if err == nil {
		return r, nil
	}
	return nil, lackOr(fmt.Errorf("start to record requests: %w", err), Probe)
}

func startRecording(cfg TraceConfig) (*Recording, error) {
	unlock, err := lockPins(cfg.Pins)
	if err != nil {
		return nil, err
	}
	defer unlock()
	r, err := openRecording(cfg.Pins)
	if !errors.Is(err, fs.ErrNotExist) {
		return r, err
	}
	r = &Recording{Dir: filepath.Join(cfg.Pins, traceName()), New: true}
	if err := removeOthers(cfg.Pins, nil); err != nil { // what a loader that was killed has left
		return nil, err
	}
	if r.Marked, err = attachTrace(cfg, r.Dir); err != nil {
		return nil, errors.Join(err, os.RemoveAll(r.Dir))
	}
	return r, r.open()
}

// OpenRecording returns what is being recorded ("": in [DefaultTracePins]), and fails with [fs.ErrNotExist] where nothing is.
func OpenRecording(pins string) (*Recording, error) {
	if pins == "" {
		pins = DefaultTracePins
	}
	r, err := openRecording(pins)
	if err != nil {
		return nil, fmt.Errorf("open what records requests: %w", err)
	}
	return r, nil
}

// openRecording finds a recording of which all is there: its links come last.
func openRecording(pins string) (*Recording, error) {
	links, err := filepath.Glob(filepath.Join(pins, "trace_*", linkPin+traceProgIssueRequest))
	if err != nil {
		return nil, err
	}
	if len(links) == 0 {
		return nil, fs.ErrNotExist
	}
	r := &Recording{Dir: filepath.Dir(links[0])}
	if filepath.Base(r.Dir) != traceName() {
		return nil, fmt.Errorf("%w: %s", ErrOtherTrace, r.Dir)
	}
	return r, r.open()
}

// traceName tells this version of the programs from others.
func traceName() string {
	const length = 8
	sum := sha256.Sum256(_TraceBytes)
	return "trace_" + hex.EncodeToString(sum[:length])
}

func (r *Recording) open() (err error) {
	if r.events, err = cilium.LoadPinnedMap(filepath.Join(r.Dir, mapPin+traceMapEvents), nil); err != nil {
		return err
	}
	if r.counts, err = cilium.LoadPinnedMap(filepath.Join(r.Dir, mapPin+traceMapCounts), nil); err == nil {
		r.reader, err = ringbuf.NewReader(r.events)
	}
	if err != nil {
		return errors.Join(err, r.Close())
	}
	return nil
}

// Close lets go what this process has of the recording, which goes on. To close twice is harmless.
func (r *Recording) Close() error {
	var errs []error
	if r.reader != nil {
		errs = append(errs, r.reader.Close())
	}
	for _, m := range []*cilium.Map{r.events, r.counts} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	r.reader, r.events, r.counts = nil, nil, nil
	return errors.Join(errs...)
}

// attachTrace loads the programs, attaches and pins them, and reports whether they have the marks.
func attachTrace(cfg TraceConfig, dir string) (marked bool, err error) {
	shared, err := openMarks(cfg.Marks)
	if err != nil {
		return false, err
	}
	objects, err := newTrace(cfg, shared)
	for _, m := range shared {
		err = errors.Join(err, m.Close())
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = objects.Close() }() // what is pinned stays
	if err := os.Mkdir(dir, 0o700); err != nil {
		return false, err
	}
	for name, m := range map[string]*cilium.Map{traceMapEvents: objects.Events, traceMapCounts: objects.Counts} {
		if err := m.Pin(filepath.Join(dir, mapPin+name)); err != nil {
			return false, err
		}
	}
	programs := objects.programs()
	for _, at := range tracePoints {
		if err := attachPinned(programs[at.program], dir, at.program, "tracepoint "+at.point); err != nil {
			return false, err
		}
	}
	return len(shared) > 0, nil
}

// openMarks opens the maps in which it is said where data comes from: none where there are none.
func openMarks(pins string) (map[string]*cilium.Map, error) {
	if pins == "" {
		return nil, nil
	}
	dirs, err := filepath.Glob(filepath.Join(pins, "latency_*"))
	if err != nil || len(dirs) == 0 {
		return nil, err
	}
	shared := make(map[string]*cilium.Map)
	for _, name := range []string{traceMapDevices, traceMapMarks} {
		m, err := cilium.LoadPinnedMap(filepath.Join(dirs[0], mapPin+name), nil)
		if err != nil {
			for _, m := range shared {
				err = errors.Join(err, m.Close())
			}
			return nil, fmt.Errorf("open pinned map: %w", err)
		}
		shared[name] = m
	}
	return shared, nil
}

// newTrace loads the programs.
func newTrace(cfg TraceConfig, shared map[string]*cilium.Map) (*traceObjects, error) {
	spec, err := loadTrace()
	if err != nil {
		return nil, err
	}
	spec.Maps[traceMapEvents].MaxEntries = uint32(cfg.RingBytes)
	for name, m := range shared {
		spec.Maps[name].MaxEntries = m.MaxEntries()
	}
	var prefix [tracePrefix + 1]byte
	copy(prefix[:], cfg.Disks)
	if err := spec.Variables[traceVarPrefix].Set(prefix); err != nil {
		return nil, err
	}
	var objects traceObjects
	if err := spec.LoadAndAssign(&objects, &cilium.CollectionOptions{MapReplacements: shared}); err != nil {
		return nil, withVerifier(err)
	}
	return &objects, nil
}

func (o *traceObjects) programs() map[string]*cilium.Program {
	return map[string]*cilium.Program{traceProgIssueRequest: o.IssueRequest, traceProgEndRequest: o.EndRequest}
}

// Traced is a request of a disk that was completed.
type Traced struct {
	Disk   DiskID
	Began  time.Duration // when it was made, since the kernel started (CLOCK_MONOTONIC)
	Took   time.Duration
	Off    int64 // in bytes
	Len    int64 // in bytes
	Write  bool  // or discard, or write zeroes
	Failed bool
	Mark   uint8  // what was said of it: see union.Origins; 0: nothing
	PID    int32  // of the process that made it; 0: not known
	Comm   string // its name
	Cgroup uint64 // its number in the unified hierarchy; 0: not known
}

// Read hands over what was recorded, in the order in which requests were completed, as it comes, until ctx ends; what is there then is still handed over. It ends early with an error of emit.
func (r *Recording) Read(ctx context.Context, emit func(Traced) error) error {
	var rec ringbuf.Record
	for {
		const look = 100 * time.Millisecond // how often ctx is looked at
		last := ctx.Err() != nil
		deadline := time.Now().Add(look)
		if last {
			deadline = time.Now()
		}
		r.reader.SetDeadline(deadline)
		for {
			err := r.reader.ReadInto(&rec)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return fmt.Errorf("read what was recorded: %w", err)
			}
			t, err := decodeTraced(rec.RawSample)
			if err == nil {
				err = emit(t)
			}
			if err != nil {
				return err
			}
			if !last && ctx.Err() != nil {
				break
			}
		}
		if last {
			return nil
		}
	}
}

func decodeTraced(p []byte) (Traced, error) {
	var e traceEvent
	if len(p) < int(unsafe.Sizeof(e)) {
		return Traced{}, fmt.Errorf("read what was recorded: an event of %d bytes, not %d", len(p), unsafe.Sizeof(e))
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&e)), unsafe.Sizeof(e)), p)
	const sector = 512
	return Traced{
		Disk: DiskID{Minor: int(e.Minor), Seq: e.Diskseq}, Began: time.Duration(e.Began), Took: time.Duration(e.Nanos), Off: int64(e.Sector) * sector, Len: int64(e.Bytes),
		Write: e.Op != 0, Failed: e.Failed != 0, Mark: e.Mark, PID: int32(e.Pid), Comm: text(e.Comm[:]), Cgroup: e.Cgroup,
	}, nil
}

// TraceCounts tells what became of requests since recording began.
type TraceCounts struct {
	Events  uint64 `json:"events"`  // that had room
	Lost    uint64 `json:"lost"`    // that had none
	Unasked uint64 `json:"unasked"` // requests for whose maker there was no room: they are recorded without
}

// Counts returns the numbers so far.
func (r *Recording) Counts() (TraceCounts, error) {
	var c traceCounts
	if err := r.counts.Lookup(uint32(0), &c); err != nil {
		return TraceCounts{}, fmt.Errorf("read counts of what was recorded: %w", err)
	}
	return TraceCounts{Events: c.Events, Lost: c.Lost, Unasked: c.Unasked}, nil
}

// Stop ends the recording. What was recorded can still be read, and counted, until [Recording.Close].
func (r *Recording) Stop() error {
	if err := os.RemoveAll(r.Dir); err != nil {
		return fmt.Errorf("stop to record requests: %w", err)
	}
	return nil
}

// StopRecording ends what is being recorded ("": in [DefaultTracePins]), by whatever version, and forgets it. It reports whether anything was.
func StopRecording(pins string) (bool, error) {
	if pins == "" {
		pins = DefaultTracePins
	}
	links, err := filepath.Glob(filepath.Join(pins, "trace_*", linkPin+"*"))
	if err == nil {
		err = os.RemoveAll(pins)
	}
	if err != nil {
		return false, fmt.Errorf("stop to record requests: %w", err)
	}
	return len(links) > 0, nil
}

// MountPins mounts a bpf file system on a directory, such as /sys/fs/bpf in an initramfs, unless there is one.
func MountPins(dir string) error {
	magic, err := fileSystem(dir)
	if err != nil {
		return fmt.Errorf("look for a bpf file system: %w", err)
	}
	if magic == unix.BPF_FS_MAGIC {
		return nil
	}
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=700"); err != nil {
		return fmt.Errorf("mount bpf file system on %s: %w", dir, err)
	}
	return nil
}
