package ebpf

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	cilium "github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Where the kernel and this process claim to be able to, every program passes the verifier; elsewhere the probe has said what is missing, and Load says it too.
func TestVerifier(t *testing.T) {
	if !supported(t) {
		var lack *LackError
		if _, err := Load(LoadConfig{Pins: filepath.Join(t.TempDir(), "pins")}); !errors.As(err, &lack) || lack.ToDo() == "" {
			t.Errorf("Load: %v, and nothing to do about it", err)
		}
		return
	}
	objects, err := newLatency(LoadConfig{Devices: 1, Tags: 16}, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer objects.Close()
	programs := objects.programs()
	spec, err := loadLatency()
	if err != nil || len(spec.Programs) != len(programs) || len(programs) != len(pointOf) {
		t.Fatalf("%d programs in the object, %d loaded, %d with a tracepoint (%v)", len(spec.Programs), len(programs), len(pointOf), err)
	}
	for name, p := range programs {
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		if spec.Programs[name].AttachTo != pointOf[name] {
			t.Errorf("%s is for %s, not %s", name, spec.Programs[name].AttachTo, pointOf[name])
		}
		if n, ok := info.VerifiedInstructions(); ok {
			t.Logf("%s: the verifier went through %d instructions", name, n)
		}
	}
	for name, m := range spec.Maps {
		if m.MaxEntries == 0 || m.Type != cilium.Array {
			t.Errorf("map %s is a %s of %d", name, m.Type, m.MaxEntries)
		}
	}
}

// Requests of a disk are counted, each once, by the operation and by what was said of its data, and took as long as who issued them saw.
func TestMeasuresADisk(t *testing.T) {
	if !supported(t) {
		return // TestVerifier has asserted that it is said
	}
	disk := newLoopDisk(t)
	pins := pinsDir(t)
	tables := openTables(t, loadAt(t, LoadConfig{Pins: pins, Devices: 2, Tags: 1024}).Maps)
	entered, err := tables.Enter(disk.id, disk.queues, disk.depth)
	if err != nil {
		t.Fatal(err)
	}
	say := func(mark uint64) { entered.sayOfAll(disk.queues, mark) }
	// Nobody who serves the disk says anything: the test does, before the request. The programs take it back.
	read := func(n int, mark uint64) (fastest, slowest time.Duration) {
		fastest = time.Hour
		for range n {
			say(mark)
			began := time.Now()
			if _, err := disk.f.ReadAt(disk.buf[:4096], 0); err != nil {
				t.Fatal(err)
			}
			took := time.Since(began)
			fastest, slowest = min(fastest, took), max(slowest, took)
		}
		return fastest, slowest
	}
	const leaf, root = 1 << 1, 1 << 7
	_, slowest := read(101, leaf)
	read(53, leaf|root)
	read(7, 0)
	say(leaf)
	for range 11 {
		if _, err := disk.f.WriteAt(disk.buf[:4096], 8192); err != nil {
			t.Fatal(err)
		}
		say(leaf)
	}
	list := entered.Latencies()
	for _, want := range []struct {
		op, source   string
		count, mixed uint64
	}{{"read", "leaf", 101, 0}, {"read", "root", 53, 53}, {"read", "unknown", 7, 0}, {"write", "leaf", 11, 0}} {
		if got := counted(list, want.op, want.source); got.Count != want.count || got.Mixed != want.mixed || got.Errors != 0 {
			t.Errorf("%s from %s: %+v, want %+v", want.op, want.source, got, want)
		}
	}
	if len(list) != 4 {
		t.Errorf("counted more: %+v", list)
	}
	got := counted(list, "read", "leaf")
	if worst := got.PercentileBucket(100); worst > BucketOf(slowest) || got.Seconds <= 0 || got.Seconds > float64(got.Count)*slowest.Seconds() {
		t.Errorf("the slowest read took %s (bucket %d), the kernel has bucket %d, all %.6f s", slowest, BucketOf(slowest), worst, got.Seconds)
	}

	entered.Leave()
	read(3, leaf)
	if again := counted(entered.Latencies(), "read", "leaf"); again.Count != 101 {
		t.Errorf("a disk that has left is still counted: %d", again.Count)
	}
}

// A process that comes later goes on with the numbers of the one before, and finds its programs loaded.
func TestNextProcess(t *testing.T) {
	if !supported(t) {
		return // TestVerifier has asserted that it is said
	}
	disk, pins := newLoopDisk(t), pinsDir(t)
	cfg := LoadConfig{Pins: pins, Devices: 2, Tags: 1024}
	first := loadAt(t, cfg)
	tables := openTables(t, first.Maps)
	if _, err := tables.Enter(disk.id, disk.queues, disk.depth); err != nil {
		t.Fatal(err)
	}
	read := func() {
		if _, err := disk.f.ReadAt(disk.buf[:4096], 0); err != nil {
			t.Fatal(err)
		}
	}
	read()
	if err := tables.Close(); err != nil {
		t.Fatal(err)
	}
	read() // while nobody has the maps

	second := loadAt(t, cfg)
	if !first.New || second.New || first.Dir != second.Dir {
		t.Errorf("loaded %+v, then %+v", first, second)
	}
	next := openTables(t, handed(t, second.Maps))
	entered, err := next.Enter(disk.id, disk.queues, disk.depth)
	if err != nil {
		t.Fatal(err)
	}
	read()
	if got := counted(entered.Latencies(), "read", "unknown"); got.Count != 3 {
		t.Errorf("%d reads, want 3", got.Count)
	}

	cfg.Devices = 3
	other := loadAt(t, cfg)
	if dirs, err := filepath.Glob(filepath.Join(pins, "*")); err != nil || len(dirs) != 1 || dirs[0] != other.Dir || !other.New {
		t.Errorf("with other sizes: %+v, pinned %q (%v)", other, dirs, err)
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	list, err := Status(pins)
	if err != nil || len(list) != len(pointOf) {
		t.Errorf("status: %+v, %v", list, err)
	}
	if there, err := Unload(pins); err != nil || !there {
		t.Errorf("unload: %v, %v", there, err)
	}
	if there, err := Unload(pins); err != nil || there {
		t.Errorf("unload again: %v, %v", there, err)
	}
}

// handed sends maps over a socket and returns what comes out, as a process without capabilities gets it.
func handed(t *testing.T, m Maps) Maps {
	t.Helper()
	near, far := socketPair(t)
	if err := m.Send(near); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := Receive(far)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// What is kept for a program that this process executes is what that program takes.
func TestKeptForExec(t *testing.T) {
	if !supported(t) {
		return // TestVerifier has asserted that it is said
	}
	l := loadAt(t, LoadConfig{Pins: pinsDir(t), Devices: 1, Tags: 512})
	in, err := l.Maps.KeepForExec()
	if err != nil {
		t.Fatal(err)
	}
	for i, fd := range in.FDs {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC != 0 {
			t.Errorf("descriptor %d: flags %#x, %v", fd, flags, err)
		}
		// As the next program has them: nobody else owns them there.
		if in.FDs[i], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	m, err := in.Take()
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range m.Files {
		if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("map %d: flags %#x, %v: a child would inherit it", i, flags, err)
		}
	}
	tables := openTables(t, m)
	if _, err := tables.Enter(DiskID{1, 1}, 1, 8); err != nil {
		t.Error(err)
	}
}

func socketPair(t *testing.T) (near, far *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = c.(*net.UnixConn)
		t.Cleanup(func() { c.Close() })
	}
	return ends[0], ends[1]
}

// A process that has no capability at all can do all that the daemon does: receive, map, enter, read.
func TestNoCapabilities(t *testing.T) {
	if !supported(t) {
		return // TestVerifier has asserted that it is said
	}
	disk := newLoopDisk(t)
	l := loadAt(t, LoadConfig{Pins: pinsDir(t), Devices: 1, Tags: 512})
	near, far := socketPair(t)
	if err := errors.Join(l.Maps.Send(near), l.Close()); err != nil {
		t.Fatal(err)
	}
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its capabilities
		result <- func() error {
			header, none := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
			if err := unix.Capset(&header, &none[0]); err != nil {
				return err
			}
			if err := makeMap(); !errors.Is(err, unix.EPERM) {
				return errors.New("the thread can still make maps: it has not lost what it is to do without")
			}
			m, err := Receive(far)
			if err != nil {
				return err
			}
			tables, err := Open(m)
			if err != nil {
				return err
			}
			entered, err := tables.Enter(disk.id, disk.queues, disk.depth)
			if err != nil {
				return err
			}
			if _, err := disk.f.ReadAt(disk.buf[:4096], 0); err != nil {
				return err
			}
			if got := counted(entered.Latencies(), "read", "unknown"); got.Count != 1 {
				return errors.New("the read was not counted")
			}
			return tables.Close()
		}()
	}()
	if err := <-result; err != nil {
		t.Error(err)
	}
}

// What is not a map of these programs is refused, and nothing is left open of it.
func TestForeignMapsAreRefused(t *testing.T) {
	near, far := socketPair(t)
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := (Maps{Files: [handedMaps]*os.File{f, f, f}, Shards: 1}).Send(near); err != nil {
		t.Fatal(err)
	}
	if _, err := Receive(far); !errors.Is(err, ErrNotOurs) {
		t.Errorf("files that are no maps: %v", err)
	}
	if _, err := near.Write([]byte(`{"shards":1}`)); err != nil {
		t.Fatal(err)
	}
	if _, err := Receive(far); !errors.Is(err, ErrNotOurs) {
		t.Errorf("no descriptors: %v", err)
	}
	if _, err := (Inherited{FDs: [handedMaps]int{0, 1, 2}, Shards: 1}).Take(); !errors.Is(err, ErrNotOurs) {
		t.Errorf("standard input: %v", err)
	}
	fd := int(f.Fd())
	if _, err := (Inherited{FDs: [handedMaps]int{fd, fd, fd}, Shards: 1}).Take(); !errors.Is(err, ErrNotOurs) || !strings.Contains(err.Error(), "/dev/null") {
		t.Errorf("a file that is no map: %v", err)
	}
	if !supported(t) {
		return
	}
	objects, err := newLatency(LoadConfig{Devices: 1, Tags: 16}, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer objects.Close()
	fd, err = unix.FcntlInt(uintptr(objects.Marks.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	marks := os.NewFile(uintptr(fd), "marks")
	defer marks.Close()
	m := Maps{Files: [handedMaps]*os.File{marks, marks, marks}, Shards: 1}
	if _, err := m.shape(); !errors.Is(err, ErrNotOurs) {
		t.Errorf("another map: %v", err)
	}
}
