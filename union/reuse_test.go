package union

import (
	"math/rand/v2"
	"testing"

	"coppice/ublk"
)

// submitSmall starts a read, a flush, or a write of at most two blocks, mostly in part, that no other in flight overlaps.
func (o *oracle) submitSmall(r *rig, rng *rand.Rand) {
	first := rng.IntN(len(o.history))
	count := min(1+rng.IntN(9), len(o.history)-first)
	d := ublk.Descriptor{Off: int64(first) * sector, Len: int64(count) * sector}
	for s := first; s < first+count; s++ {
		if o.busy[s] {
			return
		}
	}
	switch k := rng.IntN(8); {
	case k < 4:
		d.Op = ublk.OpWrite
		o.stamp++
		o.change(r, d, first, count, o.stamp)
	case k < 6:
		o.flush(r)
	default:
		o.read(r, d, first)
	}
}

// TestSlotsReusedBesideReaders leaves a store so few free slots that each one is used again as soon as it is free, with eight
// requests at a time on a few blocks, and leaves out the checksums that would notice. Reads and writes of parts of blocks must
// not see what a slot got meanwhile.
func TestSlotsReusedBesideReaders(t *testing.T) {
	acked := 0
	for seed := range seeds(24) {
		rng := rand.New(rand.NewPCG(seed, 19))
		const blocks = 6
		r := newRigOf(t, rigConfig{seed: seed, sizeBytes: blocks << blockShift, noVerify: true})
		o := newOracle(r)
		for s := 0; s < len(o.history); s += 8 { // from here on every write is an overwrite
			o.stamp++
			o.change(r, ublk.Descriptor{Op: ublk.OpWrite, Off: int64(s) * sector, Len: blockSize}, s, 8, o.stamp)
		}
		if err := r.sim.Run(); err != nil {
			t.Fatal(err)
		}
		free := r.store.keepFor(classOverwrite, 1) + 2
		if _, ok := r.store.slots.alloc(nil, int(r.store.slots.freeSlots()-free), 0); !ok {
			t.Fatal("no slots")
		}
		o.failing = true // a write may find no slot free
		o.acknowledged = func(bool) { acked++ }
		for range 3000 {
			if rng.IntN(2) == 0 {
				o.submitSmall(r, rng)
			}
			r.sim.Step()
			r.pump()
			if t.Failed() {
				return
			}
		}
		r.idle()
		o.settle(r, func(s, i int) bool { return i == o.acked[s] })
		if r.store.Info().Failed {
			t.Errorf("seed %d: the store failed", seed)
		}
		r.abandon()
		r.disk.Close()
	}
	t.Logf("%d requests acknowledged", acked)
}
