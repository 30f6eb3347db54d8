package ublk_test

import (
	"bytes"
	"fmt"
	"os"
	"syscall"
	"testing"

	"coppice/ublk"
	"coppice/ublk/ublktest"
)

// loop keeps depth requests in flight on one queue: the answer to one, on the reactor's own thread, begins
// the next, so that a batch is depth requests and what is measured is the reactor and the Handler.
type loop struct {
	f      *ublktest.Fake
	desc   ublk.Descriptor
	span   int64 // offsets go round in this many bytes
	at     int64
	left   int
	flight int
	failed syscall.Errno
	done   func(syscall.Errno, []byte)
	ended  chan struct{}
}

func newLoop(f *ublktest.Fake, desc ublk.Descriptor, span int64) *loop {
	l := &loop{f: f, desc: desc, span: span, ended: make(chan struct{}, 1)}
	l.done = func(errno syscall.Errno, _ []byte) {
		if errno != 0 {
			l.failed = errno
		}
		l.flight--
		l.next()
		if l.flight == 0 {
			l.ended <- struct{}{}
		}
	}
	return l
}

func (l *loop) next() {
	if l.left == 0 {
		return
	}
	l.left--
	l.flight++
	d := l.desc
	d.Off = l.at
	if l.at += 37 * 4096; l.at >= l.span {
		l.at -= l.span
	}
	l.f.SubmitTo(0, d, nil, l.done)
}

// run carries out n requests. The first depth ones are begun by one more request, so that all
// of the loop runs on the reactor's thread.
func (l *loop) run(tb testing.TB, n, depth int) {
	tb.Helper()
	l.left, l.failed = n, 0
	l.f.SubmitTo(0, ublk.Descriptor{Op: ublk.OpFlush}, nil, func(syscall.Errno, []byte) {
		for range depth {
			l.next()
		}
	})
	<-l.ended
	if l.failed != 0 {
		tb.Fatal(l.failed)
	}
}

const benchSpan = 64 << 20

type benchCase struct {
	name   string
	op     ublk.Op
	inline bool // every request is answered in the batch that brought it
	make   func(testing.TB) ublk.Handler
}

func benchCases() []benchCase {
	null := func(testing.TB) ublk.Handler { return ublk.NewNull() }
	mem := func(tb testing.TB) ublk.Handler {
		m := newMem(tb, benchSpan)
		return m
	}
	shm := func(tb testing.TB) ublk.Handler { return &passThrough{f: shmFile(tb, benchSpan)} }
	cached := func(tb testing.TB) ublk.Handler { return &passThrough{f: cachedFile(tb, benchSpan)} }
	return []benchCase{
		{"null/read", ublk.OpRead, true, null},
		{"mem/read", ublk.OpRead, true, mem},
		{"mem/write", ublk.OpWrite, true, mem},
		{"shm/read", ublk.OpRead, false, shm},
		{"shm/write", ublk.OpWrite, false, shm},
		{"cached/read", ublk.OpRead, false, cached},
		{"cached/write", ublk.OpWrite, false, cached},
	}
}

// cachedFile is a file of n bytes on the file system of temporary files, all of it in the page cache: where that
// file system can (tmpfs cannot), the kernel answers reads without a worker thread.
func cachedFile(tb testing.TB, n int64) *os.File {
	tb.Helper()
	f := tempFile(tb, n)
	if _, err := f.WriteAt(bytes.Repeat([]byte{1}, int(n)), 0); err != nil {
		tb.Fatal(err)
	}
	return f
}

// shmFile is a file of n bytes in memory, all of it allocated. The kernel hands its I/O to a worker thread.
func shmFile(tb testing.TB, n int64) *os.File {
	tb.Helper()
	d, err := ublktest.NewDisk("bench", n)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { d.Close() })
	b := d.Bytes()
	for i := 0; i < len(b); i += 4096 {
		b[i] = 1
	}
	return d.File()
}

func startLoop(tb testing.TB, c benchCase, depth int) (*loop, *ublk.Reactors) {
	h := c.make(tb)
	rs := newReactors(tb, ublk.ReactorConfig{CPUs: []int{0}})
	closeAtEnd(tb, rs)
	f := served(tb, rs, h, ublktest.FakeConfig{SizeBytes: benchSpan, Depth: depth, MaxIO: 128 << 10, KeepBuffers: true, Unchecked: true})
	l := newLoop(f, ublk.Descriptor{Op: c.op, Len: 4096}, benchSpan)
	l.run(tb, benchSpan/4096, depth) // touches all memory that will be used
	return l, rs
}

func enters(tb testing.TB, rs *ublk.Reactors) uint64 {
	tb.Helper()
	stats, err := rs.Stats()
	if err != nil {
		tb.Fatal(err)
	}
	return stats[0].Enters + stats[0].Flushes
}

// BenchmarkServe is the cost of one 4 KiB request in the reactor and the Handler, and with file, of one
// read or write of a file in memory through the ring. What the kernel's driver costs is not in it.
func BenchmarkServe(b *testing.B) {
	for _, c := range benchCases() {
		for _, depth := range []int{1, 32} {
			b.Run(fmt.Sprintf("%s/depth=%d", c.name, depth), func(b *testing.B) {
				l, rs := startLoop(b, c, depth)
				before := enters(b, rs)
				b.ReportAllocs()
				b.ResetTimer()
				l.run(b, b.N, depth)
				b.StopTimer()
				b.ReportMetric(float64(enters(b, rs)-before)/float64(b.N), "enters/op")
			})
		}
	}
}

// BenchmarkPost is a request that another goroutine answers, 32 at a time.
func BenchmarkPost(b *testing.B) {
	h := newAsync(1)
	defer h.stop(1)
	l, _ := startLoop(b, benchCase{op: ublk.OpRead, make: func(testing.TB) ublk.Handler { return postOnly{h} }}, 32)
	b.ReportAllocs()
	b.ResetTimer()
	l.run(b, b.N, 32)
}

type postOnly struct{ *async }

func (postOnly) Resume(r *ublk.Request, _ uint16, _ int32) { r.Complete(0) }

func TestServeAllocatesNothing(t *testing.T) {
	for _, c := range benchCases() {
		t.Run(c.name, func(t *testing.T) {
			const requests = 200
			l, _ := startLoop(t, c, 32)
			avg := testing.AllocsPerRun(20, func() { l.run(t, requests, 32) })
			if avg > 2 { // for the closure of run; a request that allocated would cost 200
				t.Errorf("%v allocations in %d requests, want none", avg, requests)
			}
		})
	}
}

// A batch costs one system call, whatever its size.
func TestOneEnterPerBatch(t *testing.T) {
	for _, c := range benchCases() {
		if !c.inline {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			const requests, depth = 32000, 32
			l, rs := startLoop(t, c, depth)
			before := enters(t, rs)
			l.run(t, requests, depth)
			if n := enters(t, rs) - before; n > requests/depth*11/10+10 {
				t.Errorf("%d enters for %d requests at depth %d", n, requests, depth)
			}
		})
	}
}
