package ublktest_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"coppice/ublk"
	"coppice/ublk/ublktest"

	"pgregory.net/rapid"
)

// through passes every request on to one disk.
type through struct {
	disk *ublktest.Disk
	file []ublk.File
	left [][]int // target I/Os to wait for, by queue and tag
}

func (h *through) Attach(q *ublk.Queue) error {
	f, err := q.RegisterFile(h.disk.File())
	h.file = append(h.file, f)
	h.left = append(h.left, make([]int, q.Depth()))
	return err
}

func (h *through) Detach(*ublk.Queue) {}

func (h *through) Serve(r *ublk.Request) {
	q := r.Queue().Index()
	h.left[q][r.Tag()] = 1
	switch r.Op {
	case ublk.OpRead:
		half := len(r.Buf) / 2 // two parts, so that one request has two I/Os in flight
		h.left[q][r.Tag()] = 2
		r.Read(h.file[q], r.Buf[:half], r.Off, uint16(half))
		r.Read(h.file[q], r.Buf[half:], r.Off+int64(half), uint16(len(r.Buf)-half))
	case ublk.OpWrite:
		r.Write(h.file[q], r.Buf, r.Off, r.FUA, uint16(len(r.Buf)))
	case ublk.OpFlush:
		r.Fsync(h.file[q], 0)
	default:
		r.Complete(syscall.EOPNOTSUPP)
	}
}

func (h *through) Resume(r *ublk.Request, cookie uint16, res int32) {
	if res < 0 {
		r.Complete(syscall.Errno(-res))
		return
	}
	if res != int32(cookie) {
		r.Complete(syscall.EIO)
		return
	}
	q := r.Queue().Index()
	if h.left[q][r.Tag()]--; h.left[q][r.Tag()] == 0 {
		r.Complete(0)
	}
}

const simSize = 64 << 10

func newThrough(tb testing.TB, cfg ublktest.SimConfig) (*ublktest.Sim, *ublktest.Disk, *ublktest.Device) {
	tb.Helper()
	disk, err := ublktest.NewDisk("leaf", simSize)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { disk.Close() })
	sim := ublktest.NewSim(cfg)
	sim.AddDisk(disk)
	dev, err := sim.NewDevice(&through{disk: disk},
		ublktest.DeviceConfig{SizeBytes: simSize, Queues: 2, Depth: 4, MaxIO: 8192})
	if err != nil {
		tb.Fatal(err)
	}
	return sim, disk, dev
}

func TestSimMatchesModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		cfg := ublktest.SimConfig{Seed: rapid.Uint64().Draw(rt, "seed"), FIFO: rapid.Bool().Draw(rt, "fifo")}
		_, _, dev := newThrough(t, cfg)
		model := make([]byte, simSize)
		for range rapid.IntRange(1, 20).Draw(rt, "ops") {
			off := rapid.IntRange(0, 120).Draw(rt, "off") * 512
			n := min(rapid.IntRange(1, 40).Draw(rt, "len")*512, simSize-off)
			if rapid.Bool().Draw(rt, "write") {
				p := bytes.Repeat([]byte{byte(rapid.IntRange(1, 255).Draw(rt, "fill"))}, n)
				if _, err := dev.WriteAt(p, int64(off)); err != nil {
					rt.Fatal(err)
				}
				copy(model[off:], p)
				continue
			}
			p := make([]byte, n)
			if _, err := dev.ReadAt(p, int64(off)); err != nil {
				rt.Fatal(err)
			}
			if !bytes.Equal(p, model[off:off+n]) {
				rt.Fatalf("read %d at %d differs from what was written", n, off)
			}
		}
		if err := dev.Close(); err != nil {
			rt.Fatal(err)
		}
	})
}

// One seed gives one order, and another seed another one.
func TestSimIsDeterministic(t *testing.T) {
	order := func(seed uint64) []int64 {
		sim, _, dev := newThrough(t, ublktest.SimConfig{Seed: seed})
		var offs []int64
		sim.Hook = func(e ublktest.Event) {
			if !e.After {
				offs = append(offs, e.Off)
			}
		}
		for i := range 8 {
			dev.Submit(ublk.Descriptor{Op: ublk.OpWrite, Off: int64(i) * 512, Len: 512}, make([]byte, 512), nil)
		}
		if err := sim.Run(); err != nil {
			t.Fatal(err)
		}
		return offs
	}
	a, b, c := order(1), order(1), order(2)
	same := func(x, y []int64) bool {
		for i := range x {
			if x[i] != y[i] {
				return false
			}
		}
		return len(x) == len(y)
	}
	if !same(a, b) {
		t.Errorf("seed 1 gave %v, then %v", a, b)
	}
	if same(a, c) {
		t.Errorf("seeds 1 and 2 gave the same order %v", a)
	}
}

func TestSimCrashKeepsWhatWasFlushed(t *testing.T) {
	sim, disk, dev := newThrough(t, ublktest.SimConfig{Seed: 3})
	fill := func(b byte) []byte { return bytes.Repeat([]byte{b}, 4096) }
	must := func(_ int, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(dev.WriteAt(fill(1), 0))
	must(0, dev.Flush())
	must(dev.WriteAt(fill(2), 4096))
	must(0, dev.WriteFUA(fill(3), 8192))
	must(dev.WriteAt(fill(4), 0))
	sim.Halt()
	lost, torn := false, false
	for seed := range uint64(200) {
		c, err := disk.Crash(rand.New(rand.NewPCG(seed, 0)))
		if err != nil {
			t.Fatal(err)
		}
		b := c.Bytes()
		for i := range 8 {
			first, old := b[i*512], b[4096+i*512]
			if first != 1 && first != 4 {
				t.Fatalf("sector %d holds %d, neither the flushed 1 nor the later 4", i, first)
			}
			if old != 0 && old != 2 {
				t.Fatalf("sector %d holds %d, which nobody wrote there", 8+i, old)
			}
			if b[8192+i*512] != 3 {
				t.Fatalf("sector %d lost its FUA write", 16+i)
			}
			lost = lost || old == 0
			torn = torn || first != b[0]
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if !lost || !torn {
		t.Errorf("over 200 crashes: a volatile write lost %v, torn %v; both should occur", lost, torn)
	}
	if err := sim.Run(); !errors.Is(err, ublktest.ErrHalted) {
		t.Errorf("Run after Halt: %v", err)
	}
}

// A flush covers only writes that had ended when it was begun.
func TestSimFlushDoesNotCoverWritesInFlight(t *testing.T) {
	exposed := false
	for seed := range uint64(50) {
		sim, disk, dev := newThrough(t, ublktest.SimConfig{Seed: seed})
		dev.Submit(ublk.Descriptor{Op: ublk.OpWrite, Len: 512}, bytes.Repeat([]byte{7}, 512), nil)
		dev.Submit(ublk.Descriptor{Op: ublk.OpFlush}, nil, nil)
		if err := sim.Run(); err != nil {
			t.Fatal(err)
		}
		exposed = exposed || len(disk.Volatile()) == 1
	}
	if !exposed {
		t.Error("in 50 orders the flush always covered a write that was in flight with it")
	}
}

func TestSimInjectsFaults(t *testing.T) {
	sim, disk, dev := newThrough(t, ublktest.SimConfig{FIFO: true})
	sim.FailNth(ublktest.Write, 2, ublktest.Fault{Errno: syscall.ENOSPC})
	p := bytes.Repeat([]byte{9}, 512)
	for i, want := range []error{nil, syscall.ENOSPC, nil} {
		if _, err := dev.WriteAt(p, int64(i)*512); !errors.Is(err, want) {
			t.Errorf("write %d: %v, want %v", i+1, err, want)
		}
	}
	if disk.Bytes()[512] != 0 {
		t.Error("the failed write reached the disk")
	}
	sim.FailNth(ublktest.Write, 4, ublktest.Fault{Short: true, Bytes: 100})
	if _, err := dev.WriteAt(p, 2048); !errors.Is(err, syscall.EIO) {
		t.Errorf("short write: %v, want EIO", err)
	}
	if b := disk.Bytes(); b[2048+99] != 9 || b[2048+100] != 0 {
		t.Error("the short write did not move exactly 100 bytes")
	}
	if n := sim.Count(ublktest.Write); n != 4 {
		t.Errorf("%d writes counted, want 4", n)
	}
}

func TestSimAnswersBadRequests(t *testing.T) {
	_, _, dev := newThrough(t, ublktest.SimConfig{})
	for _, c := range []struct {
		d    ublk.Descriptor
		want syscall.Errno
	}{
		{ublk.Descriptor{Op: ublk.OpRead, Off: simSize, Len: 512}, syscall.EIO},
		{ublk.Descriptor{Op: ublk.OpRead, Off: -512, Len: 512}, syscall.EIO},
		{ublk.Descriptor{Op: ublk.OpWrite, Len: 16384}, syscall.EIO},
		{ublk.Descriptor{Op: ublk.OpRead, Len: 0}, syscall.EIO},
		{ublk.Descriptor{Op: ublk.OpDiscard, Off: 512, Len: simSize}, syscall.EIO},
		{ublk.Descriptor{Op: 4, Len: 512}, syscall.EOPNOTSUPP},
		{ublk.Descriptor{Op: ublk.OpDiscard, Len: 512}, syscall.EOPNOTSUPP},
	} {
		got := syscall.Errno(1)
		dev.Submit(c.d, make([]byte, 16384), func(errno syscall.Errno, _ []byte) { got = errno })
		if err := dev.Flush(); err != nil {
			t.Fatal(err)
		}
		if got != c.want {
			t.Errorf("%+v: %v, want %v", c.d, got, c.want)
		}
	}
}

// poster answers from another goroutine, or never.
type poster struct{ silent bool }

func (*poster) Attach(*ublk.Queue) error { return nil }
func (*poster) Detach(*ublk.Queue)       {}
func (p *poster) Serve(r *ublk.Request) {
	if !p.silent {
		go r.Post(7, -int32(syscall.ENOSPC))
	}
}
func (*poster) Resume(r *ublk.Request, cookie uint16, res int32) {
	if cookie == 7 {
		r.Complete(syscall.Errno(-res))
	}
}

func TestSimPost(t *testing.T) {
	sim := ublktest.NewSim(ublktest.SimConfig{StuckAfter: 20 * time.Millisecond})
	h := &poster{}
	dev, err := sim.NewDevice(h, ublktest.DeviceConfig{MaxIO: 4096, Depth: 3})
	if err != nil {
		t.Fatal(err)
	}
	ended := 0
	for range 10 {
		dev.Submit(ublk.Descriptor{Op: ublk.OpFlush}, nil, func(errno syscall.Errno, _ []byte) {
			if errno == syscall.ENOSPC {
				ended++
			}
		})
	}
	if err := sim.Run(); err != nil || ended != 10 {
		t.Fatalf("%d of 10 requests ended: %v", ended, err)
	}
	h.silent = true
	if err := dev.Flush(); !errors.Is(err, ublktest.ErrStuck) {
		t.Errorf("a request that nobody answers: %v, want ErrStuck", err)
	}
	if err := dev.Close(); err == nil {
		t.Error("device closed with a request in service")
	}
}

func TestSimAlignment(t *testing.T) {
	_, disk, dev := newThrough(t, ublktest.SimConfig{})
	disk.RequireAlignment(4096)
	if _, err := dev.WriteAt(make([]byte, 4096), 4096); err != nil {
		t.Error(err)
	}
	if _, err := dev.WriteAt(make([]byte, 512), 4096); !errors.Is(err, syscall.EIO) {
		t.Errorf("unaligned write: %v, want EIO", err)
	}
}
