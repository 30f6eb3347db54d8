package ublk_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"coppice/ublk"
	"coppice/ublk/ublktest"
)

// plain is a backend with nothing optional.
type plain struct {
	mu      sync.Mutex
	data    []byte
	flushes atomic.Int32
	busy    atomic.Int32
	most    atomic.Int32
	closed  bool
	fail    error
	short   bool
}

func (p *plain) enter() func() {
	n := p.busy.Add(1)
	for most := p.most.Load(); n > most && !p.most.CompareAndSwap(most, n); most = p.most.Load() {
	}
	p.mu.Lock()
	return func() { p.mu.Unlock(); p.busy.Add(-1) }
}

func (p *plain) ReadAt(b []byte, off int64) (int, error) {
	defer p.enter()()
	if p.short {
		return len(b) / 2, nil
	}
	if p.fail != nil {
		return 0, p.fail
	}
	n := copy(b, p.data[min(off, int64(len(p.data))):])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (p *plain) WriteAt(b []byte, off int64) (int, error) {
	defer p.enter()()
	if p.short {
		return len(b) / 2, nil
	}
	if p.fail != nil {
		return 0, p.fail
	}
	return copy(p.data[off:], b), nil
}

func (p *plain) Size() int64 { return int64(len(p.data)) }

func (p *plain) Flush() error {
	p.flushes.Add(1)
	return p.fail
}

func (p *plain) Close() error {
	p.closed = true
	return nil
}

// full is a backend with everything optional.
type full struct {
	plain
	discards, zeroes atomic.Int32
}

func (f *full) Discard(off, n int64) error {
	f.discards.Add(1)
	return f.WriteZeroes(off, n)
}

func (f *full) WriteZeroes(off, n int64) error {
	f.zeroes.Add(1)
	defer f.enter()()
	clear(f.data[off : off+n])
	return nil
}

func TestAdapterMatchesModel(t *testing.T) {
	const size, maxIO, workers = 256 << 10, 32 << 10, 4
	b := &full{plain: plain{data: make([]byte, size)}}
	a := ublk.Adapt(b, workers)
	rs := newReactors(t, ublk.ReactorConfig{})
	t.Cleanup(func() {
		if err := a.Close(); err != nil || !b.closed {
			t.Errorf("close: %v, backend closed %v", err, b.closed)
		}
		if n := b.most.Load(); n > workers {
			t.Errorf("%d methods of the backend ran at once, bound is %d", n, workers)
		}
		if b.discards.Load() == 0 || b.zeroes.Load() == 0 || b.flushes.Load() == 0 {
			t.Error("an optional method was never called")
		}
	})
	closeAtEnd(t, rs)
	f := served(t, rs, a, ublktest.FakeConfig{SizeBytes: size, Queues: 2, Depth: 8, MaxIO: maxIO})
	if err := a.Close(); !errors.Is(err, ublk.ErrServing) {
		t.Errorf("close while serving: %v, want ErrServing", err)
	}
	for seed := range uint64(4) {
		if err := f.WriteZeroes(0, size); err != nil {
			t.Fatal(err)
		}
		workload(t, f, rand.New(rand.NewPCG(seed, 1)), size, maxIO)
	}
}

func TestAdapterWithoutOptionalMethods(t *testing.T) {
	const size = 256 << 10
	b := &plain{data: bytes.Repeat([]byte{1}, size)}
	rs := newReactors(t, ublk.ReactorConfig{})
	closeAtEnd(t, rs)
	f := served(t, rs, ublk.Adapt(b, 2), ublktest.FakeConfig{SizeBytes: size + 8192, Depth: 8, MaxIO: 32 << 10})
	if err := f.Discard(0, 4096); !errors.Is(err, syscall.EOPNOTSUPP) {
		t.Errorf("discard: %v, want EOPNOTSUPP", err)
	}
	if err := f.WriteZeroes(4096, 200<<10); err != nil {
		t.Error(err)
	}
	for i, v := range b.data {
		if want := i < 4096 || i >= 4096+200<<10; (v == 1) != want {
			t.Fatalf("byte %d is %d after writing zeros", i, v)
		}
	}
	if err := f.Do(ublk.Descriptor{Op: ublk.OpWrite, FUA: true, Len: 512}, make([]byte, 512)); err != nil {
		t.Error(err)
	}
	if n := b.flushes.Load(); n != 1 {
		t.Errorf("%d flushes for a FUA write, want 1", n)
	}
	got := bytes.Repeat([]byte{9}, 8192)
	if _, err := f.ReadAt(got, size-4096); err != nil {
		t.Error(err)
	}
	if got[4095] != 1 || !bytes.Equal(got[4096:], make([]byte, 4096)) {
		t.Error("behind the backend's end there are no zeros")
	}
}

func TestAdapterErrors(t *testing.T) {
	b := &plain{data: make([]byte, 8192)}
	rs := newReactors(t, ublk.ReactorConfig{})
	closeAtEnd(t, rs)
	f := served(t, rs, ublk.Adapt(b, 0), ublktest.FakeConfig{SizeBytes: 8192, Depth: 1, MaxIO: 4096})
	for _, c := range []struct{ give, want error }{
		{errors.New("odd"), syscall.EIO},
		{fmt.Errorf("write: %w", syscall.ENOSPC), syscall.ENOSPC},
		{errors.ErrUnsupported, syscall.EOPNOTSUPP},
		{syscall.EAGAIN, syscall.EIO},
	} {
		b.fail = c.give
		if _, err := f.WriteAt(make([]byte, 512), 0); !errors.Is(err, c.want) {
			t.Errorf("write failing with %q: %v, want %v", c.give, err, c.want)
		}
		if _, err := f.ReadAt(make([]byte, 512), 0); !errors.Is(err, c.want) {
			t.Errorf("read failing with %q: %v, want %v", c.give, err, c.want)
		}
		if err := f.Flush(); !errors.Is(err, c.want) {
			t.Errorf("flush failing with %q: %v, want %v", c.give, err, c.want)
		}
	}
	b.fail, b.short = nil, true
	if _, err := f.WriteAt(make([]byte, 512), 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("short write: %v, want EIO", err)
	}
	if _, err := f.ReadAt(make([]byte, 512), 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("short read: %v, want EIO", err)
	}
}
