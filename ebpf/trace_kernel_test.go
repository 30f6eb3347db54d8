package ebpf

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	cilium "github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Every program that records passes the verifier here, where the machine claims to be able to, and each map is bounded.
func TestTraceVerifier(t *testing.T) {
	if !supported(t) {
		var lack *LackError
		if _, err := StartRecording(TraceConfig{Pins: filepath.Join(t.TempDir(), "pins")}); !errors.As(err, &lack) || lack.ToDo() == "" {
			t.Errorf("StartRecording: %v, and nothing to do about it", err)
		}
		return
	}
	objects, err := newTrace(TraceConfig{RingBytes: minRing}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer objects.Close()
	programs := objects.programs()
	spec, err := loadTrace()
	if err != nil || len(spec.Programs) != len(programs) || len(programs) != len(tracePoints) {
		t.Fatalf("%d programs in the object, %d loaded, %d with a tracepoint (%v)", len(spec.Programs), len(programs), len(tracePoints), err)
	}
	for _, at := range tracePoints {
		info, err := programs[at.program].Info()
		if err != nil {
			t.Fatal(err)
		}
		if spec.Programs[at.program].AttachTo != at.point {
			t.Errorf("%s is for %s, not %s", at.program, spec.Programs[at.program].AttachTo, at.point)
		}
		if n, ok := info.VerifiedInstructions(); ok {
			t.Logf("%s: the verifier went through %d instructions", at.program, n)
		}
	}
	for name, m := range spec.Maps {
		if m.MaxEntries == 0 || m.Type != cilium.Array && m.Type != cilium.Hash && m.Type != cilium.RingBuf {
			t.Errorf("map %s is a %s of %d", name, m.Type, m.MaxEntries)
		}
	}
}

// recordAt records a disk, and ends that with the test.
func recordAt(t testing.TB, cfg TraceConfig) *Recording {
	t.Helper()
	r, err := StartRecording(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if _, err := StopRecording(cfg.Pins); err != nil {
			t.Error(err)
		}
	})
	return r
}

// recorded returns what there is.
func recorded(t testing.TB, r *Recording) (all []Traced) {
	t.Helper()
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := r.Read(ended, func(e Traced) error {
		all = append(all, e)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// Each request of the disk is there once, in order, with who made it, and none of another disk.
func TestRecordsADisk(t *testing.T) {
	if !supported(t) {
		return // TestTraceVerifier has asserted that it is said
	}
	disk, other := newLoopDisk(t), newLoopDisk(t)
	cfg := TraceConfig{Pins: pinsDir(t), Disks: disk.name, RingBytes: 64 << 10}
	r := recordAt(t, cfg)
	if !r.New || r.Marked {
		t.Errorf("%+v", r)
	}
	began := time.Now()
	offsets := []int64{0, 8 << 20, 4096, 64 << 10}
	for _, off := range offsets {
		if _, err := disk.f.ReadAt(disk.buf[:8192], off); err != nil {
			t.Fatal(err)
		}
		if _, err := other.f.ReadAt(other.buf[:4096], off); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := disk.f.WriteAt(disk.buf[:4096], 1<<20); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	// Who comes later finds it, and goes on with it, whatever is asked for.
	next, err := StartRecording(TraceConfig{Pins: cfg.Pins, Disks: "sda", RingBytes: minRing})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if next.New || next.Dir != r.Dir {
		t.Errorf("%+v, after %+v", next, r)
	}
	comm, err := os.ReadFile("/proc/thread-self/comm")
	if err != nil {
		t.Fatal(err)
	}
	all := recorded(t, next)
	if len(all) != len(offsets)+1 {
		t.Fatalf("%+v", all)
	}
	for i, e := range all[:len(offsets)] {
		if e.Disk != disk.id || e.Off != offsets[i] || e.Len != 8192 || e.Write || e.Failed || e.Mark != 0 || e.PID == 0 || e.Comm == "" || e.Took <= 0 || e.Took > took {
			t.Errorf("%d: %+v", i, e)
		}
		if i > 0 && e.Began < all[i-1].Began+all[i-1].Took {
			t.Errorf("%d begins before the one before has ended: %+v", i, all[:i+1])
		}
	}
	// A loop device is written to and read by the kernel's own thread or by the process, and the kernel says which.
	t.Logf("this thread is %q; reads were made by %q, in cgroup %d", comm, all[0].Comm, all[0].Cgroup)
	if e := all[len(offsets)]; !e.Write || e.Off != 1<<20 || e.Len != 4096 {
		t.Errorf("the write: %+v", e)
	}
	counts, err := next.Counts()
	if err != nil || counts != (TraceCounts{Events: uint64(len(all))}) {
		t.Errorf("%+v, %v", counts, err)
	}
	if err := next.Stop(); err != nil {
		t.Error(err)
	}
	if _, err := OpenRecording(cfg.Pins); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stopped, and there: %v", err)
	}
	if err := next.Stop(); err != nil {
		t.Errorf("stopped again: %v", err)
	}
	if there, err := StopRecording(cfg.Pins); err != nil || there {
		t.Errorf("stopped, and there: %v, %v", there, err)
	}
	recordAt(t, cfg)
	if there, err := StopRecording(cfg.Pins); err != nil || !there {
		t.Errorf("not there: %v, %v", there, err)
	}
}

// A process reads the disk under its own name and number.
func TestRecordsWhoAsks(t *testing.T) {
	if !supported(t) {
		return // TestTraceVerifier has asserted that it is said
	}
	disk := newLoopDisk(t)
	r := recordAt(t, TraceConfig{Pins: pinsDir(t), Disks: disk.name, RingBytes: 64 << 10})
	if _, err := disk.f.ReadAt(disk.buf[:4096], 4096); err != nil {
		t.Fatal(err)
	}
	all := recorded(t, r)
	if len(all) != 1 || int(all[0].PID) != os.Getpid() || all[0].Cgroup == 0 {
		t.Errorf("%+v, want process %d", all, os.Getpid())
	}
}

// When the ring is full, what came first stays, and what has no room is counted.
func TestLostIsCounted(t *testing.T) {
	if !supported(t) {
		return // TestTraceVerifier has asserted that it is said
	}
	disk := newLoopDisk(t)
	r := recordAt(t, TraceConfig{Pins: pinsDir(t), Disks: disk.name, RingBytes: minRing})
	const n = 200
	for i := range int64(n) {
		if _, err := disk.f.ReadAt(disk.buf[:512], i*512); err != nil {
			t.Fatal(err)
		}
	}
	all := recorded(t, r)
	counts, err := r.Counts()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) == 0 || len(all) > minRing/TracedBytes || counts.Events != uint64(len(all)) || counts.Lost != n-uint64(len(all)) {
		t.Errorf("%d recorded of %d, %+v", len(all), n, counts)
	}
	for i, e := range all {
		if e.Off != int64(i)*512 {
			t.Fatalf("number %d is at %d", i, e.Off)
		}
	}
	// There is room again.
	if _, err := disk.f.ReadAt(disk.buf[:512], 4096); err != nil {
		t.Fatal(err)
	}
	if again := recorded(t, r); len(again) != 1 || again[0].Off != 4096 {
		t.Errorf("%+v", again)
	}
}

// What is said of a request's data is recorded, whether the program that counts runs before or after.
func TestRecordsMarks(t *testing.T) {
	if !supported(t) {
		return // TestTraceVerifier has asserted that it is said
	}
	const root = 1 << 7
	for _, countedFirst := range []bool{true, false} {
		disk := newLoopDisk(t)
		pins := pinsDir(t)
		tables := openTables(t, loadAt(t, LoadConfig{Pins: pins, Devices: 2, Tags: 1024}).Maps)
		entered, err := tables.Enter(disk.id, disk.queues, disk.depth)
		if err != nil {
			t.Fatal(err)
		}
		r := recordAt(t, TraceConfig{Pins: pinsDir(t), Disks: disk.name, RingBytes: 64 << 10, Marks: pins})
		if !r.Marked {
			t.Fatal("it has no marks")
		}
		if !countedFirst { // attached anew, it runs last
			reattach(t, pins)
		}
		mark := entered.Marks(0)
		done := make(chan struct{})
		said := make(chan struct{})
		go func() { // who serves the disk says it between issue and completion; here, all the time
			defer close(said)
			for {
				select {
				case <-done:
					return
				default:
					for i := range mark {
						mark[i] = root
					}
				}
			}
		}()
		marked := 0
		for began := time.Now(); marked == 0 && time.Since(began) < 20*time.Second; {
			if _, err := disk.f.ReadAt(disk.buf[:64<<10], 0); err != nil {
				t.Fatal(err)
			}
			for _, e := range recorded(t, r) {
				switch e.Mark {
				case root:
					marked++
				case 0: // it was said too early, or too late
				default:
					t.Errorf("%+v", e)
				}
			}
		}
		close(done)
		<-said
		if marked == 0 {
			t.Errorf("counted first: %v: no mark was recorded", countedFirst)
		}
		// What was said of a tag's last request is nothing about the next.
		clear(mark)
		if _, err := disk.f.ReadAt(disk.buf[:4096], 0); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			for i := range mark {
				mark[i] = root << 8
			}
			if _, err := disk.f.ReadAt(disk.buf[:4096], 0); err != nil {
				t.Fatal(err)
			}
		}
		for _, e := range recorded(t, r) {
			if e.Mark != 0 {
				t.Errorf("counted first: %v: nothing was said: %+v", countedFirst, e)
			}
		}
	}
}

// reattach has the program that counts run after those that were attached meanwhile.
func reattach(t *testing.T, pins string) {
	t.Helper()
	links, err := filepath.Glob(filepath.Join(pins, "latency_*", linkPin+"*"))
	if err != nil || len(links) != 1 {
		t.Fatalf("%q, %v", links, err)
	}
	p, err := cilium.LoadPinnedProgram(filepath.Join(filepath.Dir(links[0]), programPin+latencyProgCompleteRequest), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := os.Remove(links[0]); err != nil {
		t.Fatal(err)
	}
	at, err := link.AttachTracing(link.TracingOptions{Program: p})
	if err == nil {
		err = errors.Join(at.Pin(links[0]), at.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestTraceConfig(t *testing.T) {
	for _, bad := range []TraceConfig{{RingBytes: 1}, {RingBytes: 5000}, {RingBytes: 2 * maxRing}, {RingBytes: -4096}, {Disks: "a-name-that-is-long"}} {
		if err := bad.Validate(); err == nil {
			t.Errorf("%+v is taken", bad)
		}
		if _, err := StartRecording(bad); err == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
	if err := (TraceConfig{}).Validate(); err != nil {
		t.Error(err)
	}
	if _, err := decodeTraced(make([]byte, TracedBytes-9)); err == nil {
		t.Error("half an event is taken")
	}
}

// Where there is a bpf file system, none is mounted over it; where there is none, one is.
func TestMountPins(t *testing.T) {
	if err := MountPins(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	if !supported(t) {
		return
	}
	dir := t.TempDir()
	for range 2 {
		if err := MountPins(dir); err != nil {
			t.Fatal(err)
		}
	}
	if magic, err := fileSystem(dir); err != nil || magic != unix.BPF_FS_MAGIC {
		t.Errorf("%#x, %v", magic, err)
	}
	if err := unix.Unmount(dir, 0); err != nil {
		t.Error(err)
	}
	if magic, err := fileSystem(dir); err != nil || magic == unix.BPF_FS_MAGIC {
		t.Errorf("mounted twice: %#x, %v", magic, err)
	}
}
