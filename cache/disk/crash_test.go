package disk

import (
	"flag"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"

	"coppice/ublk/ublktest"
)

var crashStates = flag.Int("crash-states", 10_000, "how many states TestPowerCuts looks at")

const crashChunks = 30

func rapidRand(t *rapid.T) *rand.Rand {
	return rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 2))
}

// crashRun is a cache that lives between power cuts.
type crashRun struct {
	t      *testing.T
	rng    *rand.Rand
	dev    *ublktest.Disk
	d      *Disk
	left   memory // what a power cut left
	states int
	cuts   [2]int // Gets after cuts: misses and hits
}

// step does something, and looks at what a power cut would leave behind.
func (r *crashRun) step() {
	switch k := r.rng.IntN(100); {
	case k < 5:
		r.dev.Settle() // the disk wrote its cache by itself
	case k == 5:
		r.d.Drop()
	case k < 20:
		if err := r.d.writeIndex(); err != nil {
			r.t.Fatal(err)
		}
	case k < 30:
		c, content := testChunk(r.rng.IntN(crashChunks))
		get(r.t, r.d, c, content)
	default:
		c, content := testChunk(r.rng.IntN(crashChunks))
		r.d.Put(c, content)
	}
	for range 3 {
		r.look()
	}
}

// look opens what a power cut leaves, and reads all chunks there: right, or not there. Sometimes life goes on from there.
func (r *crashRun) look() {
	r.cut()
	r.states++
	d := openTest(r.t, r.left, quiet())
	for n := range crashChunks {
		c, content := testChunk(n)
		if get(r.t, d, c, content) {
			r.cuts[1]++
		} else {
			r.cuts[0]++
		}
	}
	checkTable(r.t, d.table)
	if r.rng.IntN(60) == 0 {
		r.live(append(memory(nil), r.left...))
	}
}

// live goes on with a disk of the content, or of zeros.
func (r *crashRun) live(content memory) {
	if r.dev != nil {
		r.dev.Close()
	}
	var err error
	if r.dev, err = ublktest.NewDisk("cache", int64(smallGeometry().Blocks)<<blockShift); err != nil {
		r.t.Fatal(err)
	}
	copy(r.dev.Bytes(), content)
	r.dev.Settle()
	r.d = openTest(r.t, r.dev, quiet())
}

// cut makes of left what a power cut may leave: the durable content, and of the other writes all, none, some, or some up to a moment, whole or
// in part.
func (r *crashRun) cut() {
	const sector = 512
	r.left = append(r.left[:0], r.dev.Durable()...)
	writes := r.dev.Volatile()
	share := []float64{0, 0.1, 0.5, 0.9, 1}[r.rng.IntN(5)]
	torn := []float64{0, 0.3}[r.rng.IntN(2)]
	until := len(writes)
	if r.rng.IntN(3) == 0 {
		until = r.rng.IntN(until + 1)
	}
	for _, w := range writes[:until] {
		keep, tear := r.rng.Float64() < share, r.rng.Float64() < torn
		for at := 0; at < len(w.Data); at += sector {
			if tear && r.rng.IntN(2) == 0 || !tear && keep {
				copy(r.left[int(w.Off)+at:], w.Data[at:min(at+sector, len(w.Data))])
			}
		}
	}
}

// TestPowerCuts cuts the power after any operation. No flush was ever made, so the disk may have any of the writes, in any order, and parts of them.
func TestPowerCuts(t *testing.T) {
	want := *crashStates
	if testing.Short() {
		want = min(want, 500)
	}
	began := time.Now()
	r := &crashRun{t: t}
	for seed := uint64(0); r.states < want; seed++ {
		r.rng = rand.New(rand.NewPCG(seed, 3))
		r.live(nil)
		for range 60 {
			r.step()
		}
	}
	r.dev.Close()
	if r.cuts[0] == 0 || r.cuts[1] == 0 {
		t.Errorf("%d misses and %d hits: the states were not what they should be", r.cuts[0], r.cuts[1])
	}
	t.Logf("%d states in %.1f s: %d hits, %d misses, no wrong byte", r.states, time.Since(began).Seconds(), r.cuts[1], r.cuts[0])
}
