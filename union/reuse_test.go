package union

import (
	"math/rand/v2"
	"testing"
)

// TestSlotsReusedBesideReaders leaves a store so few free slots that each one is used again as soon as it is free, with eight
// requests at a time on a few blocks, and leaves out the checksums that would notice. Reads and writes of parts of blocks must
// not see what a slot got meanwhile.
func TestSlotsReusedBesideReaders(t *testing.T) {
	for seed := range seeds(24) {
		rng := rand.New(rand.NewPCG(seed, 19))
		r := newRigOf(t, rigConfig{seed: seed, sizeBytes: 16<<blockShift + sector, noVerify: true})
		o := newOracle(r)
		// Two slots more than the blocks and the writes in flight can take.
		keep := r.store.reserve() + overwriteReserve + 16 + 1 + 8*5 + 2
		if _, ok := r.store.slots.alloc(nil, int(r.store.slots.freeSlots()-keep), 0); !ok {
			t.Fatal("no slots")
		}
		for range 3000 {
			if rng.IntN(2) == 0 {
				o.submit(r, rng)
			}
			r.sim.Step()
			r.pump()
			if t.Failed() {
				return
			}
		}
		r.idle()
		o.settle(r, func(s, i int) bool { return i == o.acked[s] })
		r.abandon()
		r.disk.Close()
	}
}
