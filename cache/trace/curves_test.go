package trace_test

import (
	"fmt"
	"math"
	"testing"

	"coppice/cache"
	"coppice/cache/trace"
)

// curveBoots are the images that devices boot from, one after the other.
var curveBoots = []int{0, 1, 0, 0, 2, 1, 0, 2, 2, 1}

// curves boots devices on three images in turn, and compares what the curve predicts for other thresholds with caches that have them.
func (f *figures) curves(t *testing.T) {
	traces, policies := f.traces, cache.Policies()
	if !f.full {
		traces, policies = traces[:1], policies[:1]
	}
	rows := [][]string{{"boot", "policy", "threshold", "predicted misses", "measured", "points apart, goal ≤ 2"}}
	for i, tr := range traces {
		b := newBoots(tr)
		for _, policy := range policies {
			for _, c := range b.compare(t, policy) {
				if c.apart() > 2 {
					t.Errorf("boot %d, %s: %+v", i+1, policy, c)
				}
				rows = append(rows, []string{fmt.Sprint(i + 1), fmt.Sprintf("`%s`", policy), mib(c.threshold),
					fmt.Sprintf("%.1f %%", c.predicted), fmt.Sprintf("%.1f %%", c.measured), fmt.Sprintf("%.1f", c.apart())})
			}
		}
	}
	f.table(rows...)
	if f.full {
		f.curvesOfBeginnings(t)
	}
}

// curvesOfBeginnings takes boots that are cut short, through memory that is smaller: what is a scan, a 32nd of it, is about as long as many of their reads are.
func (f *figures) curvesOfBeginnings(t *testing.T) {
	tried, far, worst := 0, 0, 0.0
	var where string
	for i, tr := range f.traces {
		for _, reads := range []int{60, 120, 150, 240, 360} {
			b := newBoots(tr.Beginning(reads, chunk))
			for _, c := range b.compare(t, cache.S3FIFO) {
				tried++
				if c.apart() > 2 {
					far++
				}
				if c.apart() > worst {
					worst, where = c.apart(), fmt.Sprintf("the first %d reads of boot %d with %s: predicted %.1f %%, measured %.1f %%", reads, i+1, mib(c.threshold), c.predicted, c.measured)
				}
			}
		}
	}
	f.text("Of the first 60, 120, 150, 240 and 360 reads of these boots, through as much less memory, %d of %d predictions for `s3fifo` are more than 2 points apart, at worst by %.1f: %s. How long a stream is that a chunk "+
		"is read in decides whether that is a scan, and is known only as memory as it is misses it; with other thresholds parts of it would be hits that are not, or the other way round. That matters where the limit, a 32nd of the "+
		"threshold, is as short as reads of a boot are: below some 64 MiB.", far, tried, worst, where)
}

// compared is what a cache with a threshold misses, in percent of the requests.
type compared struct {
	threshold           int64
	predicted, measured float64
}

func (c compared) apart() float64 { return math.Abs(c.predicted - c.measured) }

// compare tries half to three times what two boots take.
func (b boots) compare(t *testing.T, policy cache.Policy) (list []compared) {
	t.Helper()
	memory := max(2*cache.MinMemory, 2*int64(len(b.trace.Chunks(chunk)))*chunk) >> 20 << 20
	c := newCache(t, cache.Options{Policy: policy, MemoryBytes: memory})
	b.play(t, c)
	differ := map[float64]bool{}
	for _, p := range c.Curve().Points {
		if p.ThresholdBytes < memory*2/5 || p.ThresholdBytes > 3*memory {
			continue
		}
		other := newCache(t, cache.Options{Policy: policy, MemoryBytes: p.ThresholdBytes})
		b.play(t, other)
		measured := 100 - hits(other.Stats().Readers).percent()
		list = append(list, compared{p.ThresholdBytes, 100 * p.MissRatio, measured})
		differ[math.Round(measured)] = true
	}
	if len(list) < 4 || len(differ) < 3 {
		t.Errorf("%+v prove nothing", list)
	}
	return list
}

// boots are devices on three images that do the same.
type boots struct {
	trace  *trace.Trace
	images []*near
}

func newBoots(tr *trace.Trace) boots {
	b := boots{trace: tr}
	for seed := range uint64(3) {
		d := trace.NewDisk(tr)
		d.Seed = seed + 1
		b.images = append(b.images, nearly(d, chunk))
	}
	return b
}

func (b boots) play(t *testing.T, c *cache.Cache) {
	t.Helper()
	var roots []*cache.Root
	for _, n := range b.images {
		r := c.Open(n)
		defer r.Close()
		roots = append(roots, r)
	}
	p := make([]byte, 1<<20)
	for _, i := range curveBoots {
		r := roots[i].Reader()
		for _, read := range b.trace.Reads {
			if p := p[:read.Len]; !r.TryRead(p, read.Off) {
				if err := r.Read(t.Context(), p, read.Off); err != nil {
					t.Fatal(err)
				}
			}
		}
		r.Close()
	}
}
