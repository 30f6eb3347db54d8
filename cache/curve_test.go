package cache

import (
	"math"
	"math/rand/v2"
	"testing"
)

// workload is chunks that are asked for, by their numbers, one after the other.
type workload struct {
	name     string
	requests func(rng *rand.Rand, ask func(chunk int64))
}

// mixed spreads the numbers below a power of two.
func mixed(n uint64, of int64) int64 { return int64(n * 2654435761 & uint64(of-1)) }

var workloads = []workload{
	{"zipf", func(rng *rand.Rand, ask func(int64)) {
		zipf := rand.NewZipf(rng, 1.05, 20, 32<<10-1)
		for range 40_000 {
			ask(mixed(zipf.Uint64(), 32<<10))
		}
	}},
	{"zipf and scans", func(rng *rand.Rand, ask func(int64)) {
		zipf := rand.NewZipf(rng, 1.02, 10, 16<<10-1)
		for range 4 {
			for range 6_000 {
				ask(mixed(zipf.Uint64(), 16<<10))
			}
			for i := range int64(5 << 10) {
				ask(32<<10 + i)
			}
		}
	}},
	{"a small set and files", func(rng *rand.Rand, ask func(int64)) {
		for range 300 {
			for range 80 {
				ask(rng.Int64N(700))
			}
			file := rng.Int64N(60)
			for i := range 20 + file*file%97 {
				ask(1000 + file*100 + i)
			}
		}
	}},
	{"a set that moves", func(rng *rand.Rand, ask func(int64)) {
		for i := range int64(40_000) {
			ask(i/20 + int64(rng.ExpFloat64()*1500))
		}
	}},
}

const workChunk = 2 * minSlotBytes

// tally is what was asked of memory, in a test that asks it without readers.
type tally struct{ requests, misses int }

func (y *tally) ratio() float64 { return float64(y.misses) / float64(y.requests) }

// play asks the memory of a cache for what the workload has, each chunk in pieces.
func (w workload) play(t testing.TB, c *Cache, pieces int) *tally {
	t.Helper()
	c.memory.use(workChunk, 1)
	var y tally
	if c.curve != nil {
		c.curve.totals = func() requestTotals { return requestTotals{requests: float64(y.requests), misses: float64(y.misses)} }
	}
	var s streams
	content := make([]byte, workChunk)
	w.requests(rand.New(rand.NewPCG(5, 6)), func(chunk int64) {
		key := numbered(uint64(chunk))
		for range pieces {
			y.requests++
			if c.memory.read(&key, content[:8], 0, true) {
				continue
			}
			y.misses++
			stream := s.note(chunk*workChunk, workChunk)
			c.curve.request(&key, accessMiss, workChunk, stream)
			c.memory.insert(&key, content, c.isScan(stream))
		}
	})
	return &y
}

// What is predicted is within two points of what is measured, for every policy, with a quarter, half, twice and four times as much memory, also where only some of
// the chunks are sampled.
func TestCurvePredictsWhatIsMeasured(t *testing.T) {
	for _, w := range workloads {
		for _, p := range Policies() {
			c := newCache(t, Options{Policy: p, MemoryBytes: 32 << 20})
			w.play(t, c, 2)
			r := c.Curve()
			tried := 0
			for _, pt := range r.Points {
				by := float64(pt.ThresholdBytes) / (32 << 20)
				if by != 0.25 && by != 0.5 && by != 1 && by != 2 && by != 4 {
					continue
				}
				tried++
				got := w.play(t, newCache(t, Options{Policy: p, MemoryBytes: pt.ThresholdBytes, noCurve: true}), 2).ratio()
				t.Logf("%s, %s, %d MiB, 1 of %d sampled: predicted %.1f %%, measured %.1f %%", w.name, p, pt.ThresholdBytes>>20, r.SampledOneOf, 100*pt.MissRatio, 100*got)
				if math.Abs(pt.MissRatio-got) > 0.02 {
					t.Errorf("%s, %s, %d MiB: predicted %.1f %%, measured %.1f %%", w.name, p, pt.ThresholdBytes>>20, 100*pt.MissRatio, 100*got)
				}
			}
			if tried != 5 || r.LostRequests != 0 {
				t.Errorf("%s: %d sizes, %+v", p, tried, r)
			}
		}
	}
}
