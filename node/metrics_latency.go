package node

import (
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"coppice/ebpf"
)

// latencyMetric is a histogram in both forms that Prometheus knows: with a few buckets of fixed bounds, for everybody, and with those of the kernel as a native
// histogram, for servers that ask for it.
type latencyMetric struct {
	latency ebpf.Latency
	labels  []string
}

// The native form: buckets of 2^(1/2), which is schema 1, and the first one, below which nothing is told apart, as the zero bucket. The kernel's bucket i ends at
// 2^(i/2-20) s, so it is Prometheus's number i-40.
const (
	nativeSchema = 1
	nativeShift  = -40
)

// classicStep is how many of the kernel's buckets make one with a fixed bound: bounds are powers of 4, from 2^-18 s on.
const classicStep = 4

// Desc describes the metric.
func (latencyMetric) Desc() *prometheus.Desc { return latencySeconds }

// Write fills in the numbers.
func (l latencyMetric) Write(out *dto.Metric) error {
	counts := make(map[int]int64)
	zero := uint64(0)
	for _, b := range l.latency.Buckets {
		if b.Index == 0 {
			zero = b.Count
		} else {
			counts[b.Index+nativeShift] = int64(b.Count)
		}
	}
	native, err := prometheus.NewConstNativeHistogram(latencySeconds, l.latency.Count, l.latency.Seconds, counts, nil, zero, nativeSchema, ebpf.Bound(0), time.Time{}, l.labels...)
	if err != nil {
		return err
	}
	if err := native.Write(out); err != nil {
		return err
	}
	out.Histogram.CreatedTimestamp = nil // nobody knows
	seen, next := uint64(0), 0
	for i := classicStep; !math.IsInf(ebpf.Bound(i), 1); i += classicStep {
		for next < len(l.latency.Buckets) && l.latency.Buckets[next].Index <= i {
			seen += l.latency.Buckets[next].Count
			next++
		}
		bound, n := ebpf.Bound(i), seen
		out.Histogram.Bucket = append(out.Histogram.Bucket, &dto.Bucket{UpperBound: &bound, CumulativeCount: &n})
	}
	return nil
}
