package union

import (
	"errors"
	"math/rand/v2"
	"syscall"
	"testing"

	"coppice/ublk/ublktest"
)

// cutOpening tries to open the store and stops it after the given number of writes and syncs. It
// reports whether that was early enough to stop it. With garble, the write that it stops at leaves garbage.
func (r *rig) cutOpening(calls int, garble bool) bool {
	r.t.Helper()
	d := &faultDisk{Disk: r.disk, left: calls, garble: garble}
	s, err := openOn("leaf", d, r.options())
	switch {
	case errors.Is(err, syscall.EIO):
		return true
	case err != nil:
		r.t.Fatalf("seed %d: open, to be cut after %d calls: %v", r.seed, calls, err)
	}
	if err := s.pending.close(); err != nil {
		r.t.Fatal(err)
	}
	return false
}

// TestPowerCutInRecovery cuts the power again, and again, while the store recovers from the cut before.
func TestPowerCutInRecovery(t *testing.T) {
	t.Parallel()
	cuts := 0
	for seed := range seeds(16) {
		rng := rand.New(rand.NewPCG(seed, 4))
		r := newRig(t, seed, false)
		o := newOracle(r)
		for range 3 {
			drive(r, o, rng, 1+rng.IntN(600))
			r.powerCut(rng)
			for range rng.IntN(4) {
				if r.cutOpening(rng.IntN(11), rng.IntN(2) == 0) {
					cuts++
				}
				r.cutDisk(rng)
			}
			r.open()
			o.settle(r, func(s, i int) bool { return i >= o.floor[s] })
		}
		r.close()
		r.check()
		r.disk.Close()
		if t.Failed() {
			return
		}
	}
	t.Logf("%d recoveries cut", cuts)
}

// TestProcessDeathInRecovery kills the process again while it takes over from the one before: what was
// acknowledged lives on.
func TestProcessDeathInRecovery(t *testing.T) {
	t.Parallel()
	kills := 0
	for seed := range seeds(20) {
		rng := rand.New(rand.NewPCG(seed, 5))
		r := newRig(t, seed, false)
		o := newOracle(r)
		for range 3 {
			drive(r, o, rng, 1+rng.IntN(600))
			r.abandon()
			for range 1 + rng.IntN(3) {
				if r.cutOpening(rng.IntN(11), false) {
					kills++
				}
			}
			r.open()
			o.settle(r, func(s, i int) bool { return i >= o.acked[s] })
		}
		r.close()
		r.check()
		r.disk.Close()
		if t.Failed() {
			return
		}
	}
	t.Logf("%d recoveries killed", kills)
}

// TestTornSuperblockAfterCutCheckpoint stops a checkpoint between the two superblocks, and then the recovery at each of
// its writes, which leaves garbage: the state that is left to go back to must be whole.
func TestTornSuperblockAfterCutCheckpoint(t *testing.T) {
	for calls := 0; ; calls++ {
		rng := rand.New(rand.NewPCG(1, 6))
		r := newRig(t, 1, false)
		o := newOracle(r)
		// The catalog of the older superblock now lies where the next recovery begins to allocate.
		r.close()
		r.open()
		for range 60 { // without checkpoints
			o.submit(r, rng)
			r.sim.Step()
		}
		if err := errors.Join(r.sim.Run(), r.block.Flush()); err != nil {
			t.Fatal(err)
		}
		copy(o.floor, o.acked)
		r.store.disk = &faultDisk{Disk: r.disk, left: -1, stop: func(off int64) bool { return off == superABlock }}
		if err := r.store.Checkpoint(); !errors.Is(err, syscall.EIO) {
			t.Fatalf("checkpoint to be stopped: %v", err)
		}
		r.abandon()
		r.reboot()
		stopped := r.cutOpening(calls, true)
		r.open()
		o.settle(r, func(s, i int) bool { return i >= o.floor[s] })
		r.close()
		r.check()
		r.disk.Close()
		if !stopped {
			// superblock, run, catalog, two superblocks, and the syncs
			if calls < 8 {
				t.Errorf("a recovery has only %d calls", calls)
			}
			return
		}
	}
}

// TestCheckpointCutAtEachCall stops a checkpoint at each of its writes and flushes, and has the disk keep, of what no flush
// covered, nothing, all, the last write alone, or garbage.
func TestCheckpointCutAtEachCall(t *testing.T) {
	left := map[string]func(d *ublktest.Disk) (*ublktest.Disk, error){
		"nothing": func(d *ublktest.Disk) (*ublktest.Disk, error) {
			return d.CrashWith(func(int, int) bool { return false })
		},
		"all": (*ublktest.Disk).Clone,
		"the last write": func(d *ublktest.Disk) (*ublktest.Disk, error) {
			last := len(d.Volatile()) - 1
			return d.CrashWith(func(i, _ int) bool { return i == last })
		},
		"garbage": func(d *ublktest.Disk) (*ublktest.Disk, error) {
			after, err := d.CrashWith(func(int, int) bool { return false })
			if err != nil {
				return nil, err
			}
			for _, w := range d.Volatile() {
				p := make([]byte, len(w.Data))
				fill(p, 99)
				if _, err := after.WriteAt(p, w.Off); err != nil {
					return nil, err
				}
			}
			return after, after.Sync()
		},
	}
	for what, crash := range left {
		for calls := 0; ; calls++ {
			rng := rand.New(rand.NewPCG(1, 20))
			r := newRig(t, 1, false)
			o := newOracle(r)
			drive(r, o, rng, 300)
			if err := errors.Join(r.sim.Run(), r.block.Flush()); err != nil {
				t.Fatal(err)
			}
			copy(o.floor, o.acked)
			r.store.disk = &faultDisk{Disk: r.disk, left: calls}
			cut := r.store.Checkpoint()
			r.abandon()
			after, err := crash(r.disk)
			if err != nil {
				t.Fatal(err)
			}
			r.disk.Close()
			r.disk = after
			r.reboot()
			r.open()
			t.Logf("cut after %d calls, %s left", calls, what)
			o.settle(r, func(s, i int) bool { return i >= o.floor[s] })
			r.close()
			r.check()
			r.disk.Close()
			if cut == nil {
				break
			}
		}
	}
}
