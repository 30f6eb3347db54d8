package ebpf

import (
	"math"
	"reflect"
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

func TestSinceAndPlus(t *testing.T) {
	before := Latency{Op: "read", Source: "root", Count: 3, Mixed: 1, Seconds: 1, Buckets: []Bucket{{2, 2}, {30, 1}}}
	now := Latency{Op: "read", Source: "root", Count: 10, Mixed: 1, Errors: 2, Seconds: 3, Buckets: []Bucket{{2, 2}, {4, 5}, {30, 3}}}
	want := Latency{Op: "read", Source: "root", Count: 7, Errors: 2, Seconds: 2, Buckets: []Bucket{{4, 5}, {30, 2}}}
	if got := now.Since(&before); !reflect.DeepEqual(got, want) {
		t.Errorf("since: %+v, want %+v", got, want)
	}
	if got := before.Since(&now); !reflect.DeepEqual(got, before) {
		t.Errorf("of programs that were loaded anew: %+v", got)
	}
	want = Latency{Op: "read", Source: "root", Count: 13, Mixed: 2, Errors: 2, Seconds: 4, Buckets: []Bucket{{2, 4}, {4, 5}, {30, 4}}}
	if got := before.Plus(&now); !reflect.DeepEqual(got, want) {
		t.Errorf("plus: %+v, want %+v", got, want)
	}
	strange := Latency{Count: 3, Buckets: []Bucket{{-1, 1}, {buckets, 1}, {1, 1}}}
	if got := strange.Plus(&Latency{}); got.Count != 1 {
		t.Errorf("with buckets that there are not: %+v", got)
	}
}
