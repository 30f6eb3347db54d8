package trace_test

import (
	"context"
	"math"
	"testing"

	"coppice/cache"
	"coppice/cache/trace"
)

// The curve of a node where devices on three images boot in turn is within two points of what caches of four other sizes measure.
func TestCurvePredictsBoots(t *testing.T) {
	tr, err := trace.Load("testdata/boot-1.txt")
	if err != nil {
		t.Fatal(err)
	}
	tr = tr.Beginning(120, chunk)
	var images []*near
	for seed := range uint64(3) {
		d := trace.NewDisk(tr)
		d.Seed = seed + 1
		images = append(images, nearly(d, chunk))
	}
	boots := []int{0, 1, 0, 0, 2, 1, 0, 2, 2, 1}
	play := func(c *cache.Cache) {
		var roots []*cache.Root
		for _, n := range images {
			roots = append(roots, c.Open(n))
		}
		for _, i := range boots {
			r := roots[i].Reader()
			p := make([]byte, 1<<20)
			for _, read := range tr.Reads {
				if p := p[:read.Len]; !r.TryRead(p, read.Off) {
					if err := r.Read(context.Background(), p, read.Off); err != nil {
						t.Fatal(err)
					}
				}
			}
			r.Close()
		}
		for _, r := range roots {
			r.Close()
		}
	}
	used := int64(len(tr.Chunks(chunk))) * chunk
	for _, policy := range cache.Policies() {
		threshold := max(2*cache.MinMemory, used*2) >> 20 << 20
		c := newCache(t, cache.Options{Policy: policy, MemoryBytes: threshold})
		play(c)
		v, tried, differ := c.Curve(), 0, map[int64]bool{}
		for _, p := range v.Points {
			if p.ThresholdBytes < threshold/2 || p.ThresholdBytes > 3*threshold {
				continue
			}
			n := newCache(t, cache.Options{Policy: policy, MemoryBytes: p.ThresholdBytes})
			play(n)
			got := 1 - hits(n.Stats().Readers).percent()/100
			t.Logf("%s, %s, one of %d chunks: predicted %.1f %%, measured %.1f %%", policy, mib(p.ThresholdBytes), v.SampledOneOf, 100*p.MissRatio, 100*got)
			if math.Abs(got-p.MissRatio) > 0.02 {
				t.Errorf("%s, %s: predicted %.1f %%, measured %.1f %%", policy, mib(p.ThresholdBytes), 100*p.MissRatio, 100*got)
			}
			tried++
			differ[int64(100*got)] = true
		}
		if tried < 5 || len(differ) < 3 {
			t.Errorf("%s: %d sizes with %d results prove nothing", policy, tried, len(differ))
		}
	}
}
