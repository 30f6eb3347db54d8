//go:build vm

package scenarios

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"coppice/vmtests/powercut"
)

// fioLoop runs verifying jobs on a device, one after the other.
type fioLoop struct {
	stop atomic.Bool
	jobs int
	end  chan error
}

func startFio(device string) *fioLoop { return startFioAt(device, 0, "4k-16k") }

// startFioAt lets the jobs write requests of the given sizes to 12 MiB of a device, from an offset on.
func startFioAt(device string, offMiB int, sizes string) *fioLoop {
	l := &fioLoop{end: make(chan error, 1)}
	go func() {
		for !l.stop.Load() {
			out, err := exec.Command("fio", "--name=loop", "--filename="+device, "--direct=1", "--ioengine=io_uring", "--iodepth=32",
				"--rw=randwrite", "--bsrange="+sizes, "--rate_iops=250,250", fmt.Sprint("--offset=", offMiB+l.jobs%3*4, "M"), "--size=4M", fmt.Sprint("--randseed=", l.jobs+1),
				"--verify=crc32c", "--verify_backlog=64", "--verify_fatal=1", "--verify_dump=0", "--minimal").CombinedOutput()
			if err != nil || strings.Contains(string(out), "verify:") {
				l.end <- fmt.Errorf("fio job %d: %w\n%s", l.jobs, err, out)
				return
			}
			l.jobs++
		}
		l.end <- nil
	}()
	return l
}

// finish waits for the end of the job under way.
func (l *fioLoop) finish(t *testing.T) {
	t.Helper()
	l.stop.Store(true)
	if err := <-l.end; err != nil {
		t.Error(err)
	}
	t.Logf("%d fio jobs, each write verified", l.jobs)
}

// scribbler writes files and never syncs them.
type scribbler struct {
	dir    string
	direct bool // past the page cache: each write is acknowledged by the device
	rng    *rand.Rand
	id     uint64
	sizes  map[string]int64
	ids    map[string]uint64
	buf    []byte
}

const (
	scribbledFiles = 12
	scribbledBytes = 48 << 10
)

// pace keeps the loads from taking all of an emulated machine.
const pace = 10 * time.Millisecond

func newScribbler(dir string, direct bool) *scribbler {
	buf, err := unix.Mmap(-1, 0, scribbledBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		panic(err) // out of memory
	}
	return &scribbler{dir: dir, direct: direct, rng: rand.New(rand.NewPCG(uint64(len(dir)), 3)), sizes: make(map[string]int64), ids: make(map[string]uint64), buf: buf}
}

// scribble lets all write until the returned function is called.
func scribble(t *testing.T, all []*scribbler) (stop func()) {
	t.Helper()
	var done atomic.Bool
	var group errgroup.Group
	for _, s := range all {
		group.Go(func() error {
			if err := os.MkdirAll(s.dir, 0o755); err != nil {
				return err
			}
			for !done.Load() {
				if err := s.write(); err != nil {
					return err
				}
				time.Sleep(pace)
			}
			return nil
		})
	}
	return func() {
		t.Helper()
		done.Store(true)
		if err := group.Wait(); err != nil {
			t.Fatalf("write files: %v", err)
		}
	}
}

// write makes a file anew, or writes over one.
func (s *scribbler) write() error {
	name := fmt.Sprint("f", s.rng.IntN(scribbledFiles))
	flags := os.O_WRONLY | os.O_CREATE
	if s.rng.IntN(2) == 0 {
		flags |= os.O_TRUNC
	}
	size := 512 * (1 + s.rng.Int64N(scribbledBytes/512))
	if flags&os.O_TRUNC == 0 {
		size = max(size, s.sizes[name])
	}
	if s.direct {
		flags |= unix.O_DIRECT
	}
	f, err := os.OpenFile(filepath.Join(s.dir, name), flags, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	s.id++
	powercut.Fill(s.buf[:size], s.id, 0)
	s.ids[name], s.sizes[name] = s.id, size
	if _, err := f.WriteAt(s.buf[:size], 0); err != nil {
		return err
	}
	if !s.direct && s.rng.IntN(2) == 0 { // to the device, but not as a flush
		return unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	}
	return nil
}

// verify reads all files past the page cache.
func verify(t *testing.T, all []*scribbler) {
	t.Helper()
	sh(t, "echo 3 >/proc/sys/vm/drop_caches")
	for _, s := range all {
		for name := range s.ids {
			if err := s.compare(name); err != nil {
				t.Errorf("%s/%s: %v", s.dir, name, err)
			}
		}
	}
}

func (s *scribbler) compare(name string) error {
	f, err := os.OpenFile(filepath.Join(s.dir, name), os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := f.ReadAt(s.buf, 0)
	if err != nil && int64(n) < s.sizes[name] {
		return fmt.Errorf("read %d bytes, want %d: %w", n, s.sizes[name], err)
	}
	id, valid := powercut.Recognise(s.buf[:n])
	if id != s.ids[name] || valid != s.sizes[name] || int64(n) != s.sizes[name] {
		return fmt.Errorf("%d bytes, of which %d are of content %d; want %d of content %d", n, valid, id, s.sizes[name], s.ids[name])
	}
	return nil
}

var kernelError = regexp.MustCompile(`(?i)I/O error|lost async page write|EXT4-fs (error|warning|\(.*\): error)|XFS .*(corrupt|error|shutdown)|Aborting journal`)

// markKernelLog writes a line into the kernel's log, to be found again by noKernelErrors.
func markKernelLog(t *testing.T) string {
	t.Helper()
	mark := fmt.Sprintf("scenario %s %d", t.Name(), time.Now().UnixNano())
	if err := os.WriteFile("/dev/kmsg", []byte("<6>"+mark+"\n"), 0); err != nil {
		t.Fatal(err)
	}
	return mark
}

// noKernelErrors wants no error of a disk or a file system in the kernel's log since the mark.
func noKernelErrors(t *testing.T, mark string) {
	t.Helper()
	_, after, found := strings.Cut(sh(t, "dmesg"), mark)
	if !found {
		t.Error(errors.New("the mark is gone from the kernel's log"))
	}
	for line := range strings.Lines(after) {
		if kernelError.MatchString(line) {
			t.Errorf("kernel: %s", strings.TrimSpace(line))
		}
	}
}
