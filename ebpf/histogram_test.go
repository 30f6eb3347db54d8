package ebpf

import (
	"math"
	"testing"
	"time"
)

func TestBounds(t *testing.T) {
	if Bound(0) != math.Exp2(-20) || math.Abs(Bound(1)/Bound(0)-math.Sqrt2) > 1e-12 || Bound(buckets-2) != 16 || !math.IsInf(Bound(buckets-1), 1) {
		t.Errorf("%g, %g, %g", Bound(0), Bound(1), Bound(buckets-2))
	}
	for d, want := range map[time.Duration]int{
		0: 0, 900 * time.Nanosecond: 0, time.Microsecond: 1, time.Second: buckets - 9, 17 * time.Second: buckets - 1, time.Hour: buckets - 1,
	} {
		if got := BucketOf(d); got != want {
			t.Errorf("%s is in bucket %d, want %d", d, got, want)
		}
	}
}

func TestPercentiles(t *testing.T) {
	var none Latency
	if none.Percentile(50) != 0 || none.PercentileBucket(50) != -1 {
		t.Errorf("of none: %s", none.Percentile(50))
	}
	var l Latency
	var counts [buckets]uint64
	counts[4], counts[10], counts[buckets-1] = 50, 49, 1
	l.fill(&counts)
	for percent, want := range map[float64]int{0: 4, 50: 4, 50.5: 10, 99: 10, 99.5: buckets - 1, 100: buckets - 1} {
		if got := l.PercentileBucket(percent); got != want {
			t.Errorf("%g %%: bucket %d, want %d", percent, got, want)
		}
	}
	if l.Count != 100 || len(l.Buckets) != 3 || l.Percentile(100) != math.MaxInt64 || l.Percentile(50) != time.Duration(Bound(4)*1e9) {
		t.Errorf("%+v", l)
	}
}
