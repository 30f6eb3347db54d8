package cache

import (
	"fmt"
	"math/bits"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// check compares what a curve counts with what there is.
func (v *curve) check() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	known := 0
	held := make([][sizeClasses]int, len(v.tried))
	for n, k := range v.keys.all {
		if k.in == 0 {
			continue
		}
		known++
		if v.keys.find(k.name) != uint32(n) || !v.samples(k.hash) {
			return fmt.Errorf("key %d is not found, or is none that is sampled", n)
		}
		for i, m := range v.tried {
			if in := k.in&m.bit != 0; in {
				held[i][k.class]++
			} else if m.entry(slotID(n)).queue != queueNone {
				return fmt.Errorf("key %d is in a queue of a miniature that does not hold it", n)
			}
		}
	}
	if known != v.keys.n {
		return fmt.Errorf("%d keys are known, but %d are counted", known, v.keys.n)
	}
	for i, m := range v.tried {
		if m.used() > 1+rounding {
			return fmt.Errorf("miniature %d uses %v of its limit", i, m.used())
		}
		for class := range m.classes {
			if c := &m.classes[class]; c.n != held[i][class] || c.n > c.slots {
				return fmt.Errorf("miniature %d holds %d in %d slots of size %d, but %d are counted", i, held[i][class], c.slots, class, c.n)
			}
		}
	}
	return nil
}

// atOnce keeps a test in one goroutine.
func atOnce(f func()) { f() }

// newTestCurve makes a curve that knows of no cache, on a machine with much memory, at a time that stands still.
func newTestCurve(p Policy, threshold int64) *curve {
	v := newCurve(p, 1<<40, func() requestTotals { return requestTotals{} })
	began := time.Unix(1e9, 0)
	v.now, v.aside = func() time.Time { return began }, atOnce
	v.setThreshold(threshold)
	return v
}

// Where all chunks are sampled, miniatures of LRU miss what is deeper in a naive stack than they have room.
func TestMiniaturesAreWhatTheyStandFor(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		v := newTestCurve(LRU, 8<<20)
		v.images.Store(1 << (sizeClasses - 1))
		misses := make([]int, len(v.tried))
		var stack []uint64
		asked := rapid.SliceOfN(rapid.Uint64Range(1, 90), 1, 600).Draw(rt, "asked")
		for _, name := range asked {
			depth := slices.Index(stack, name)
			if depth >= 0 {
				stack = slices.Delete(stack, depth, depth+1)
			}
			stack = slices.Insert(stack, 0, name)
			v.note(access{name: name, class: sizeClasses - 1, kind: accessMiss})
			v.report() // the first one takes what images there are in
			for i, m := range v.tried {
				if depth < 0 || depth >= m.classes[sizeClasses-1].room {
					misses[i]++
				}
			}
		}
		for i, m := range v.tried {
			if m.misses != float64(misses[i]) || m.fetched != float64(misses[i]<<20) {
				rt.Fatalf("%d MiB: %v misses, %v bytes, want %d", m.threshold>>20, m.misses, m.fetched, misses[i])
			}
		}
	})
}

// Whatever comes, a curve keeps within its bounds and its books in order.
func TestCurveModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		v := newTestCurve(rapid.SampledFrom(Policies()).Draw(rt, "policy"), 4<<20)
		rt.Repeat(map[string]func(*rapid.T){
			"ask": func(rt *rapid.T) {
				kind := accessKind(rapid.IntRange(0, int(accessFill)).Draw(rt, "kind"))
				class := uint8(rapid.IntRange(0, sizeClasses-1).Draw(rt, "class"))
				from, stream := rapid.Uint64Range(0, 3000).Draw(rt, "from"), rapid.Uint32Range(0, 20<<10).Draw(rt, "stream")
				for i := range rapid.Uint64Range(1, 300).Draw(rt, "n") {
					name := from + i
					v.note(access{name: name * 0x9e3779b97f4a7c15, hash: bits.Reverse32(uint32(name)), stream: stream, class: class, kind: kind})
				}
			},
			"halve": func(*rapid.T) {
				v.mu.Lock()
				defer v.mu.Unlock()
				if v.shift < 6 {
					v.halve()
				}
			},
			"images":  func(rt *rapid.T) { v.images.Store(rapid.Uint32Range(0, 1<<sizeClasses-1).Draw(rt, "images")) },
			"digests": func(rt *rapid.T) { v.digests.Store(rapid.Int64Range(0, 1<<20).Draw(rt, "digests")) },
			"drop":    func(*rapid.T) { v.drop() },
			"set":     func(rt *rapid.T) { v.setThreshold(rapid.Int64Range(MinMemory, 100<<20).Draw(rt, "threshold")) },
			"": func(rt *rapid.T) {
				if r := v.report(); r.LostRequests != 0 {
					rt.Fatalf("%d requests are lost", r.LostRequests)
				}
				if err := v.check(); err != nil {
					rt.Fatal(err)
				}
			},
		})
	})
}

// Requests come from many sides while the curve is asked for. None is lost without being counted, and what comes out at the end is in order.
func TestCurveFromManySides(t *testing.T) {
	c := newCache(t, Options{MemoryBytes: 8 << 20, heap: 32 << 20})
	o := &keysOrigin{fakeOrigin{size: 24 << 20, chunk: 16 * kib}}
	r := open(t, c, o)
	var readers sync.WaitGroup
	for seed := range int64(4) {
		readers.Go(func() {
			v, p := r.Reader(), make([]byte, 8*kib)
			for i := range int64(1500) {
				off := (i*i*7 + seed*i) % (o.size / int64(len(p))) * int64(len(p))
				if !v.TryRead(p, off) {
					if err := v.Read(within(t), p, off); err != nil {
						t.Error(err)
						return
					}
				}
				switch {
				case i%300 == 299 && seed == 0:
					if err := c.SetMemory(MinMemory + i<<12); err != nil {
						t.Error(err)
					}
				case i%200 == 199:
					c.Curve()
				case i == 1000 && seed == 1:
					if err := c.Drop(false); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	readers.Wait()
	if err := c.curve.check(); err != nil {
		t.Error(err)
	}
	got := c.Curve()
	if want := c.requestTotals(); float64(got.Requests) != want.requests || got.Requests != 6000 {
		t.Errorf("%+v, want %+v", got, want)
	}
	if n := c.curve.head + c.curve.lost.Load(); n < 6000/4 || c.curve.head != c.curve.tail.Load() {
		t.Errorf("%d requests came, %d of %d were taken", n, c.curve.head, c.curve.tail.Load())
	}
}
