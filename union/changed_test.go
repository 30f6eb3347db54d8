package union

import (
	"math/rand/v2"
	"testing"
)

// TestChanged compares what is said to have changed with what each block is, through freezes.
func TestChanged(t *testing.T) {
	for seed := range seeds(6) {
		rng := rand.New(rand.NewPCG(seed, 7))
		r := newRig(t, seed, false)
		o := newLayerOracle(r)
		for range 3 {
			driveLayers(r, o, rng, 400)
			r.idle()
			want := make([]int8, r.layer.blocks())
			for e, err := range r.layer.Changed() {
				if err != nil {
					t.Fatal(err)
				}
				if e.Len <= 0 || e.Off%blockSize != 0 || e.Off+e.Len > r.size {
					t.Fatalf("seed %d: extent %+v of a device of %d bytes", seed, e, r.size)
				}
				for b := e.Off >> blockShift; b < (e.Off+e.Len+blockSize-1)>>blockShift; b++ {
					if want[b] != 0 {
						t.Fatalf("seed %d: block %d is in two extents", seed, b)
					}
					want[b] = 1
					if e.Zero {
						want[b] = 2
					}
				}
			}
			for b := range want {
				var m [1]mapping
				var sum [1]uint32
				if err := r.layer.resolve(uint64(b), m[:], sum[:]); err != nil {
					t.Fatal(err)
				}
				got := int8(0)
				switch {
				case m[0].isData():
					got = 1
				case m[0] == mapZero:
					got = 2
				}
				if got != want[b] {
					t.Fatalf("seed %d: block %d is of kind %d, told as %d", seed, b, got, want[b])
				}
			}
		}
		r.close()
		r.disk.Close()
	}
}
