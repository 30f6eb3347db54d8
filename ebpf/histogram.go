package ebpf

import (
	"math"
	"sync/atomic"
	"time"
)

// The bounds of the buckets: bucket 0 ends at 2^-20 s, each other one at 2^0.5 times the end of the one before, and the last has no end.
const (
	firstExponent = -20
	perOctave     = 2
	buckets       = len(latencyHistogram{}.Buckets)
)

// Bound returns where a bucket ends, in seconds; the last one does not.
func Bound(i int) float64 {
	if i >= buckets-1 {
		return math.Inf(1)
	}
	return math.Exp2(firstExponent + float64(i)/perOctave)
}

// Latency is how long the requests of one disk took that were of one operation and had their data from one source, or from several of which it is the farthest.
// It is counted from when the kernel made the request until it was completed.
type Latency struct {
	Op     string `json:"operation"`
	Source string `json:"source"`
	Count  uint64 `json:"count"`
	Mixed  uint64 `json:"mixed"`  // those of them that had parts from nearer sources, too
	Errors uint64 `json:"errors"` // those of them that failed
	// Seconds are those of all together.
	Seconds float64  `json:"seconds"`
	Buckets []Bucket `json:"buckets"` // without those that are empty
}

// Bucket is how many requests were shorter than a bound, and not shorter than the bound before.
type Bucket struct {
	Index int    `json:"index"` // see [Bound]
	Count uint64 `json:"count"`
}

// Percentile returns a bound that so many percent of the requests stay below, and 0 where there are none.
func (l *Latency) Percentile(percent float64) time.Duration {
	i := l.PercentileBucket(percent)
	switch {
	case i < 0:
		return 0
	case i == buckets-1:
		return math.MaxInt64
	}
	return time.Duration(Bound(i) * float64(time.Second))
}

// PercentileBucket returns the bucket that such a request is in, and -1 where there are none.
func (l *Latency) PercentileBucket(percent float64) int {
	seen := uint64(0)
	for _, b := range l.Buckets {
		if seen += b.Count; float64(seen) >= float64(l.Count)*percent/100 {
			return b.Index
		}
	}
	return -1
}

// BucketOf returns the bucket that a duration belongs to.
func BucketOf(d time.Duration) int {
	i := 0
	for i < buckets-1 && d.Seconds() >= Bound(i) {
		i++
	}
	return i
}

// Since returns what was counted after an earlier measurement of the same. Where that has counted more, the programs were loaded anew meanwhile, and all is after it.
func (l *Latency) Since(before *Latency) Latency {
	if before.Count > l.Count {
		before = &Latency{}
	}
	return l.combine(before, func(n, m uint64) uint64 { return max(n, m) - m }, l.Seconds-before.Seconds)
}

// Plus returns what was counted of both, as if they were of one operation and source: those of l.
func (l *Latency) Plus(other *Latency) Latency {
	return l.combine(other, func(n, m uint64) uint64 { return n + m }, l.Seconds+other.Seconds)
}

func (l *Latency) combine(other *Latency, of func(n, m uint64) uint64, seconds float64) Latency {
	counts, m := l.counts(), other.counts()
	for i := range counts {
		counts[i] = of(counts[i], m[i])
	}
	all := Latency{Op: l.Op, Source: l.Source, Mixed: of(l.Mixed, other.Mixed), Errors: of(l.Errors, other.Errors), Seconds: max(seconds, 0)}
	all.fill(&counts)
	return all
}

// counts spreads the buckets out. One that there is not, which can only have come from elsewhere, is left out.
func (l *Latency) counts() (all [buckets]uint64) {
	for _, b := range l.Buckets {
		if b.Index >= 0 && b.Index < buckets {
			all[b.Index] += b.Count
		}
	}
	return all
}

// add counts what a histogram holds, which the kernel may be writing to.
func (l *Latency) add(h *latencyHistogram, counts *[buckets]uint64) {
	l.Seconds += float64(atomic.LoadUint64(&h.Nanos)) / 1e9
	l.Mixed += atomic.LoadUint64(&h.Mixed)
	l.Errors += atomic.LoadUint64(&h.Errors)
	for i := range h.Buckets {
		counts[i] += atomic.LoadUint64(&h.Buckets[i])
	}
}

// fill takes the counts of all shards over.
func (l *Latency) fill(counts *[buckets]uint64) {
	for i, n := range counts {
		if n > 0 {
			l.Count += n
			l.Buckets = append(l.Buckets, Bucket{i, n})
		}
	}
}
