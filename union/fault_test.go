package union

import (
	"errors"
	"math/rand/v2"
	"syscall"
	"testing"

	"coppice/ublk/ublktest"
)

// faultRun drives the same requests as every run with the seed does, with one fault, and returns how many target
// I/Os of each kind there were.
func faultRun(t *testing.T, seed uint64, kind ublktest.Kind, n int, fault ublktest.Fault) (counts [3]int) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 10))
	r := newRig(t, seed, false)
	o := newOracle(r)
	o.failing = true
	r.sim.FailNth(kind, n, fault)
	flushFailed := false
	r.sim.Hook = func(e ublktest.Event) {
		if e.Kind == ublktest.Flush && e.After && e.Res < 0 {
			flushFailed = true
		}
	}
	o.acknowledged = func(flush bool) {
		// A flush that was under way when a write failed may still tell the truth.
		if r.store.log.failed && (!flush || flushFailed) {
			t.Errorf("seed %d: acknowledged after the store had failed at %v %d", seed, kind, n)
		}
	}
	drive(r, o, rng, 500)
	if err := r.sim.Run(); err != nil {
		t.Fatalf("seed %d: %v %d: %v", seed, kind, n, err)
	}
	for k := range counts {
		counts[k] = r.sim.Count(ublktest.Kind(k))
	}
	fatal := kind != ublktest.Read && fault.Errno != 0 && n <= counts[kind]
	if fatal {
		r.wantFailed()
	} else if r.store.Info().Failed {
		t.Errorf("seed %d: the store failed after %+v of %v %d", seed, fault, kind, n)
	}
	// Reads go on, and tell what was acknowledged or what failed.
	r.sim.Inject = nil
	acked := append([]int(nil), o.acked...)
	floor := append([]int(nil), o.floor...)
	history := make([][]uint64, len(o.history))
	copy(history, o.history)
	o.settle(r, func(s, i int) bool { return i >= acked[s] })
	copy(o.history, history)
	copy(o.acked, acked)
	copy(o.floor, floor)
	if rng.IntN(2) == 0 {
		r.abandon()
		r.open()
		o.settle(r, func(s, i int) bool { return i >= o.acked[s] })
	} else {
		r.powerCut(rng)
		r.open()
		o.settle(r, func(s, i int) bool { return i >= o.floor[s] })
	}
	r.close()
	r.check()
	r.disk.Close()
	return counts
}

// TestFaultSweep makes the target I/Os of a script fail, one in each run. After a failed write or flush of the leaf
// nothing is acknowledged any more, reads go on, and the next opening finds what it must.
func TestFaultSweep(t *testing.T) {
	t.Parallel()
	const seed = 5
	counts := faultRun(t, seed, ublktest.Read, 1<<30, ublktest.Fault{})
	t.Logf("%d reads, %d writes, %d flushes", counts[ublktest.Read], counts[ublktest.Write], counts[ublktest.Flush])
	runs := 5
	if testing.Short() {
		runs = 4
	}
	for _, c := range []struct {
		kind  ublktest.Kind
		fault ublktest.Fault
	}{
		{ublktest.Write, ublktest.Fault{Errno: syscall.EIO}},
		{ublktest.Write, ublktest.Fault{Errno: syscall.ENOSPC, Short: true, Bytes: 512}},
		{ublktest.Write, ublktest.Fault{Short: true, Bytes: 512}},
		{ublktest.Flush, ublktest.Fault{Errno: syscall.EIO}},
		{ublktest.Read, ublktest.Fault{Errno: syscall.EIO}},
		{ublktest.Read, ublktest.Fault{Short: true, Bytes: 512}},
		{ublktest.Read, ublktest.Fault{Errno: syscall.EINTR}},
	} {
		total := counts[c.kind]
		for n := 1; n <= total; n += max(1, total/runs) {
			faultRun(t, seed, c.kind, n, c.fault)
			if t.Failed() {
				t.Fatalf("%v %d of %d with %+v", c.kind, n, total, c.fault)
			}
		}
	}
}

// TestCheckpointFaults makes each write and sync of a checkpoint fail.
func TestCheckpointFaults(t *testing.T) {
	for calls := 0; ; calls++ {
		rng := rand.New(rand.NewPCG(uint64(calls), 11))
		r := newRig(t, 6, false)
		o := newOracle(r)
		drive(r, o, rng, 500)
		if err := r.sim.Run(); err != nil {
			t.Fatal(err)
		}
		r.store.disk = &faultDisk{Disk: r.disk, left: calls}
		err := r.store.Checkpoint()
		if err != nil {
			if !errors.Is(err, syscall.EIO) {
				t.Fatal(err)
			}
			r.wantFailed()
		}
		r.abandon()
		r.open()
		o.settle(r, func(s, i int) bool { return i >= o.acked[s] })
		r.close()
		r.check()
		r.disk.Close()
		if err == nil {
			if calls < 6 {
				t.Errorf("a checkpoint has only %d calls", calls)
			}
			return
		}
	}
}

// TestCommitFaults makes each write and sync of a background commit fail: a flush that waits for it fails too.
func TestCommitFaults(t *testing.T) {
	for calls := 0; ; calls++ {
		r := newRig(t, 7, false)
		if _, err := r.block.WriteAt(make([]byte, 8192), 4096); err != nil {
			t.Fatal(err)
		}
		r.store.disk = &faultDisk{Disk: r.disk, left: calls}
		err := r.store.commit()
		if err != nil {
			if !errors.Is(err, syscall.EIO) {
				t.Fatal(err)
			}
			r.wantFailed()
			if err := r.store.commit(); err != nil {
				t.Errorf("a flush was tried again: %v", err)
			}
		}
		r.abandon()
		r.disk.Close()
		if err == nil {
			if calls != 3 { // two copies and a sync
				t.Errorf("a commit has %d calls", calls)
			}
			return
		}
	}
}
