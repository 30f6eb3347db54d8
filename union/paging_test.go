package union

import (
	"math/rand/v2"
	"testing"
)

// TestPaging drives layers whose maps do not fit into memory: look-ups, writes, discards, freezes and merges wait for entries
// that are loaded again, through checkpoints, crashes and kills.
func TestPaging(t *testing.T) {
	t.Parallel()
	misses, evicted := uint64(0), 0
	for seed := range seeds(4) {
		rng := rand.New(rand.NewPCG(seed, 31))
		r := newRigOf(t, rigConfig{seed: seed, sizeBytes: 24<<20 + 5*sector, storeBytes: 64 << 20})
		o := newLayerOracle(r)
		for range 3 {
			r.store.pager.limit = 9000
			for range 12 {
				driveLayers(r, o, rng, 60)
				if rng.IntN(6) == 0 {
					o.discardMuch(r, rng)
				}
				r.idle()
				if err := r.checkpoint(); err != nil {
					t.Fatal(err)
				}
				before := r.store.pager.arena.words.Load()
				r.store.pager.trim()
				if after := r.store.pager.arena.words.Load(); after < before {
					evicted++
				} else if after > r.store.pager.limit {
					t.Fatalf("seed %d: %d words of entries in memory, the limit is %d", seed, after, r.store.pager.limit)
				}
			}
			driveLayers(r, o, rng, 100)
			misses += r.store.pager.misses.Load()
			o.next(r, ending(rng.IntN(3)), rng)
		}
		r.shut()
		if t.Failed() {
			return
		}
	}
	t.Logf("%d evictions, %d misses", evicted, misses)
	if evicted == 0 || misses == 0 {
		t.Error("nothing was paged")
	}
}
