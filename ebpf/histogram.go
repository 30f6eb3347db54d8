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
