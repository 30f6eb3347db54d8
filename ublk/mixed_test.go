package ublk_test

import (
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"

	"coppice/ublk"
	"coppice/ublk/ublktest"

	"pgregory.net/rapid"
)

// mixed serves a disk in every way at once: a read in up to four parts, some of them read twice into a side
// buffer and not waited for; a write after a detour through another goroutine.
type mixed struct {
	disk *ublktest.Disk
	seed uint64
	away chan *ublk.Request // to the goroutine
}

type mixedQueue struct {
	rng  *rand.Rand
	file ublk.File
	left []int
	side [][]byte
}

const (
	cookieNeeded uint16 = iota
	cookieSpare
	cookieBack
)

func newMixed(disk *ublktest.Disk, seed uint64) *mixed {
	m := &mixed{disk: disk, seed: seed, away: make(chan *ublk.Request, 1024)}
	go func() {
		for r := range m.away {
			r.Post(cookieBack, 0)
		}
	}()
	return m
}

func (m *mixed) Attach(q *ublk.Queue) error {
	file, err := q.RegisterFile(m.disk.File())
	mq := &mixedQueue{rng: rand.New(rand.NewPCG(m.seed, uint64(q.Index()))), file: file, left: make([]int, q.Depth())}
	for range q.Depth() {
		mq.side = append(mq.side, make([]byte, q.MaxIO()))
	}
	q.SetLocal(mq)
	return err
}

func (m *mixed) Detach(*ublk.Queue) {}

func (m *mixed) Serve(r *ublk.Request) {
	q := r.Queue().Local().(*mixedQueue)
	q.left[r.Tag()] = 1
	switch {
	case r.Op == ublk.OpRead:
		m.read(q, r)
	case r.Op == ublk.OpWrite && q.rng.IntN(2) == 0:
		m.away <- r
	case r.Op == ublk.OpWrite:
		r.Write(q.file, r.Buf, r.Off, r.FUA, cookieNeeded)
	case r.Op == ublk.OpFlush:
		r.Fsync(q.file, cookieNeeded)
	default: // as zeros, through the side buffer
		side := q.side[r.Tag()][:r.Len]
		clear(side)
		r.Write(q.file, side, r.Off, false, cookieNeeded)
	}
}

func (m *mixed) read(q *mixedQueue, r *ublk.Request) {
	q.left[r.Tag()] = 0
	for at := 0; at < len(r.Buf); {
		n := min(512+q.rng.IntN(4)*len(r.Buf)/2048*512, len(r.Buf)-at)
		q.left[r.Tag()]++
		r.Read(q.file, r.Buf[at:at+n], r.Off+int64(at), cookieNeeded)
		if q.rng.IntN(2) == 0 {
			r.Read(q.file, q.side[r.Tag()][at:at+n], r.Off+int64(at), cookieSpare)
		}
		at += n
	}
}

func (m *mixed) Resume(r *ublk.Request, cookie uint16, res int32) {
	q := r.Queue().Local().(*mixedQueue)
	switch {
	case cookie == cookieBack:
		r.Write(q.file, r.Buf, r.Off, r.FUA, cookieNeeded)
		return
	case cookie == cookieSpare:
		return
	case res < 0:
		r.Complete(syscall.Errno(-res))
		return
	}
	if q.left[r.Tag()]--; q.left[r.Tag()] == 0 {
		r.Complete(0)
	}
}

func TestMixedHandlerInSimulator(t *testing.T) {
	const size, maxIO = 256 << 10, 32 << 10
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		disk, err := ublktest.NewDisk("mixed", size)
		if err != nil {
			rt.Fatal(err)
		}
		h := newMixed(disk, seed)
		sim := ublktest.NewSim(ublktest.SimConfig{Seed: seed, FIFO: rapid.Bool().Draw(rt, "fifo")})
		sim.AddDisk(disk)
		dev, err := sim.NewDevice(h, ublktest.DeviceConfig{
			SizeBytes: size, Queues: rapid.IntRange(1, 3).Draw(rt, "queues"),
			Depth: rapid.IntRange(1, 9).Draw(rt, "depth"), MaxIO: maxIO,
		})
		if err != nil {
			rt.Fatal(err)
		}
		rounds(rt, dev, sim.Run, rand.New(rand.NewPCG(seed, 0)), size, maxIO)
		close(h.away)
		for _, err := range []error{dev.Close(), disk.Close()} {
			if err != nil {
				rt.Error(err)
			}
		}
	})
}

// Hundreds of devices need no more threads than there are CPUs.
func TestManyDevicesShareThreads(t *testing.T) {
	const devices = 200
	rs := newReactors(t, ublk.ReactorConfig{})
	closeAtEnd(t, rs)
	var fakes []*ublktest.Fake
	for range devices {
		fakes = append(fakes, served(t, rs, ublk.NewNull(), ublktest.FakeConfig{Queues: 2, Depth: 4, MaxIO: 4096}))
	}
	stats, err := rs.Stats()
	if err != nil {
		t.Fatal(err)
	}
	queues, least, most := 0, 2*devices, 0
	for _, s := range stats {
		queues += s.Queues
		least, most = min(least, s.Queues), max(most, s.Queues)
	}
	if queues != 2*devices || most-least > 1 {
		t.Errorf("%d queues in all, from %d to %d on a reactor; want %d, evenly", queues, least, most, 2*devices)
	}
	var wg sync.WaitGroup
	for _, f := range fakes {
		for range 10 {
			wg.Add(1)
			f.Submit(ublk.Descriptor{Op: ublk.OpFlush}, nil, func(errno syscall.Errno, _ []byte) {
				if errno != 0 {
					t.Error(errno)
				}
				wg.Done()
			})
		}
	}
	wg.Wait()
}

func TestOldestRequest(t *testing.T) {
	rs := newReactors(t, ublk.ReactorConfig{})
	g := &gate{entered: make(chan struct{}, 10)}
	f, err := ublktest.NewFake(ublktest.FakeConfig{Queues: 2, Depth: 4, MaxIO: 4096})
	if err != nil {
		t.Fatal(err)
	}
	a, err := f.Start(rs, g)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok, err := a.Oldest(); ok || err != nil {
		t.Errorf("idle device has an oldest request: %v, %v", ok, err)
	}
	for i := range 3 {
		f.SubmitTo(i%2, ublk.Descriptor{Op: ublk.OpDiscard, Off: int64(i) * 512, Len: 512}, nil, nil)
		<-g.entered
	}
	oldest, ok, err := a.Oldest()
	if !ok || err != nil || oldest.Off != 0 || oldest.Queue != 0 || oldest.Op != ublk.OpDiscard || oldest.Age <= 0 {
		t.Errorf("oldest request is %+v, %v, %v", oldest, ok, err)
	}
	if n := a.InService(); n != 3 {
		t.Errorf("%d requests in service, want 3", n)
	}
	g.release()
	f.Stop()
	mustClose(t, "queues ended", a.Ended())
	if err := rs.Close(); err != nil {
		t.Error(err)
	}
	if n := a.InService(); n != -1 {
		t.Errorf("%d requests in service of closed reactors, want -1", n)
	}
	if _, _, err := a.Oldest(); err == nil {
		t.Error("closed reactors were inspected")
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}
