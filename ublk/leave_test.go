package ublk_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"coppice/ublk"
	"coppice/ublk/ublktest"
)

// waiting is a Leaver whose discards wait for what never comes, and whose flushes are answered when they are told to be.
type waiting struct {
	ublk.Null
	mu      sync.Mutex
	waits   []*ublk.Request
	flushes []*ublk.Request
	entered chan struct{}
	left    atomic.Int32 // queues
}

func (w *waiting) Serve(r *ublk.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r.Op == ublk.OpFlush {
		w.flushes = append(w.flushes, r)
	} else {
		w.waits = append(w.waits, r)
	}
	w.entered <- struct{}{}
}

func (w *waiting) Leave(q *ublk.Queue) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.left.Add(1)
	var rest []*ublk.Request
	for _, r := range w.waits {
		if r.Queue() == q {
			r.Withhold()
		} else {
			rest = append(rest, r)
		}
	}
	w.waits = rest
}

func (*waiting) Waits(r *ublk.Request) string { return "the test, with a " + r.Op.String() }

func (*waiting) Resume(r *ublk.Request, _ uint16, _ int32) { r.Complete(0) }

func (w *waiting) answerFlushes() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.flushes {
		r.Post(0, 0)
	}
}

// What a Leaver gives back is answered by the successor; what it does not is waited for, and named when that takes too long.
func TestDrainGivesBack(t *testing.T) {
	rs := newReactors(t, ublk.ReactorConfig{})
	w := &waiting{entered: make(chan struct{}, 100)}
	f, err := ublktest.NewFake(ublktest.FakeConfig{Queues: 2, Depth: 8, MaxIO: 4096})
	if err != nil {
		t.Fatal(err)
	}
	a, err := f.Start(rs, w)
	if err != nil {
		t.Fatal(err)
	}
	var answered atomic.Int32
	var all sync.WaitGroup
	submit := func(op ublk.Op, n int) {
		for range n {
			all.Add(1)
			f.Submit(ublk.Descriptor{Op: op, Off: 1024, Len: 512}, nil, func(errno syscall.Errno, _ []byte) {
				if errno != 0 {
					t.Errorf("%v failed over the change of servers: %v", op, errno)
				}
				answered.Add(1)
				all.Done()
			})
		}
	}
	submit(ublk.OpDiscard, 6)
	submit(ublk.OpFlush, 1)
	for range 7 {
		<-w.entered
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err = a.Drain(ctx)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "1 in service: queue 0 tag ") ||
		!strings.Contains(err.Error(), "flush of 512 bytes at 1024 since ") || !strings.Contains(err.Error(), "waits for the test, with a flush") {
		t.Errorf("drain beside a flush: %v", err)
	}
	if n := w.left.Load(); n != 2 || answered.Load() != 0 {
		t.Errorf("%d queues left, %d requests answered", n, answered.Load())
	}
	submit(ublk.OpDiscard, 20) // come while draining
	w.answerFlushes()
	if err := a.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := answered.Load(); n != 1 {
		t.Errorf("%d requests answered, want the flush", n)
	}
	if err := rs.Close(); err != nil {
		t.Fatal(err)
	}
	succeed(t, f, a, &all)
}

// blocker is a Handler that breaks the rule: it holds its thread up.
type blocker struct {
	ublk.Null
	entered, open chan struct{}
}

func (b *blocker) Serve(r *ublk.Request) {
	close(b.entered)
	<-b.open
	r.Complete(0)
}

// A thread that does not answer holds a drain up until its time is over, and is named.
func TestDrainOfBlockedThread(t *testing.T) {
	rs := newReactors(t, ublk.ReactorConfig{CPUs: []int{0}})
	closeAtEnd(t, rs)
	b := &blocker{entered: make(chan struct{}), open: make(chan struct{})}
	f, err := ublktest.NewFake(ublktest.FakeConfig{Depth: 2, MaxIO: 4096})
	if err != nil {
		t.Fatal(err)
	}
	a, err := f.Start(rs, b)
	if err != nil {
		t.Fatal(err)
	}
	f.Submit(ublk.Descriptor{Op: ublk.OpFlush}, nil, nil)
	<-b.entered
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := a.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "the thread of CPU 0, which serves queue 0, does not answer") {
		t.Errorf("drain: %v", err)
	}
	if _, err := a.Requests(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("requests: %v", err)
	}
	close(b.open)
	f.Stop()
	mustClose(t, "queue ended", a.Ended())
	if err := errors.Join(a.Err(), f.Err(), f.Close()); err != nil {
		t.Error(err)
	}
}
