package uring

import (
	"errors"
	"runtime"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

var variants = map[string]Config{
	"plain":    {Entries: 8},
	"single":   {Entries: 8, SingleIssuer: true},
	"sqe128":   {Entries: 8, SQE128: true},
	"cqe32":    {Entries: 8, CQE32: true, SingleIssuer: true},
	"both big": {Entries: 8, SQE128: true, CQE32: true},
}

func eachVariant(t *testing.T, run func(t *testing.T, r *Ring)) {
	for name, cfg := range variants {
		t.Run(name, func(t *testing.T) { run(t, newRing(t, cfg)) })
	}
}

// newRing makes a ring whose thread is the test's until it ends.
func newRing(t testing.TB, cfg Config) *Ring {
	t.Helper()
	runtime.LockOSThread()
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		runtime.UnlockOSThread()
	})
	return r
}

// offHeap is mapped memory of n bytes.
func offHeap(t testing.TB, n int) []byte {
	t.Helper()
	p, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Munmap(p); err != nil {
			t.Error(err)
		}
	})
	return p
}

func submitAndWait(t testing.TB, r *Ring, n uint32) {
	t.Helper()
	if _, err := r.SubmitAndWait(n, -1); err != nil {
		t.Fatal(err)
	}
}

// one submits what is prepared and returns the only completion.
func one(t testing.TB, r *Ring) CQE {
	t.Helper()
	submitAndWait(t, r, 1)
	if n := r.Ready(); n != 1 {
		t.Fatalf("%d completions, want 1", n)
	}
	c := *r.CQE(0)
	r.Advance(1)
	return c
}

func mustOK(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestNopCompletesWithItsUserData(t *testing.T) {
	eachVariant(t, func(t *testing.T, r *Ring) {
		for i := range uint64(100) {
			s := r.SQE()
			s.PrepNop()
			s.SetUserData(1<<63 | i)
			if c := one(t, r); c.UserData != 1<<63|i || c.Res != 0 {
				t.Fatalf("completion %+v of nop %d", c, i)
			}
		}
	})
}

func TestBatchIsTakenWhole(t *testing.T) {
	eachVariant(t, func(t *testing.T, r *Ring) {
		for round := range uint64(5) {
			for i := range uint64(8) {
				s := r.SQE()
				s.PrepNop()
				s.SetUserData(round<<8 | i)
			}
			if r.SQE() != nil || r.Space() != 0 {
				t.Fatal("a full queue gave another entry")
			}
			n, err := r.SubmitAndWait(8, -1)
			if n != 8 || err != nil {
				t.Fatalf("submitted %d, %v", n, err)
			}
			seen := map[uint64]bool{}
			for i := range r.Ready() {
				seen[r.CQE(i).UserData] = true
			}
			r.Advance(r.Ready())
			if len(seen) != 8 || !seen[round<<8] || !seen[round<<8|7] {
				t.Fatalf("completions %v", seen)
			}
		}
	})
}

func TestEntryIsZeroedOnReuse(t *testing.T) {
	eachVariant(t, func(t *testing.T, r *Ring) {
		for range r.Entries() {
			s := r.SQE()
			*s = SQE{Addr3: 1, pad2: 2, UserData: 3}
			s.PrepNop()
			s.Addr3, s.pad2 = 0, 0
			if r.Flags()&SetupSQE128 != 0 {
				s.Cmd80()[79] = 9
			}
		}
		submitAndWait(t, r, r.Entries())
		for range r.Entries() {
			s := r.SQE()
			if *s != (SQE{}) {
				t.Fatalf("reused entry %+v", *s)
			}
			if r.Flags()&SetupSQE128 != 0 && *s.Cmd80() != ([80]byte{}) {
				t.Fatal("reused entry has an old payload")
			}
		}
	})
}

func TestOverflownCompletionsAllArrive(t *testing.T) {
	for name, single := range map[string]bool{"plain": false, "single": true} {
		t.Run(name, func(t *testing.T) {
			r := newRing(t, Config{Entries: 8, CQEntries: 8, SingleIssuer: single})
			const total = 40
			for i := range uint64(total) {
				s := r.SQE()
				s.PrepNop()
				s.SetUserData(i)
				if _, err := r.Submit(); err != nil {
					t.Fatal(err)
				}
			}
			seen := map[uint64]int{}
			for len(seen) < total {
				submitAndWait(t, r, 1)
				n := r.Ready()
				for i := range n {
					seen[r.CQE(i).UserData]++
				}
				r.Advance(n)
			}
			for v, n := range seen {
				if n != 1 {
					t.Errorf("completion %d arrived %d times", v, n)
				}
			}
			if r.Ready() != 0 || r.overflown() {
				t.Error("completions left over")
			}
		})
	}
}

func TestTimeoutEndsWait(t *testing.T) {
	eachVariant(t, func(t *testing.T, r *Ring) {
		for _, d := range []time.Duration{0, 20 * time.Millisecond} {
			begin := time.Now()
			if n, err := r.SubmitAndWait(1, d); n != 0 || err != nil {
				t.Fatalf("submitted %d, %v", n, err)
			}
			if e := time.Since(begin); e < d || e > d+5*time.Second {
				t.Errorf("wait of %v took %v", d, e)
			}
		}
		s := r.SQE()
		s.PrepNop()
		if n, err := r.SubmitAndWait(2, 20*time.Millisecond); n != 1 || err != nil || r.Ready() != 1 {
			t.Errorf("submitted %d, %v, %d ready", n, err, r.Ready())
		}
	})
}

func TestWaitOutlastsSignals(t *testing.T) {
	eachVariant(t, func(t *testing.T, r *Ring) {
		efd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		mustOK(t, err)
		defer unix.Close(efd)
		buf := offHeap(t, 8)
		r.SQE().PrepRead(int32(efd), addrOf(buf), 8, 0)
		pid, tid := unix.Getpid(), unix.Gettid()
		go func() {
			for range 50 {
				_ = unix.Tgkill(pid, tid, unix.SIGURG)
				time.Sleep(time.Millisecond)
			}
			_, _ = unix.Write(efd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		}()
		submitAndWait(t, r, 1)
		if r.Ready() != 1 || r.CQE(0).Res != 8 {
			t.Fatalf("%d ready after signals", r.Ready())
		}
		r.Advance(1)
		_ = unix.Tgkill(pid, tid, unix.SIGURG)
		if _, err := r.SubmitAndWait(1, 10*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	})
}

func TestForeignThreadIsRefused(t *testing.T) {
	r := newRing(t, Config{SingleIssuer: true})
	if r.Flags()&SetupSingleIssuer == 0 {
		t.Fatal("single issuer not granted by a kernel that has it since 6.0")
	}
	r.SQE().PrepNop()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		_, err := r.Submit()
		done <- err
	}()
	if err := <-done; !errors.Is(err, unix.EEXIST) {
		t.Fatalf("submission on another thread: %v", err)
	}
	one(t, r)
}

// A ring tells without a system call that the kernel has something for it.
func TestDeferred(t *testing.T) {
	r := newRing(t, Config{SingleIssuer: true})
	if r.Flags()&SetupTaskrunFlag == 0 {
		t.Fatal("TASKRUN_FLAG not granted by a kernel that has it since 5.19")
	}
	efd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	mustOK(t, err)
	defer unix.Close(efd)
	buf := make([]byte, 8)
	r.SQE().PrepRead(int32(efd), uintptr(unsafe.Pointer(&buf[0])), 8, 0)
	if _, err := r.Submit(); err != nil || r.Deferred() || r.Ready() != 0 {
		t.Fatalf("before the event: %v, deferred %v, %d ready", err, r.Deferred(), r.Ready())
	}
	_, err = unix.Write(efd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	mustOK(t, err)
	for began := time.Now(); !r.Deferred(); {
		if time.Since(began) > 10*time.Second {
			t.Fatal("the ring does not tell of the event")
		}
	}
	if r.Ready() != 0 {
		t.Error("the completion came without an enter")
	}
	if _, err := r.Submit(); err != nil || r.Deferred() || r.Ready() != 1 {
		t.Fatalf("after it: %v, deferred %v, %d ready", err, r.Deferred(), r.Ready())
	}
	r.Advance(1)
}

func TestRegisteredRingFD(t *testing.T) {
	r := newRing(t, Config{SingleIssuer: true})
	mustOK(t, r.RegisterRingFD())
	mustOK(t, r.RegisterRingFD())
	r.SQE().PrepNop()
	one(t, r)
}

func TestCloseAfterThreadEnded(t *testing.T) {
	made := make(chan *Ring)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		r, err := New(Config{SingleIssuer: true})
		if err == nil {
			err = r.RegisterRingFD()
		}
		if err != nil {
			t.Error(err)
		}
		made <- r
	}()
	if r := <-made; r != nil {
		mustOK(t, r.Close())
	}
}

func TestClosedRing(t *testing.T) {
	r := newRing(t, Config{SingleIssuer: true})
	mustOK(t, r.RegisterRingFD())
	mustOK(t, r.Close())
	mustOK(t, r.Close())
	_, submitErr := r.Submit()
	_, probeErr := r.Probe()
	for _, err := range []error{
		submitErr, probeErr, r.RegisterRingFD(), r.RegisterFilesSparse(1), r.UpdateFile(0, 0), r.UnregisterFiles(),
		r.RegisterBuffersSparse(1), r.UpdateBuffer(0, 0, 0), r.UnregisterBuffers(), r.RegisterIOWQMaxWorkers(1, 1),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("closed ring answers %v", err)
		}
	}
	if r.FD() != -1 {
		t.Errorf("closed ring has descriptor %d", r.FD())
	}
}

func TestErrorsMatchErrno(t *testing.T) {
	r := newRing(t, Config{})
	err := r.UpdateFile(0, 0)
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		t.Errorf("%v carries no errno", err)
	}
}
