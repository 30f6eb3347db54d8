package ublk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"

	"coppice/ublk/uapi"
)

// /dev/null answers any io_uring command with 0 at once (drivers/char/mem.c, uring_cmd_null, since Linux 6.0). To
// a reactor that is a driver which always has a next request: the one that the descriptor area holds.

func openNull(tb testing.TB) *os.File {
	tb.Helper()
	f, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { f.Close() })
	return f
}

func putDescriptor(area []byte, tag int, d uapi.IODesc) {
	*(*uapi.IODesc)(unsafe.Pointer(&area[tag*descSize])) = d
}

// quota answers requests at once until it is used up, and then holds them.
type quota struct {
	left int
	each func(*Request)
	held []*Request
	full chan struct{} // closed when as many requests are held as there are tags
	tags int
}

func (h *quota) Attach(*Queue) error { return nil }
func (h *quota) Detach(*Queue)       {}

func (h *quota) Serve(r *Request) {
	if h.each != nil {
		h.each(r)
	}
	if h.left > 0 {
		h.left--
		r.Complete(0)
		return
	}
	if h.held = append(h.held, r); len(h.held) == h.tags {
		close(h.full)
	}
}

func (h *quota) Resume(r *Request, _ uint16, _ int32) { r.Complete(0) }

// runQuota serves queues over /dev/null until h is full, and ends.
func runQuota(tb testing.TB, h *quota, queues, depth int, area func(q int) []byte, begin, end func()) ReactorStats {
	tb.Helper()
	char := openNull(tb)
	h.tags, h.full = queues*depth, make(chan struct{})
	rs, err := NewReactors(ReactorConfig{CPUs: []int{0}})
	if err != nil {
		tb.Fatal(err)
	}
	var sources []QueueSource
	for i := range queues {
		sources = append(sources, QueueSource{
			QueueConfig: QueueConfig{Handler: h, Index: i, Depth: depth, MaxIO: 4096},
			Descriptors: area(i), Char: char,
		})
	}
	a, err := rs.Attach(sources)
	if err != nil {
		tb.Fatal(err)
	}
	begin()
	if err := a.Fetch(); err != nil {
		tb.Fatal(err)
	}
	<-h.full
	end()
	stats, err := rs.Stats()
	if err != nil {
		tb.Fatal(err)
	}
	ended, cancel := context.WithCancel(tb.Context())
	cancel()
	if err := a.Drain(ended); err == nil { // begins to drain, and does not wait
		tb.Fatal("drained with requests in service")
	}
	for _, r := range h.held {
		r.Post(0, 0)
	}
	if err := a.Drain(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	if err := rs.Close(); err != nil {
		tb.Fatal(err)
	}
	<-a.Ended()
	if err := a.Err(); err != nil {
		tb.Fatal(err)
	}
	return stats[0]
}

// The commands go through the kernel, and every request comes from its own descriptor.
func TestCommandsThroughTheKernel(t *testing.T) {
	const queues, depth, rounds = 2, 128, 50
	var wrong atomic.Int32
	h := &quota{left: queues * depth * rounds, each: func(r *Request) {
		want := int64(r.Queue().Index()*depth+r.Tag()) * 4096
		if r.Op != OpWrite || r.Off != want || r.Len != 4096 || len(r.Buf) != 4096 {
			wrong.Add(1)
		}
		r.Buf[0] = 1 // the buffer is memory
	}}
	area := func(q int) []byte {
		b := make([]byte, depth*descSize)
		for tag := range depth {
			putDescriptor(b, tag, uapi.IODesc{
				OpFlags: uapi.IOOpWrite, NrSectors: 8, StartSector: uint64(q*depth+tag) * 8,
			})
		}
		return b
	}
	stats := runQuota(t, h, queues, depth, area, func() {}, func() {})
	if n := wrong.Load(); n > 0 {
		t.Errorf("%d requests did not come from their descriptors", n)
	}
	if want := uint64(queues * depth * (rounds + 1)); stats.Requests != want {
		t.Errorf("%d requests, want %d", stats.Requests, want)
	}
	// All FETCHes of the device went with one system call, and each further batch with one.
	if stats.Flushes != 1 {
		t.Errorf("%d submissions besides the batches, want only that of the FETCHes", stats.Flushes)
	}
	if stats.Enters > rounds+20 {
		t.Errorf("%d batches for %d rounds", stats.Enters, rounds)
	}
}

// A regular file knows no commands: the tags end, and the attachment says why.
func TestCommandsRefusedByTheKernel(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rs, err := NewReactors(ReactorConfig{CPUs: []int{0}})
	if err != nil {
		t.Fatal(err)
	}
	a, err := rs.Attach([]QueueSource{{
		QueueConfig:    QueueConfig{Handler: NewNull(), Depth: 4, MaxIO: 4096},
		Descriptors:    make([]byte, 4*descSize),
		Char:           f,
		LegacyCommands: true,
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Fetch(); err != nil {
		t.Fatal(err)
	}
	<-a.Ended()
	if err := a.Err(); !errors.Is(err, syscall.EOPNOTSUPP) {
		t.Errorf("error is %v, want EOPNOTSUPP", err)
	}
	if err := rs.Close(); err != nil {
		t.Error(err)
	}
}

// BenchmarkCommand is the whole way of a request through io_uring with a driver that costs nothing: command,
// kernel, completion, Handler, commit.
func BenchmarkCommand(b *testing.B) {
	for _, depth := range []int{1, 32, 128} {
		b.Run(fmt.Sprintf("depth=%d", depth), func(b *testing.B) {
			area := make([]byte, depth*descSize)
			for tag := range depth {
				putDescriptor(area, tag, uapi.IODesc{OpFlags: uapi.IOOpRead, NrSectors: 8})
			}
			b.ReportAllocs()
			h := &quota{left: b.N}
			stats := runQuota(b, h, 1, depth, func(int) []byte { return area }, b.ResetTimer, b.StopTimer)
			b.ReportMetric(float64(stats.Enters)/float64(b.N), "enters/op")
		})
	}
}
