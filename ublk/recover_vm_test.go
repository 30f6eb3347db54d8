//go:build vm

package ublk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// serveEnv makes the test binary serve a device on the file it names until it is killed, in the way
// that modeEnv says.
const (
	serveEnv = "COPPICE_TEST_SERVE"
	modeEnv  = "COPPICE_TEST_MODE"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(serveEnv); path != "" {
		fmt.Println("failed:", serveUntilKilled(path, os.Getenv(modeEnv)))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// fileDisk keeps its content in a file, by target I/O on the ring.
type fileDisk struct {
	f    *os.File
	hold bool // leave reads unanswered, once started
	live atomic.Bool
	file [16]File
}

func (h *fileDisk) Attach(q *Queue) (err error) {
	h.file[q.Index()], err = q.RegisterFile(h.f)
	return err
}

func (h *fileDisk) Detach(*Queue) {}

func (h *fileDisk) Serve(r *Request) {
	file := h.file[r.Queue().Index()]
	switch {
	case r.Op == OpRead && h.hold && h.live.Load():
	case r.Op == OpRead:
		r.Read(file, r.Buf, r.Off, 0)
	case r.Op == OpWrite:
		r.Write(file, r.Buf, r.Off, r.FUA, 0)
	case r.Op == OpFlush:
		r.Fsync(file, 0)
	default:
		r.Complete(unix.EOPNOTSUPP)
	}
}

func (h *fileDisk) Resume(r *Request, _ uint16, res int32) {
	if res < 0 || r.Op != OpFlush && int64(res) != r.Len {
		r.Complete(unix.EIO)
		return
	}
	r.Complete(0)
}

// serveUntilKilled is the child. In mode "hold" it leaves reads unanswered once the device is up, in
// mode "plain" the device is not recoverable.
func serveUntilKilled(path, mode string) error {
	flags := os.O_RDWR
	if strings.HasPrefix(path, "/dev/") {
		flags |= unix.O_DIRECT
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	c, err := Open("")
	if err != nil {
		return err
	}
	rs, err := NewReactors(ReactorConfig{})
	if err != nil {
		return err
	}
	h := &fileDisk{f: f, hold: mode == "hold"}
	d, err := c.Create(context.Background(), Params{ID: AutoID, SizeBytes: size, Depth: 8, Recoverable: mode != "plain"}, h, rs)
	if err != nil {
		return err
	}
	h.live.Store(true)
	fmt.Println(d.ID())
	<-d.Done()
	return errors.New("device is gone")
}

// server is a child process that serves a device.
type server struct {
	cmd *exec.Cmd
	id  int
}

func startServer(t testing.TB, path, mode string) *server {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), serveEnv+"="+path, modeEnv+"="+mode)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &server{cmd: cmd}
	t.Cleanup(s.kill)
	if _, err := fmt.Fscan(out, &s.id); err != nil {
		rest, _ := io.ReadAll(out)
		t.Fatalf("server: %v: %s", err, rest)
	}
	return s
}

func (s *server) kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

func diskFile(t testing.TB, size int64) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

func awaitState(t testing.TB, c *Control, id int, want State) time.Duration {
	t.Helper()
	begin := time.Now()
	for time.Since(begin) < vmPatience {
		info, err := c.GetInfo(context.Background(), id)
		if err != nil {
			t.Fatal(err)
		}
		if info.State == want {
			return time.Since(begin)
		}
		time.Sleep(2 * time.Millisecond)
	}
	t.Fatalf("device %d does not become %s", id, want)
	return 0
}

// load runs exercisers without discards until it is told to stop.
type load struct {
	group errgroup.Group
	stop  atomic.Bool
	all   []*exerciser
	steps atomic.Int64
}

func startLoad(t testing.TB, path string, workers int, part int64) *load {
	t.Helper()
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f := directFile(t, path)
	l := &load{}
	for i := range workers {
		x := newExerciser(t, f, uint64(i), 512, int64(i)*part, part)
		copy(x.shadow, before[x.base:])
		l.all = append(l.all, x)
		l.group.Go(func() error {
			for !l.stop.Load() {
				off, n := x.extent(512, 64<<10)
				if err := x.write(off, n, func(p []byte, at int64) error { _, err := f.WriteAt(p, at); return err }); err != nil {
					return err
				}
				off, n = x.extent(512, 64<<10)
				if err := x.check(off, n); err != nil {
					return err
				}
				l.steps.Add(1)
			}
			return x.checkAll()
		})
	}
	return l
}

// advance waits until more I/O has been done.
func (l *load) advance(t testing.TB, steps int64) {
	t.Helper()
	goal, deadline := l.steps.Load()+steps, time.Now().Add(vmPatience)
	for l.steps.Load() < goal {
		if time.Now().After(deadline) {
			t.Fatal("no I/O is done")
		}
		time.Sleep(time.Millisecond)
	}
}

func (l *load) finish(t testing.TB) {
	t.Helper()
	l.stop.Store(true)
	if err := l.group.Wait(); err != nil {
		t.Error(err)
	}
	if err := l.all[0].f.Close(); err != nil {
		t.Error(err)
	}
}

func TestDetachAndRecoverUnderLoad(t *testing.T) {
	c := openControl(t)
	const workers, part = 4, 2 << 20
	m := vmDisk(t, workers*part)
	rs := vmReactors(t)
	d := createDevice(t, c, rs, Params{ID: AutoID, SizeBytes: m.Size(), Depth: 8, Recoverable: true}, m)
	made := d.Params()
	l := startLoad(t, d.Path(), workers, part)
	for range 40 {
		l.advance(t, 20)
		if err := d.Detach(vmContext(t)); err != nil {
			t.Fatal(err)
		}
		if err := rs.Close(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-d.Done():
		case <-time.After(vmPatience):
			t.Fatal("detached device is not done")
		}
		awaitState(t, c, d.ID(), StateQuiesced)
		rs = vmReactors(t)
		next, err := c.Recover(vmContext(t), d.ID(), m, rs)
		if err != nil {
			t.Fatal(err)
		}
		if next.Params() != made {
			t.Errorf("recovered device has %+v, was made with %+v", next.Params(), made)
		}
		d = next
	}
	l.advance(t, 50)
	l.finish(t)
	for _, x := range l.all {
		if !bytes.Equal(m.slab[x.base:x.base+part], x.shadow) {
			t.Errorf("disk differs in the part at %d", x.base)
		}
	}
	stopDevice(t, d)
	wantNoDevices(t, c)
}

func TestRecoverAfterKillUnderLoad(t *testing.T) {
	c := openControl(t)
	const workers, part = 4, 1 << 20
	disk := diskFile(t, workers*part)
	for round := range 10 { // the daemon is killed more often, with a leaf: vmtests/scenarios
		t.Run(strconv.Itoa(round), func(t *testing.T) {
			s := startServer(t, disk.Name(), "")
			l := startLoad(t, BlockPath(s.id), workers, part)
			l.advance(t, int64(20+round*30))
			s.kill()
			rs := vmReactors(t)
			d, err := c.Recover(vmContext(t), s.id, &fileDisk{f: disk}, rs)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { stopDevice(t, d) })
			l.advance(t, 50)
			l.finish(t)
			got := make([]byte, part)
			for _, x := range l.all {
				if _, err := disk.ReadAt(got, x.base); err != nil || !bytes.Equal(got, x.shadow) {
					t.Errorf("disk differs in the part at %d: %v", x.base, err)
				}
			}
		})
	}
	wantNoDevices(t, c)
}

// A tag that is never used lets the kernel notice at once that a server died which held all others.
func TestDeathIsNoticedAtOnceWithAllTagsBusy(t *testing.T) {
	c := openControl(t)
	disk := diskFile(t, 1<<20)
	for _, spare := range []bool{true, false} {
		s := startServer(t, disk.Name(), "hold")
		if !spare {
			if err := writeKnob(queueDir(sysRoot, s.id), "nr_requests", "8"); err != nil {
				t.Fatal(err)
			}
		}
		f := directFile(t, BlockPath(s.id))
		var readers errgroup.Group
		for range 16 { // twice the depth
			buf := pages(t, 4096)
			readers.Go(func() error { _, err := f.ReadAt(buf, 0); return err })
		}
		time.Sleep(300 * time.Millisecond) // until every tag is held
		s.kill()
		took := awaitState(t, c, s.id, StateQuiesced)
		t.Logf("spare tag %v: quiesced %v after the death of its server", spare, took.Round(time.Millisecond))
		if spare && took > time.Second {
			t.Errorf("death was noticed after %v", took)
		}
		rs := vmReactors(t)
		d, err := c.Recover(vmContext(t), s.id, &fileDisk{f: disk}, rs)
		if err != nil {
			t.Fatal(err)
		}
		if err := readers.Wait(); err != nil {
			t.Error(err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		stopDevice(t, d)
	}
}

func TestDeathOfPlainDeviceLeavesOnlyWhatRemoveTakes(t *testing.T) {
	c := openControl(t)
	disk := diskFile(t, 1<<20)
	s := startServer(t, disk.Name(), "plain")
	s.kill()
	awaitState(t, c, s.id, StateDead)
	rs := vmReactors(t)
	if _, err := c.Recover(vmContext(t), s.id, NewNull(), rs); !errors.Is(err, ErrNotRecoverable) {
		t.Errorf("recovery of a plain device: %v", err)
	}
	if err := c.Remove(vmContext(t), s.id); err != nil {
		t.Error(err)
	}
	wantNoDevices(t, c)
}

func TestRemoveOfQuiescedDevice(t *testing.T) {
	c := openControl(t)
	disk := diskFile(t, 1<<20)
	s := startServer(t, disk.Name(), "")
	s.kill()
	awaitState(t, c, s.id, StateQuiesced)
	f, err := os.OpenFile(BlockPath(s.id), os.O_RDONLY|unix.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Remove(vmContext(t), s.id); !errors.Is(err, ErrInUse) {
		t.Errorf("removal of a quiesced device in use: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if err := c.Remove(vmContext(t), s.id); err != nil {
		t.Error(err)
	}
	wantNoDevices(t, c)
}

func TestRecoverRefusals(t *testing.T) {
	c, rs := openControl(t), vmReactors(t)
	if _, err := c.Recover(vmContext(t), 77, NewNull(), rs); !errors.Is(err, ErrNoDevice) {
		t.Errorf("recovery of a missing device: %v", err)
	}
	plain := createDevice(t, c, rs, Params{ID: AutoID, SizeBytes: 1 << 20}, NewNull())
	if _, err := c.Recover(vmContext(t), plain.ID(), NewNull(), rs); !errors.Is(err, ErrNotRecoverable) {
		t.Errorf("recovery of a plain device: %v", err)
	}
	if err := plain.Detach(vmContext(t)); !errors.Is(err, ErrNotRecoverable) {
		t.Errorf("detach of a plain device: %v", err)
	}
	served := createDevice(t, c, rs, Params{ID: AutoID, SizeBytes: 1 << 20, Recoverable: true}, NewNull())
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if _, err := c.Recover(ctx, served.ID(), NewNull(), rs); !errors.Is(err, ErrInUse) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("recovery of a served device: %v", err)
	}
}

// After a Handler refused, the driver has begun a recovery in which no queue was fetched.
func TestRecoverAgainAfterHandlerRefused(t *testing.T) {
	c := openControl(t)
	disk := diskFile(t, 1<<20)
	s := startServer(t, disk.Name(), "")
	s.kill()
	rs := vmReactors(t)
	for range 2 {
		if _, err := c.Recover(vmContext(t), s.id, &refusing{}, rs); !errors.Is(err, errRefused) {
			t.Fatalf("recovery with a handler that refuses: %v", err)
		}
	}
	d, err := c.Recover(vmContext(t), s.id, &fileDisk{f: disk}, rs)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadFile(d.Path()); err != nil {
		t.Error(err)
	}
	stopDevice(t, d)
	wantNoDevices(t, c)
}

// holding is a disk in memory whose writes wait while they are held back.
type holding struct {
	*Mem
	on   atomic.Bool
	held chan *Request
}

func (h *holding) Serve(r *Request) {
	if r.Op == OpWrite && h.on.Load() {
		h.held <- r
		return
	}
	h.Mem.Serve(r)
}

func (h *holding) Resume(r *Request, _ uint16, _ int32) { h.Mem.Serve(r) }

// What a dead server had sent to its backing device may arrive there long after its death. A successor
// must not begin before, or it would be overwritten by a ghost.
func TestSuccessorWaitsForWritesOfTheDead(t *testing.T) {
	c, rs := openControl(t), vmReactors(t)
	h := &holding{Mem: vmDisk(t, 1<<20), held: make(chan *Request, 128)}
	backing := createDevice(t, c, rs, Params{ID: AutoID, SizeBytes: h.Size()}, h)
	s := startServer(t, backing.Path(), "")
	f := directFile(t, BlockPath(s.id))
	h.on.Store(true)
	var writer errgroup.Group
	buf := pages(t, 4096)
	copy(buf, "written once, served twice")
	writer.Go(func() error { _, err := f.WriteAt(buf, 8192); return err })
	ghost := <-h.held
	s.kill()
	awaitState(t, c, s.id, StateQuiesced)
	if err := c.StartRecovery(vmContext(t), s.id); !errors.Is(err, unix.EBUSY) {
		t.Errorf("recovery begins while a write of the dead is under way: %v", err)
	}
	h.on.Store(false)
	time.AfterFunc(300*time.Millisecond, func() { ghost.Post(0, 0) })
	store := directFile(t, backing.Path())
	d, err := c.Recover(vmContext(t), s.id, &fileDisk{f: store}, rs)
	if err != nil {
		t.Fatal(err)
	}
	if err := writer.Wait(); err != nil {
		t.Error(err)
	}
	if !bytes.HasPrefix(h.slab[8192:], []byte("written once")) {
		t.Error("the write was lost")
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	stopDevice(t, d)
	if err := store.Close(); err != nil {
		t.Error(err)
	}
}
