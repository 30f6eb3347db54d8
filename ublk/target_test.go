package ublk_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"coppice/ublk"
	"coppice/ublk/ublktest"
)

// passThrough serves a file through target I/O.
type passThrough struct {
	f        *os.File
	attached atomic.Int32
	refuse   error
}

func (p *passThrough) Attach(q *ublk.Queue) error {
	if p.refuse != nil && q.Index() == 1 {
		return p.refuse
	}
	file, err := q.RegisterFile(p.f)
	if err != nil {
		return err
	}
	again, err := q.RegisterFile(p.f)
	if err != nil || again != file {
		return errors.Join(errors.New("registering a file twice gives two slots"), err)
	}
	q.SetLocal(file)
	p.attached.Add(1)
	return nil
}

func (p *passThrough) Detach(*ublk.Queue) { p.attached.Add(-1) }

func (p *passThrough) Serve(r *ublk.Request) {
	file := r.Queue().Local().(ublk.File)
	switch r.Op {
	case ublk.OpRead:
		r.Read(file, r.Buf, r.Off, 0)
	case ublk.OpWrite:
		r.Write(file, r.Buf, r.Off, r.FUA, 0)
	case ublk.OpFlush:
		r.Fsync(file, 0)
	default:
		r.Complete(syscall.EOPNOTSUPP)
	}
}

func (p *passThrough) Resume(r *ublk.Request, _ uint16, res int32) {
	switch {
	case res < 0:
		r.Complete(syscall.Errno(-res))
	case r.Buf != nil && int(res) < len(r.Buf):
		r.Complete(syscall.EIO)
	default:
		r.Complete(0)
	}
}

func tempFile(tb testing.TB, size int64) *os.File {
	tb.Helper()
	f, err := os.Create(filepath.Join(tb.TempDir(), "disk"))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		tb.Fatal(err)
	}
	return f
}

func TestTargetIO(t *testing.T) {
	const size = 1 << 20
	h := &passThrough{f: tempFile(t, size)}
	rs := newReactors(t, ublk.ReactorConfig{})
	closeAtEnd(t, rs)
	f := served(t, rs, h, ublktest.FakeConfig{SizeBytes: size + 4096, Queues: 3, Depth: 5, MaxIO: 64 << 10})
	data := make([]byte, 40960)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	if err := f.Do(ublk.Descriptor{Op: ublk.OpWrite, FUA: true, Off: 8192, Len: int64(len(data))}, data); err != nil {
		t.Fatal(err)
	}
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(data))
	if _, err := f.ReadAt(got, 8192); err != nil || !bytes.Equal(got, data) {
		t.Errorf("read back: %v, equal %v", err, bytes.Equal(got, data))
	}
	if _, err := h.f.ReadAt(got, 8192); err != nil || !bytes.Equal(got, data) {
		t.Errorf("read from the file: %v, equal %v", err, bytes.Equal(got, data))
	}
	if _, err := f.ReadAt(got[:4096], size); !errors.Is(err, syscall.EIO) {
		t.Errorf("read behind the end of the file: %v, want EIO", err)
	}
}

// A submission queue far smaller than a batch is flushed, and nothing is lost.
func TestFullSubmissionQueue(t *testing.T) {
	const size, depth = 1 << 20, 512
	h := &inHalves{passThrough: passThrough{f: tempFile(t, size)}}
	rs := newReactors(t, ublk.ReactorConfig{CPUs: []int{0}, Entries: 64})
	closeAtEnd(t, rs)
	f := served(t, rs, h, ublktest.FakeConfig{SizeBytes: size, Depth: depth, MaxIO: 4096})
	var wg sync.WaitGroup
	for range 20 {
		h.gate.Lock() // until all are there: one batch has more than the queue then
		for i := range depth {
			wg.Add(1)
			f.Submit(ublk.Descriptor{Op: ublk.OpRead, Off: int64(i) * 512, Len: 512}, make([]byte, 512),
				func(errno syscall.Errno, _ []byte) {
					if errno != 0 {
						t.Error(errno)
					}
					wg.Done()
				})
		}
		h.gate.Unlock()
		wg.Wait()
	}
	stats, err := rs.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if stats[0].Flushes == 0 {
		t.Errorf("the submission queue was never full: %+v", stats)
	}
}

// inHalves reads each half of a request by itself, when the gate is open.
type inHalves struct {
	passThrough
	gate sync.RWMutex
}

func (h *inHalves) Serve(r *ublk.Request) {
	h.gate.RLock()
	defer h.gate.RUnlock()
	file := r.Queue().Local().(ublk.File)
	half := len(r.Buf) / 2
	r.Read(file, r.Buf[:half], r.Off, 0)
	r.Read(file, r.Buf[half:], r.Off+int64(half), 0)
}

func (h *inHalves) Resume(r *ublk.Request, _ uint16, res int32) {
	if int(res) != len(r.Buf)/2 {
		r.Complete(syscall.EIO)
		return
	}
	r.Complete(0) // once the other half is there, too
}

// async answers through Post from several goroutines, often from before Serve has returned.
type async struct {
	work chan *ublk.Request
	done chan struct{}
}

func newAsync(workers int) *async {
	a := &async{work: make(chan *ublk.Request, 4096), done: make(chan struct{})}
	for range workers {
		go func() {
			for r := range a.work {
				r.Post(uint16(r.Tag()), int32(r.Off/512))
			}
			a.done <- struct{}{}
		}()
	}
	return a
}

func (a *async) stop(workers int) {
	close(a.work)
	for range workers {
		<-a.done
	}
}

func (*async) Attach(*ublk.Queue) error { return nil }
func (*async) Detach(*ublk.Queue)       {}
func (a *async) Serve(r *ublk.Request)  { a.work <- r }

func (*async) Resume(r *ublk.Request, cookie uint16, res int32) {
	if int(cookie) != r.Tag() || int64(res) != r.Off/512 {
		r.Complete(syscall.ENOSPC) // not the Post of this request
		return
	}
	r.Complete(0)
}

func TestPostFromManyGoroutines(t *testing.T) {
	const workers, requests = 5, 20000
	h := newAsync(workers)
	defer h.stop(workers)
	rs := newReactors(t, ublk.ReactorConfig{})
	closeAtEnd(t, rs)
	f := served(t, rs, h, ublktest.FakeConfig{Queues: 2, Depth: 64, MaxIO: 4096})
	var wg sync.WaitGroup
	var failed atomic.Int32
	wg.Add(requests)
	for i := range requests {
		f.Submit(ublk.Descriptor{Op: ublk.OpDiscard, Off: int64(i) * 512, Len: 512}, nil,
			func(errno syscall.Errno, _ []byte) {
				if errno != 0 {
					failed.Add(1)
				}
				wg.Done()
			})
	}
	wg.Wait()
	if n := failed.Load(); n > 0 {
		t.Errorf("%d of %d requests got the Post of another one", n, requests)
	}
	stats, err := rs.Stats()
	if err != nil {
		t.Fatal(err)
	}
	posts := uint64(0)
	for _, s := range stats {
		posts += s.Posts
	}
	if posts != requests {
		t.Errorf("%d posts delivered, want %d", posts, requests)
	}
}

func TestFilesAreSharedAndReleased(t *testing.T) {
	rs := newReactors(t, ublk.ReactorConfig{CPUs: []int{0}, Files: 2})
	closeAtEnd(t, rs)
	one, two, three := &passThrough{f: tempFile(t, 4096)}, &passThrough{f: tempFile(t, 4096)}, &passThrough{f: tempFile(t, 4096)}
	start := func(h ublk.Handler) (*ublktest.Fake, *ublk.Attachment, error) {
		f, err := ublktest.NewFake(ublktest.FakeConfig{Depth: 2, MaxIO: 4096})
		if err != nil {
			t.Fatal(err)
		}
		a, err := f.Start(rs, h)
		return f, a, err
	}
	stop := func(f *ublktest.Fake, a *ublk.Attachment) {
		f.Stop()
		mustClose(t, "queue ended", a.Ended())
		if err := errors.Join(a.Err(), f.Close()); err != nil {
			t.Error(err)
		}
	}
	f1, a1, err1 := start(one)
	f2, a2, err2 := start(two)
	f3, a3, err3 := start(one) // shares the slot of f1
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	f4, _, err := start(three)
	if !errors.Is(err, ublk.ErrFilesFull) {
		t.Errorf("third file in a table of two: %v, want ErrFilesFull", err)
	}
	if err := f4.Close(); err != nil {
		t.Error(err)
	}
	stop(f1, a1)
	if _, err := f3.ReadAt(make([]byte, 4096), 0); err != nil {
		t.Errorf("read through a file that another device has released: %v", err)
	}
	stop(f2, a2)
	f5, a5, err := start(three)
	if err != nil {
		t.Fatalf("a released slot is not reused: %v", err)
	}
	stop(f3, a3)
	stop(f5, a5)
	for i, h := range []*passThrough{one, two, three} {
		if n := h.attached.Load(); n != 0 {
			t.Errorf("handler %d: %d more Attach than Detach", i+1, n)
		}
	}
}

func TestRefusedAttachLeavesNothing(t *testing.T) {
	refusal := errors.New("no room")
	h := &passThrough{f: tempFile(t, 4096), refuse: refusal}
	rs := newReactors(t, ublk.ReactorConfig{})
	closeAtEnd(t, rs)
	f, err := ublktest.NewFake(ublktest.FakeConfig{Queues: 2, Depth: 2, MaxIO: 4096})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Start(rs, h); !errors.Is(err, refusal) {
		t.Errorf("Attach: %v, want the handler's error", err)
	}
	if n := h.attached.Load(); n != 0 {
		t.Errorf("%d queues stay attached", n)
	}
	if err := errors.Join(f.Err(), f.Close()); err != nil {
		t.Error(err)
	}
}

// gate holds requests until it is opened, and counts.
type gate struct {
	ublk.Null
	mu      sync.Mutex
	open    bool
	held    []*ublk.Request
	served  int
	entered chan struct{}
}

func (g *gate) Serve(r *ublk.Request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.served++
	if g.open {
		r.Complete(0)
		return
	}
	g.held = append(g.held, r)
	g.entered <- struct{}{}
}

func (g *gate) Resume(r *ublk.Request, _ uint16, _ int32) { r.Complete(0) }

func (g *gate) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range g.held {
		r.Post(0, 0)
	}
	g.held = nil
}

// Drain ends what the handler has, serves nothing more, and leaves what came meanwhile for a successor.
func TestDrainAndSuccessor(t *testing.T) {
	rs := newReactors(t, ublk.ReactorConfig{CPUs: []int{0}})
	g := &gate{entered: make(chan struct{}, 100)}
	f, err := ublktest.NewFake(ublktest.FakeConfig{Depth: 8, MaxIO: 4096})
	if err != nil {
		t.Fatal(err)
	}
	a, err := f.Start(rs, g)
	if err != nil {
		t.Fatal(err)
	}
	var answered sync.WaitGroup
	submit := func(n int) {
		for range n {
			answered.Add(1)
			f.Submit(ublk.Descriptor{Op: ublk.OpDiscard, Len: 512}, nil, func(errno syscall.Errno, _ []byte) {
				if errno != 0 {
					t.Errorf("request failed over the change of servers: %v", errno)
				}
				answered.Done()
			})
		}
	}
	submit(3)
	for range 3 {
		<-g.entered
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := a.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("drain with requests in service: %v, want a time-out", err)
	}
	if err := rs.Close(); !errors.Is(err, ublk.ErrServing) {
		t.Fatalf("close while draining: %v, want ErrServing", err)
	}
	submit(20) // come while draining
	g.release()
	if err := a.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if g.served != 3 {
		t.Errorf("%d requests served, want the 3 from before", g.served)
	}
	if err := rs.Close(); err != nil {
		t.Fatal(err)
	}
	mustClose(t, "drained queue ended with its reactors", a.Ended())
	succeed(t, f, a, &answered)
}

// succeed has a successor answer what was left of a device whose reactors are closed, and ends the device.
func succeed(t *testing.T, f *ublktest.Fake, a *ublk.Attachment, answered *sync.WaitGroup) {
	t.Helper()
	f.Quiesce()
	next := newReactors(t, ublk.ReactorConfig{})
	a2, err := f.Start(next, ublk.NewNull())
	if err != nil {
		t.Fatal(err)
	}
	answered.Wait()
	f.Stop()
	mustClose(t, "successor's queues ended", a2.Ended())
	if err := errors.Join(a.Err(), a2.Err(), f.Err(), f.Close(), next.Close()); err != nil {
		t.Error(err)
	}
}

// Under load from many goroutines a drain loses nothing, whenever it comes.
func TestDrainUnderLoad(t *testing.T) {
	f, err := ublktest.NewFake(ublktest.FakeConfig{Queues: 2, Depth: 16, MaxIO: 4096, SizeBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for c := range 6 {
		clients.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(c), 0))
			part := int64(c) * 128 << 10
			data, got := make([]byte, 4096), make([]byte, 4096)
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				off := part + rng.Int64N(16)*4096
				for i := range data {
					data[i] = byte(n + c)
				}
				if _, err := f.WriteAt(data, off); err != nil {
					t.Error(err)
				}
				if _, err := f.ReadAt(got, off); err != nil || !bytes.Equal(got, data) {
					t.Errorf("read back at %d: %v", off, err)
				}
			}
		})
	}
	m := newMem(t, 1<<20)
	for range 10 {
		rs := newReactors(t, ublk.ReactorConfig{})
		a, err := f.Start(rs, m)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
		if err := a.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		f.Quiesce()
		if err := errors.Join(rs.Close(), a.Err()); err != nil {
			t.Fatal(err)
		}
	}
	rs := newReactors(t, ublk.ReactorConfig{})
	a, err := f.Start(rs, m)
	if err != nil {
		t.Fatal(err)
	}
	close(stop)
	clients.Wait()
	f.Stop()
	mustClose(t, "queues ended", a.Ended())
	if err := errors.Join(a.Err(), f.Err(), f.Close(), rs.Close()); err != nil {
		t.Error(err)
	}
}

// refuser is a driver that refuses every command.
type refuser struct{ done []ublk.Completion }

func (*refuser) Bind(func())   {}
func (r *refuser) Ready() bool { return len(r.done) > 0 }
func (r *refuser) Command(_ ublk.Command, userData uint64) {
	r.done = append(r.done, ublk.Completion{UserData: userData, Res: -int32(syscall.EINVAL)})
}

func (r *refuser) Reap(into []ublk.Completion) int {
	n := copy(into, r.done)
	r.done = r.done[n:]
	return n
}

func TestRefusedCommandsAreReported(t *testing.T) {
	rs := newReactors(t, ublk.ReactorConfig{})
	closeAtEnd(t, rs)
	a, err := rs.Attach([]ublk.QueueSource{{
		QueueConfig: ublk.QueueConfig{Handler: ublk.NewNull(), Depth: 100, MaxIO: 4096},
		CPU:         -1,
		Descriptors: make([]byte, 24*100),
		Transport:   &refuser{},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Fetch(); err != nil {
		t.Fatal(err)
	}
	mustClose(t, "broken", a.Broken())
	mustClose(t, "ended", a.Ended())
	if err := a.Err(); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("error is %v, want EINVAL", err)
	}
}

func TestAbandonAndShortArea(t *testing.T) {
	rs := newReactors(t, ublk.ReactorConfig{})
	closeAtEnd(t, rs)
	src := ublk.QueueSource{
		QueueConfig: ublk.QueueConfig{Handler: ublk.NewNull(), Depth: 2, MaxIO: 4096},
		Descriptors: make([]byte, 48), Transport: &refuser{},
	}
	a, err := rs.Attach([]ublk.QueueSource{src})
	if err != nil {
		t.Fatal(err)
	}
	if err := rs.Close(); !errors.Is(err, ublk.ErrServing) {
		t.Errorf("close with a queue attached: %v, want ErrServing", err)
	}
	if err := a.Abandon(); err != nil {
		t.Error(err)
	}
	src.Descriptors = make([]byte, 47)
	if _, err := rs.Attach([]ublk.QueueSource{src}); err == nil {
		t.Error("a descriptor area that is too small is accepted")
	}
	if _, err := rs.Attach(nil); err == nil {
		t.Error("no queue at all is accepted")
	}
}

func TestClosedReactorsRefuse(t *testing.T) {
	rs := newReactors(t, ublk.ReactorConfig{})
	f, err := ublktest.NewFake(ublktest.FakeConfig{Depth: 1, MaxIO: 4096})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(rs.Close(), rs.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Start(rs, ublk.NewNull()); !errors.Is(err, ublk.ErrReactorsClosed) {
		t.Errorf("attach to closed reactors: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}
