package ublk

import (
	"encoding/binary"
	"math"
	"sync"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"coppice/ublk/uapi"
)

func TestUserDataKeepsItsParts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		kind := userKind(rapid.IntRange(0, 15).Draw(t, "kind"))
		slot := rapid.Uint16().Draw(t, "slot")
		tag := rapid.Uint16Range(0, maxDepth-1).Draw(t, "tag")
		gen, cookie := rapid.Uint16().Draw(t, "gen"), rapid.Uint16().Draw(t, "cookie")
		u := packUserData(kind, slot, tag, gen, cookie)
		if u.kind() != kind || u.slot() != slot || u.tag() != tag || u.gen() != gen || u.cookie() != cookie {
			t.Errorf("%#x gives kind %d slot %d tag %d generation %d cookie %d", u, u.kind(), u.slot(), u.tag(), u.gen(), u.cookie())
		}
	})
}

func TestDriverResult(t *testing.T) {
	for _, c := range []struct {
		op    Op
		errno syscall.Errno
		want  int32
	}{
		{OpRead, 0, 8192},
		{OpWrite, 0, 8192},
		{OpFlush, 0, 0},
		{OpDiscard, 0, 0},
		{OpWriteZeroes, 0, 0},
		{OpRead, syscall.EIO, -int32(syscall.EIO)},
		{OpWrite, syscall.ENOSPC, -int32(syscall.ENOSPC)},
		{OpDiscard, syscall.EOPNOTSUPP, -int32(syscall.EOPNOTSUPP)},
		{OpWrite, syscall.EAGAIN, -int32(syscall.EIO)},
		{OpWrite, syscall.ENOMEM, -int32(syscall.EIO)},
		{OpRead, syscall.EBUSY, -int32(syscall.EIO)},
		{OpRead, syscall.Errno(math.MaxInt32 + 7), -int32(syscall.EIO)},
	} {
		if got := driverResult(c.op, 8192, c.errno); got != c.want {
			t.Errorf("operation %d with %v: %d, want %d", c.op, c.errno, got, c.want)
		}
	}
}

// Whatever the driver writes there, a descriptor becomes a range that check can judge.
func TestDescriptorAt(t *testing.T) {
	area := make([]byte, 4*descSize)
	put := func(flags, sectors uint32, start uint64) Descriptor {
		d := area[2*descSize:]
		binary.NativeEndian.PutUint32(d[0:], flags)
		binary.NativeEndian.PutUint32(d[4:], sectors)
		binary.NativeEndian.PutUint64(d[8:], start)
		return descriptorAt(area, 2)
	}
	got := put(uint32(OpWrite)|uapi.IOFUA|uapi.IOMeta, 16, 3)
	if want := (Descriptor{Op: OpWrite, FUA: true, Meta: true, Off: 1536, Len: 8192}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	got = put(uint32(OpWriteZeroes)|uapi.IONoUnmap, math.MaxUint32, 1)
	if want := (Descriptor{Op: OpWriteZeroes, NoUnmap: true, Off: 512, Len: math.MaxUint32 * 512}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	q := Queue{maxIO: 4096, size: 1 << 20}
	rapid.Check(t, func(t *rapid.T) {
		d := put(rapid.Uint32().Draw(t, "flags"), rapid.Uint32().Draw(t, "sectors"), rapid.Uint64().Draw(t, "start"))
		if d.Off < 0 || d.Len < 0 {
			t.Fatalf("%+v is negative", d)
		}
		if d.Op != OpFlush && q.check(&d) == 0 && d.Off+d.Len > q.size {
			t.Errorf("%+v is accepted, but the device ends at %d", d, q.size)
		}
	})
}

func TestPostListKeepsOrder(t *testing.T) {
	const producers, each = 4, 2000
	var l postList
	var wg sync.WaitGroup
	for p := range producers {
		wg.Go(func() {
			for i := range each {
				l.put(&Request{tag: uint16(p), postRes: int32(i)})
			}
		})
	}
	last := [producers]int32{-1, -1, -1, -1}
	for left := producers * each; left > 0; {
		for r := l.take(); r != nil; r = r.next {
			if r.postRes != last[r.tag]+1 {
				t.Fatalf("producer %d: %d came after %d", r.tag, r.postRes, last[r.tag])
			}
			last[r.tag]++
			left--
		}
	}
	wg.Wait()
	if !l.empty() {
		t.Error("the list is not empty after everything was taken")
	}
}

func TestQueueConfigIsChecked(t *testing.T) {
	for name, c := range map[string]QueueConfig{
		"no handler":     {},
		"negative index": {Handler: NewNull(), Index: -1},
		"depth":          {Handler: NewNull(), Depth: 4097},
		"max I/O":        {Handler: NewNull(), MaxIO: 4097},
		"huge max I/O":   {Handler: NewNull(), MaxIO: 64 << 20},
		"size":           {Handler: NewNull(), SizeBytes: -1},
	} {
		if q, err := NewQueue(c, nil); err == nil {
			t.Errorf("%s: accepted", name)
			if err := q.Release(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestReactorConfigIsChecked(t *testing.T) {
	for name, c := range map[string]ReactorConfig{
		"entries": {Entries: 1},
		"files":   {Files: -1},
		"workers": {IOWorkers: 1 << 20},
	} {
		if _, err := NewReactors(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func mustPanic(t *testing.T, what string, f func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Errorf("%s does not panic", what)
		}
	}()
	f()
}

// silentTarget is a Target of which only commits are looked at.
type silentTarget struct {
	Target
	commits []int32
}

func (s *silentTarget) Commit(_ *Request, res int32)               { s.commits = append(s.commits, res) }
func (s *silentTarget) Now() int64                                 { return 0 }
func (s *silentTarget) Post(*Request)                              {}
func (s *silentTarget) Read(*Request, File, []byte, int64, uint16) {}
func (s *silentTarget) Fsync(r *Request, f File, cookie uint16)    {}

// held keeps the request that it serves.
type held struct {
	Null
	r       *Request
	resumed int
}

func (h *held) Serve(r *Request)               { h.r = r }
func (h *held) Resume(*Request, uint16, int32) { h.resumed++ }

func newHeld(t *testing.T) (*held, *Queue, *silentTarget) {
	t.Helper()
	h, target := &held{}, &silentTarget{}
	q, err := NewQueue(QueueConfig{Handler: h, Depth: 1, MaxIO: 4096}, target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := q.Release(); err != nil {
			t.Error(err)
		}
	})
	q.Start(0, Descriptor{Op: OpRead, Len: 4096})
	return h, q, target
}

// The driver gets its answer only when no target I/O can touch the buffer any more.
func TestCompleteWaitsForTargetIO(t *testing.T) {
	h, q, target := newHeld(t)
	h.r.Read(0, h.r.Buf, 0, 1)
	h.r.Read(0, h.r.Buf, 0, 2)
	h.r.Post(3, 0)
	q.Resume(h.r, 1, 4096)
	h.r.Complete(0)
	if len(target.commits) != 0 {
		t.Fatal("committed while a read was in flight")
	}
	q.Resume(h.r, 2, 4096)
	if len(target.commits) != 0 {
		t.Fatal("committed while a Post was outstanding")
	}
	q.ResumePosted(h.r)
	if len(target.commits) != 1 || target.commits[0] != 4096 {
		t.Fatalf("commits %v, want one of 4096", target.commits)
	}
	if h.resumed != 1 {
		t.Errorf("resumed %d times, want only before Complete", h.resumed)
	}
	if q.InService() != 0 {
		t.Errorf("%d requests in service after the commit", q.InService())
	}
}

func TestMisuseIsNotSwallowed(t *testing.T) {
	h, q, _ := newHeld(t)
	mustPanic(t, "starting a tag in service", func() { q.Start(0, Descriptor{Op: OpFlush}) })
	h.r.Post(1, 0)
	mustPanic(t, "a second Post", func() { h.r.Post(1, 0) })
	q.ResumePosted(h.r)
	h.r.Complete(0)
	mustPanic(t, "a second Complete", func() { h.r.Complete(0) })
	mustPanic(t, "target I/O after Complete", func() { h.r.Fsync(0, 0) })
	mustPanic(t, "Resume after Complete", func() { q.Resume(h.r, 0, 0) })
}
