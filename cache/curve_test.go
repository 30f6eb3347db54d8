package cache

import (
	"flag"
	"math"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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
		c.curve.aside = atOnce
		c.curve.totals = func() requestTotals { return requestTotals{requests: float64(y.requests)} }
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

var allCurves = flag.Bool("curves", false, "compare what is predicted with what is measured for each workload with each policy")

// What is predicted is within two points of what is measured with a quarter, half, twice and four times as much memory, and with the same, also where only some of
// the chunks are sampled. Without -curves, each workload has one policy.
func TestCurvePredictsWhatIsMeasured(t *testing.T) {
	for i, w := range workloads {
		for k, p := range Policies() {
			if *allCurves || k == i%len(Policies()) {
				w.compare(t, p)
			}
		}
	}
}

func (w workload) compare(t *testing.T, p Policy) {
	t.Helper()
	const threshold = 32 << 20
	c := newCache(t, Options{Policy: p, MemoryBytes: threshold})
	w.play(t, c, 2)
	r := c.Curve()
	tried := 0
	for _, pt := range r.Points {
		if !slices.Contains([]int64{threshold / 4, threshold / 2, threshold, 2 * threshold, 4 * threshold}, pt.ThresholdBytes) {
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

// The same requests make the same curve.
func TestCurveIsDeterministic(t *testing.T) {
	var first Curve
	for i := range 2 {
		c := newCache(t, Options{MemoryBytes: 8 << 20})
		began := c.curve.began
		c.curve.now = func() time.Time { return began }
		workloads[0].play(t, c, 1)
		got := c.Curve()
		got.Since = time.Time{}
		if i == 0 {
			first = got
		} else if !reflect.DeepEqual(got, first) || first.SampledOneOf == 1 {
			t.Errorf("%+v, and before %+v", got, first)
		}
	}
}

// Requests that came with one that fetched count as missed where that did, and what is read past memory is not kept.
func TestCurveCountsKinds(t *testing.T) {
	v := newTestCurve(LRU, 8<<20)
	ask := func(name uint64, kind accessKind) { v.note(access{name: name, class: sizeClasses - 1, kind: kind}) }
	missed := func(what string, want float64) {
		t.Helper()
		v.report()
		for _, m := range v.tried {
			if m.misses != want {
				t.Errorf("%s: %d MiB missed %v, want %v", what, m.threshold>>20, m.misses, want)
			}
			m.misses = 0
		}
	}
	ask(1, accessMiss)
	ask(1, accessJoined)
	missed("two at once", 2)
	ask(1, accessHit)
	missed("a hit", 0)
	ask(2, accessPast)
	ask(2, accessPast)
	missed("two past it", 2)
	ask(3, accessFill)
	missed("a part of the table", 0)
	ask(3, accessMiss)
	missed("what the table brought", 0)
	if r := v.report(); r.GhostHits != 1 || r.GhostBytes != 16<<20 {
		t.Errorf("%+v", r)
	}
	v.drop()
	ask(1, accessMiss)
	missed("after it was dropped", 1)
}

// A curve goes on where the threshold is set to another one that is tried, and begins anew where it is not.
func TestCurveFollowsTheThreshold(t *testing.T) {
	v := newTestCurve(S3FIFO, 64<<20)
	before := v.report()
	if len(before.Points) != len(curveSteps) || before.Points[6].ThresholdBytes != 64<<20 || before.Points[0].ThresholdBytes != 8<<20 || before.GhostBytes != 128<<20 {
		t.Fatalf("%+v", before)
	}
	v.note(access{name: 1, kind: accessMiss})
	v.setThreshold(96 << 20)
	if r := v.report(); v.tried[0].misses != 1 || r.GhostBytes != 192<<20 || r.ThresholdBytes != 96<<20 {
		t.Errorf("%+v", r)
	}
	v.setThreshold(1 << 30)
	if r := v.report(); v.tried[0].misses != 0 || r.Points[0].ThresholdBytes != 128<<20 {
		t.Errorf("%+v", r)
	}
	v.machine = 1 << 30
	v.setThreshold(64 << 20)
	if r := v.report(); r.Points[len(r.Points)-1].ThresholdBytes != 512<<20 {
		t.Errorf("%+v", r)
	}
}

// Requests count half after a day, and so do misses.
func TestCurveForgets(t *testing.T) {
	v := newTestCurve(S3FIFO, 64<<20)
	asked, now := requestTotals{}, v.began
	v.totals, v.now = func() requestTotals { return asked }, func() time.Time { return now }
	for name := range uint64(200) {
		v.note(access{name: name, kind: accessMiss})
	}
	asked = requestTotals{requests: 1000, bytes: 1 << 20}
	v.missed.Store(200)
	if r := v.report(); r.Requests != 1000 || math.Abs(r.Points[0].MissRatio-0.2) > 1e-9 {
		t.Errorf("%+v", r)
	}
	now = now.Add(curveHalfLife)
	v.report()
	asked.requests += 500
	if r := v.report(); r.Requests != 1000 || r.ReadBytes != 1<<19 || math.Abs(r.Points[0].MissRatio-0.1) > 1e-9 || math.Abs(r.MissRatio-0.1) > 1e-9 {
		t.Errorf("%+v", r)
	}
}

// Where more is asked for than may be looked at, fewer chunks are sampled.
func TestCurveKeepsItsBudget(t *testing.T) {
	v := newTestCurve(S3FIFO, 64<<20)
	now := v.began
	v.now = func() time.Time { return now }
	seen := uint64(0)
	const asked = 2_000_000 // in two seconds
	for i := range uint64(asked) {
		if key := numbered(i % 500); v.samples(hashOf(&key)) {
			v.note(access{name: nameOf(&key), hash: hashOf(&key), kind: accessHit})
			seen++
		}
		if i%(asked/2000) == 0 {
			now = now.Add(time.Millisecond)
		}
	}
	if r := v.report(); r.SampledOneOf < 4 || seen > curveBurst+20*curveRate {
		t.Errorf("%d were looked at, one of %d chunks", seen, r.SampledOneOf)
	}
}

// BenchmarkCurveCost compares hits of 4 KiB with and without the curve, in turns, when it has settled. All time is the thread's on a CPU: what else the machine does
// is neither cost, nor time in which requests may be worked off.
func BenchmarkCurveCost(b *testing.B) {
	const chunks, hits, rounds = 1 << 10, 10_000, 1601
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	clock := func() time.Time {
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &now); err != nil {
			b.Fatal(err)
		}
		return time.Unix(now.Unix())
	}
	c := newCache(b, Options{MemoryBytes: 128 << 20})
	c.curve.now, c.curve.credited, c.curve.aside = clock, clock(), atOnce
	o := &keysOrigin{fakeOrigin{size: chunks * 64 * kib, chunk: 64 * kib}}
	v := open(b, c, o).Reader()
	if err := v.Read(b.Context(), make([]byte, o.size), 0); err != nil {
		b.Fatal(err)
	}
	p := make([]byte, 4*kib)
	play := func(with *curve, n int, seed uint64) time.Duration {
		c.memory.curve = with // one cache, so that both lie at the same places in memory
		rng := rand.New(rand.NewPCG(seed, 2))
		began := clock()
		for range n {
			if !v.TryRead(p, rng.Int64N(chunks*16)*4*kib) {
				b.Fatal("no hit")
			}
		}
		return clock().Sub(began)
	}
	play(nil, 200_000, 3) // what is touched first is dearer
	first := play(c.curve, 50_000, 1)
	play(c.curve, 4_000_000, 2)
	b.ResetTimer()
	for b.Loop() {
		var ratios, off []float64
		variants := [2]*curve{nil, c.curve}
		for round := range uint64(rounds) {
			order := [2]int{int(round % 2), int(1 - round%2)}
			var took [2]time.Duration
			for _, i := range order {
				took[i] = play(variants[i], hits, round)
			}
			ratios, off = append(ratios, float64(took[1])/float64(took[0])), append(off, float64(took[0])/hits)
		}
		slices.Sort(ratios)
		slices.Sort(off)
		b.ReportMetric(off[rounds/2], "ns/hit-without")
		b.ReportMetric(100*(ratios[rounds/2]-1), "%cost")
		const beside = 40 // so many ranks from the middle end a 95 % interval of the median: half of 1.96 √1601, rounded up
		b.ReportMetric(100*(ratios[rounds/2-beside]-1), "%low")
		b.ReportMetric(100*(ratios[rounds/2+beside]-1), "%high")
	}
	b.ReportMetric(float64(first)/50_000, "ns/hit-at-first") // when every chunk is sampled
	b.ReportMetric(float64(c.Curve().SampledOneOf), "one-of")
}

// BenchmarkCurveTakes tells what it takes to work off requests for sampled chunks, which all miniatures have or some of them miss, and to halve the sample when many
// are known.
func BenchmarkCurveTakes(b *testing.B) {
	requests := make([]access, 1<<16)
	fill := func(chunks uint64) {
		zipf := rand.NewZipf(rand.New(rand.NewPCG(7, 8)), 1.05, 20, chunks-1)
		for i := range requests {
			name := zipf.Uint64() * 0x9e3779b97f4a7c15
			requests[i] = access{name: name, hash: uint32(name >> 32), class: uint8(sizeClassOf(64 * kib)), kind: accessMiss}
		}
	}
	ready := func() *curve {
		v := newTestCurve(S3FIFO, 512<<20)
		v.images.Store(1 << sizeClassOf(64*kib))
		v.credit = math.MaxInt64
		for _, a := range requests {
			v.note(a)
		}
		return v
	}
	for name, chunks := range map[string]uint64{"hits": 500, "misses": mostKeys - 1} {
		b.Run(name, func(b *testing.B) {
			fill(chunks)
			v := ready()
			for i := 0; b.Loop(); i++ {
				v.note(requests[i%len(requests)])
			}
			if v.shift != 0 {
				b.Errorf("one of %d chunks is sampled", 1<<v.shift)
			}
			b.ReportMetric(float64(v.keys.n), "chunks")
		})
	}
	b.Run("halve", func(b *testing.B) {
		fill(mostKeys - 1)
		for b.Loop() {
			b.StopTimer()
			v := ready()
			b.StartTimer()
			v.halve()
		}
	})
}
