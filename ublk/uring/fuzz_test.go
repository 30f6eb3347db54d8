package uring

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fuzzer runs a sequence of operations that its input spells, one byte each, and
// keeps account of what must complete.
type fuzzer struct {
	t        testing.TB
	r        *Ring
	fd, efd  int32
	buf      []byte
	next     uint64
	prepared []uint64       // not yet taken by the kernel
	flying   map[uint64]int // completions still to come: 1, or 0 when done
}

const (
	fuzzMaxFlying = 200
	fuzzMaxInput  = 2000
)

func (f *fuzzer) add(prep func(*SQE)) {
	s := f.r.SQE()
	if s == nil {
		if f.r.Space() != 0 {
			f.t.Fatal("no entry in spite of space")
		}
		f.submit(0, -1)
		s = f.r.SQE()
	}
	prep(s)
	f.next++
	s.SetUserData(f.next)
	f.flying[f.next] = 1
	f.prepared = append(f.prepared, f.next)
}

func (f *fuzzer) submit(n uint32, timeout time.Duration) {
	taken, err := f.r.SubmitAndWait(n, timeout)
	if err != nil {
		f.t.Fatal(err)
	}
	if taken != len(f.prepared) {
		f.t.Fatalf("%d of %d entries taken", taken, len(f.prepared))
	}
	f.prepared = f.prepared[:0]
}

func (f *fuzzer) reap(limit uint32) {
	n := min(f.r.Ready(), limit)
	for i := range n {
		v := f.r.CQE(i).UserData
		if left, known := f.flying[v]; !known || left != 1 {
			f.t.Fatalf("completion %d: known %v, %d due", v, known, left)
		}
		delete(f.flying, v)
	}
	f.r.Advance(n)
}

func (f *fuzzer) step(b byte) {
	arg := b >> 4
	switch b & 15 {
	case 0, 1, 2:
		f.add((*SQE).PrepNop)
	case 3:
		f.add(func(s *SQE) { s.PrepRead(f.fd, addrOf(f.buf), 512, int64(arg)*512) })
	case 4:
		f.add(func(s *SQE) { s.PrepWrite(f.fd, addrOf(f.buf), 512, int64(arg)*512, unix.RWF_DSYNC) })
	case 5:
		f.add(func(s *SQE) { s.PrepRead(0, addrOf(f.buf), 8, 0); s.SetFixedFile() })
	case 6:
		f.add(func(s *SQE) { s.PrepWrite(f.efd, addrOf(f.buf[1024:]), 8, 0, 0) })
	case 7:
		f.add(func(s *SQE) { s.PrepPollAdd(f.efd, unix.POLLIN) })
	case 8:
		f.add(func(s *SQE) { s.PrepCancel(f.next-uint64(arg), 0) })
	case 9:
		f.add(func(s *SQE) { s.PrepNop(); s.Flags |= SQEAsync })
	case 10:
		f.add(func(s *SQE) { s.PrepFsync(f.fd, arg&1 == 0) })
	case 11:
		f.submit(0, -1)
	case 12:
		f.submit(uint32(arg), time.Millisecond)
	case 13:
		f.reap(uint32(arg))
	case 14:
		f.reap(1 << 30)
	case 15:
		_ = unix.Tgkill(unix.Getpid(), unix.Gettid(), unix.SIGURG)
	}
	if len(f.flying) > fuzzMaxFlying {
		f.finish()
	}
}

// finish cancels what waits for events and collects everything.
func (f *fuzzer) finish() {
	deadline := time.Now().Add(20 * time.Second)
	for len(f.flying) > 0 {
		if time.Now().After(deadline) {
			f.t.Fatalf("%d completions lost: %v", len(f.flying), f.flying)
		}
		f.add(func(s *SQE) { s.PrepCancel(0, CancelAny|CancelAll) })
		f.submit(1, time.Second)
		f.reap(1 << 30)
	}
	if f.r.Ready() != 0 || f.r.Space() != f.r.Entries() {
		f.t.Fatalf("%d completions too many, %d of %d entries free", f.r.Ready(), f.r.Space(), f.r.Entries())
	}
}

func runFuzzer(t testing.TB, single bool, ops []byte) {
	efd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	mustOK(t, err)
	defer unix.Close(efd)
	r := newRing(t, Config{Entries: 4, CQEntries: 8, SingleIssuer: single})
	mustOK(t, r.RegisterFilesSparse(1))
	mustOK(t, r.UpdateFile(0, efd))
	mem, err := unix.MemfdCreate("fuzz", unix.MFD_CLOEXEC)
	mustOK(t, err)
	defer unix.Close(mem)
	f := fuzzer{t: t, r: r, fd: int32(mem), efd: int32(efd), buf: offHeap(t, 4096), flying: map[uint64]int{}}
	f.buf[1024] = 1
	for _, b := range ops[:min(len(ops), fuzzMaxInput)] {
		f.step(b)
	}
	f.finish()
}

// FuzzNoCompletionIsLostOrDoubled runs random operations on a ring with very small queues.
func FuzzNoCompletionIsLostOrDoubled(f *testing.F) {
	f.Add(true, []byte{0, 1, 2, 0, 1, 2, 0, 1, 2, 11, 0, 1, 2, 11, 0, 1, 2, 12, 14})
	f.Add(false, []byte{5, 5, 7, 11, 6, 11, 0x1C, 0x1D, 8, 0x18, 14, 5, 9, 9, 9, 15, 0xFC})
	f.Add(true, []byte{3, 4, 0x13, 0x14, 10, 0x1A, 15, 0x2C, 0x2D, 9, 9, 3, 3, 4, 4, 7, 7, 7, 6, 6})
	every := make([]byte, 1024)
	for i := range every {
		every[i] = byte(i * 167)
	}
	f.Add(true, every)
	f.Add(false, every)
	f.Fuzz(func(t *testing.T, single bool, ops []byte) { runFuzzer(t, single, ops) })
}
