package union

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

const depthSize = 16 << 20

// deep makes a device on a chain of sealed layers, over which the same random writes are spread whatever its length, and returns what it
// holds.
func deep(t *testing.T, layers int) (*rig, []byte) {
	t.Helper()
	r := newRigOf(t, rigConfig{seed: 2, sizeBytes: depthSize, storeBytes: 64 << 20})
	content := make([]byte, depthSize)
	copy(content, r.base.content)
	rng := rand.New(rand.NewPCG(1, 41))
	const writes = 64 * 24
	for i := range writes {
		off := int64(rng.IntN(depthSize>>blockShift)) << blockShift
		n := min(int64(1+rng.IntN(4))<<blockShift, depthSize-off)
		p := content[off : off+n]
		if rng.IntN(8) == 0 {
			clear(p)
			if err := r.block.Discard(off, n); err != nil {
				t.Fatal(err)
			}
		} else {
			fill(p, uint64(i+1))
			if _, err := r.block.WriteAt(p, off); err != nil {
				t.Fatal(err)
			}
		}
		if (i+1)%(writes/layers) == 0 {
			r.sealAs(fmt.Sprint("s", i))
		}
	}
	return r, content
}

func (r *rig) compareAll(want []byte) {
	r.t.Helper()
	got := make([]byte, 64<<10)
	for off := int64(0); off < r.size; off += int64(len(got)) {
		if _, err := r.block.ReadAt(got, off); err != nil {
			r.t.Fatal(err)
		}
		if !bytes.Equal(got, want[off:off+int64(len(got))]) {
			r.t.Fatalf("the device differs in the 64 KiB at %d", off)
		}
	}
}

// readTime is how long some random reads of a block take, each from its request to its answer.
func (r *rig) readTime(reads int) time.Duration {
	r.t.Helper()
	rng := rand.New(rand.NewPCG(3, 41))
	p := make([]byte, blockSize)
	began := time.Now()
	for range reads {
		if _, err := r.block.ReadAt(p, int64(rng.IntN(depthSize>>blockShift))<<blockShift); err != nil {
			r.t.Fatal(err)
		}
	}
	return time.Since(began)
}

// TestDepthCostsNothing compares a device on 64 sealed layers with one on a single layer: both hold what was written, before and after
// the views are built, and then reads of both take the same time. The limit leaves room for a machine that does
// other things; what is measured is printed.
func TestDepthCostsNothing(t *testing.T) {
	flat, content := deep(t, 1)
	tall, _ := deep(t, MaxDepth)
	if d := tall.layer.depth() - 1; d != MaxDepth {
		t.Fatalf("depth %d", d)
	}
	tall.compareAll(content)
	flat.compareAll(content)
	mustFlatten(t, tall.store)
	mustFlatten(t, flat.store)
	tall.compareAll(content)
	const rounds, reads = 15, 2000
	var times [2][]time.Duration
	for range rounds {
		for i, r := range []*rig{flat, tall} {
			times[i] = append(times[i], r.readTime(reads))
		}
	}
	var median [2]time.Duration
	for i := range times {
		slices.Sort(times[i])
		median[i] = times[i][rounds/2] / reads
	}
	ratio := float64(median[1]) / float64(median[0])
	t.Logf("a read at depth 1 takes %v, at depth %d %v: ratio %.3f (medians of %d runs of %d reads)", median[0], MaxDepth, median[1], ratio, rounds, reads)
	if ratio > 1.5 {
		t.Errorf("reads at depth %d take %.2f times as long as at depth 1", MaxDepth, ratio)
	}
	for _, r := range []*rig{flat, tall} {
		r.close()
		r.check()
		r.open()
		r.compareAll(content)
		r.close()
	}
}
