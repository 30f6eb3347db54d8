package ublk_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	"coppice/ublk"
	"coppice/ublk/ublktest"

	"pgregory.net/rapid"
)

func newReactors(tb testing.TB, cfg ublk.ReactorConfig) *ublk.Reactors {
	tb.Helper()
	rs, err := ublk.NewReactors(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return rs
}

// served is a fake device in service, stopped and checked when the test ends.
func served(tb testing.TB, rs *ublk.Reactors, h ublk.Handler, cfg ublktest.FakeConfig, cpus ...int) *ublktest.Fake {
	tb.Helper()
	f, err := ublktest.NewFake(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	a, err := f.Start(rs, h, cpus...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		f.Stop()
		mustClose(tb, "every queue ended", a.Ended())
		for _, err := range []error{a.Err(), f.Err(), f.Close()} {
			if err != nil {
				tb.Error(err)
			}
		}
	})
	return f
}

func closeAtEnd(tb testing.TB, rs *ublk.Reactors) {
	tb.Cleanup(func() {
		stats, err := rs.Stats()
		if err != nil {
			tb.Error(err)
		}
		for _, s := range stats {
			if s.Strays != 0 || s.Queues != 0 {
				tb.Errorf("reactor of CPU %d: %d stray completions, %d queues left", s.CPU, s.Strays, s.Queues)
			}
		}
		if err := rs.Close(); err != nil {
			tb.Error(err)
		}
	})
}

func mustClose(tb testing.TB, what string, c <-chan struct{}) {
	tb.Helper()
	select {
	case <-c:
	case <-time.After(10 * time.Second):
		tb.Fatalf("not within 10 s: %s", what)
	}
}

func newMem(tb testing.TB, size int64) *ublk.Mem {
	tb.Helper()
	m, err := ublk.NewMem(size)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := m.Close(); err != nil {
			tb.Error(err)
		}
	})
	return m
}

func TestMemServesEveryOperation(t *testing.T) {
	const size = 1 << 20
	rs := newReactors(t, ublk.ReactorConfig{})
	m := newMem(t, size)
	closeAtEnd(t, rs)
	f := served(t, rs, m, ublktest.FakeConfig{SizeBytes: size, MaxIO: 128 << 10, Depth: 4})

	data := bytes.Repeat([]byte("coppice!"), 64<<10/8)
	got := make([]byte, len(data))
	check := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	read := func(off int64) []byte {
		t.Helper()
		_, err := f.ReadAt(got, off)
		check("read", err)
		return got
	}
	_, err := f.WriteAt(data, 4096)
	check("write", err)
	check("flush", f.Flush())
	if !bytes.Equal(read(4096), data) {
		t.Error("read differs from what was written")
	}
	check("discard", f.Discard(4096+512, 20000/512*512))
	if end := 512 + 20000/512*512; !bytes.Equal(read(4096)[512:end], make([]byte, end-512)) ||
		!bytes.Equal(got[:512], data[:512]) || !bytes.Equal(got[end:], data[end:]) {
		t.Error("discard did not zero exactly its range")
	}
	check("write zeroes", f.WriteZeroes(0, size))
	if !bytes.Equal(read(4096), make([]byte, len(data))) {
		t.Error("zeroed range does not read as zeros")
	}
	check("write zeroes that stay allocated",
		f.Do(ublk.Descriptor{Op: ublk.OpWriteZeroes, NoUnmap: true, Len: 8192}, nil))
	check("write with FUA", f.Do(ublk.Descriptor{Op: ublk.OpWrite, FUA: true, Len: 512}, data[:512]))
	if _, err := f.ReadAt(got, size-4096); !errors.Is(err, syscall.EIO) {
		t.Errorf("read across the end: %v, want EIO", err)
	}
	if err := f.Do(ublk.Descriptor{Op: 15, Len: 512}, nil); !errors.Is(err, syscall.EOPNOTSUPP) {
		t.Errorf("zone operation: %v, want EOPNOTSUPP", err)
	}
}

// Null reads zeros even where the tag's buffer held written data before.
func TestNullReadsZeros(t *testing.T) {
	rs := newReactors(t, ublk.ReactorConfig{})
	closeAtEnd(t, rs)
	f := served(t, rs, ublk.NewNull(), ublktest.FakeConfig{Depth: 1, MaxIO: 8192, KeepBuffers: true})
	for _, n := range []int{512, 8192, 4096} {
		if _, err := f.WriteAt(bytes.Repeat([]byte{1}, n), 0); err != nil {
			t.Fatal(err)
		}
		got := bytes.Repeat([]byte{2}, 8192)
		if _, err := f.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, make([]byte, len(got))) {
			t.Errorf("a read of a null device shows a write of %d bytes", n)
		}
	}
}

// One model for all: sequential operations on each of several devices at once, each with several
// queues, on shared reactors.
func TestServeMatchesModel(t *testing.T) {
	const size, maxIO = 256 << 10, 32 << 10
	rapid.Check(t, func(rt *rapid.T) {
		rs := newReactors(t, ublk.ReactorConfig{})
		devices := rapid.IntRange(1, 4).Draw(rt, "devices")
		queues := rapid.IntRange(1, 3).Draw(rt, "queues")
		depth := rapid.SampledFrom([]int{1, 2, 7, 128}).Draw(rt, "depth")
		seed := rapid.Uint64().Draw(rt, "seed")
		var wg sync.WaitGroup
		var stops []func() error
		for d := range devices {
			m, err := ublk.NewMem(size)
			if err != nil {
				rt.Fatal(err)
			}
			f, err := ublktest.NewFake(ublktest.FakeConfig{SizeBytes: size, Queues: queues, Depth: depth, MaxIO: maxIO})
			if err != nil {
				rt.Fatal(err)
			}
			a, err := f.Start(rs, m)
			if err != nil {
				rt.Fatal(err)
			}
			stops = append(stops, func() error {
				f.Stop()
				<-a.Ended()
				return errors.Join(a.Err(), f.Err(), f.Close(), m.Close())
			})
			wg.Go(func() { workload(rt, f, rand.New(rand.NewPCG(seed, uint64(d))), size, maxIO) })
		}
		wg.Wait()
		for _, stop := range stops {
			if err := stop(); err != nil {
				rt.Error(err)
			}
		}
		if err := rs.Close(); err != nil {
			rt.Error(err)
		}
	})
}

type reporter interface{ Errorf(string, ...any) }

// workload runs rounds of operations on disjoint ranges, all of a round at once, against a model.
func workload(tb reporter, f *ublktest.Fake, rng *rand.Rand, size, maxIO int64) {
	rounds(tb, f, func() error { return nil }, rng, size, maxIO)
}

type submitter interface {
	Submit(desc ublk.Descriptor, data []byte, done func(errno syscall.Errno, data []byte))
}

// rounds is workload for a device that run makes work.
func rounds(tb reporter, dev submitter, run func() error, rng *rand.Rand, size, maxIO int64) {
	model := make([]byte, size)
	for range 8 {
		var wg sync.WaitGroup
		for part := int64(0); part+maxIO <= size; part += maxIO {
			off := part + rng.Int64N(maxIO/512)*512
			n := 512 + rng.Int64N((part+maxIO-off)/512)*512
			op := ublk.Op(rng.IntN(6))
			want := model[off : off+n]
			data := make([]byte, n)
			switch op {
			case ublk.OpWrite:
				for i := range data {
					data[i] = byte(rng.Uint32())
				}
				copy(want, data)
			case ublk.OpDiscard, ublk.OpWriteZeroes:
				clear(want)
			}
			wg.Add(1)
			dev.Submit(ublk.Descriptor{Op: op, Off: off, Len: n}, data, func(errno syscall.Errno, got []byte) {
				defer wg.Done()
				if op == 4 {
					if errno != syscall.EOPNOTSUPP {
						tb.Errorf("operation 4: %v, want EOPNOTSUPP", errno)
					}
					return
				}
				if errno != 0 {
					tb.Errorf("operation %d of %d bytes at %d: %v", op, n, off, errno)
				}
				if op == ublk.OpRead && !bytes.Equal(got, want) {
					tb.Errorf("read of %d bytes at %d differs from the model", n, off)
				}
			})
		}
		if err := run(); err != nil {
			tb.Errorf("run: %v", err)
			return
		}
		wg.Wait()
	}
}
