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
			r.store.pager.limit = 60_000
			for range 12 {
				driveLayers(r, o, rng, 60)
				if rng.IntN(6) == 0 {
					o.discardMuch(r, rng)
				}
				r.idle()
				if err := r.checkpoint(); err != nil {
					t.Fatal(err)
				}
				before := r.store.pager.arena.used.Load()
				r.store.pager.trim()
				if after := r.store.pager.arena.used.Load(); after < before {
					evicted++
				} else if after > r.store.pager.limit {
					t.Fatalf("seed %d: %d bytes of entries in memory, the limit is %d", seed, after, r.store.pager.limit)
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

// TestTidy lets most of what the segments of a map hold become dead, and the store rest: what is alive is moved together, and
// stays what it was.
func TestTidy(t *testing.T) {
	t.Parallel()
	d := newTapped(t, t.TempDir(), "", 450*gib, 400*gib)
	for range 3 {
		d.writeMany(60_000, 1024)
		if err := d.store.Checkpoint(); err != nil {
			t.Fatal(err)
		}
	}
	before := d.layer.Info()
	taken, ok := d.store.slots.alloc(nil, int(d.store.slots.freeSlots()-d.store.keepFor(classOverwrite, 0)), 0)
	if !ok {
		t.Fatal("no slots")
	}
	generation := d.store.Info().Generation
	for range 6 {
		d.store.maintain()
	}
	if got := d.store.Info(); got.Generation > generation+1 {
		t.Errorf("%d checkpoints though there is no room to tidy up", got.Generation-generation)
	}
	d.store.releaseAll(taken)
	after := d.rest()
	t.Logf("%d blocks: map of %d bytes, %d after a rest", after.DataBytes>>blockShift, before.MapBytes, after.MapBytes)
	if after.MapBytes >= before.MapBytes || after.DataBytes != before.DataBytes || d.layer.m.store.untidy() > 0 {
		t.Errorf("map %d bytes, then %d; data %d bytes, then %d", before.MapBytes, after.MapBytes, before.DataBytes, after.DataBytes)
	}
	var m [1]mapping
	var sum [1]uint32
	for i := range d.next {
		if err := d.layer.resolve(uint64(d.scattered(i)), m[:], sum[:]); err != nil || !m[0].isData() {
			t.Fatalf("block %d: %v, %v", i, m[0], err)
		}
	}
	d.close()
}
