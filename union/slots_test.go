package union

import (
	"testing"

	"pgregory.net/rapid"
)

// slotModel holds what an allocator handed out.
type slotModel struct {
	used map[uint64]bool
	held []extent // in the pieces in which it was handed out
}

// take checks the extents of one allocation: in number, new, within the store, and joined where they adjoin.
func (m *slotModel) take(t *rapid.T, exts []extent, n int, slots uint64) {
	total := 0
	for i, e := range exts {
		if e.Count == 0 || e.Slot+uint64(e.Count) > slots {
			t.Fatalf("extent %+v of a store of %d slots", e, slots)
		}
		if i > 0 && exts[i-1].Slot+uint64(exts[i-1].Count) == e.Slot {
			t.Fatalf("extents %+v and %+v adjoin", exts[i-1], e)
		}
		for s := e.Slot; s < e.Slot+uint64(e.Count); s++ {
			if m.used[s] {
				t.Fatalf("slot %d was handed out twice", s)
			}
			m.used[s] = true
		}
		total += int(e.Count)
	}
	if total != n {
		t.Fatalf("%d slots handed out, %d asked for", total, n)
	}
	m.held = append(m.held, exts...)
}

// check compares the allocator's counts with the bitmap and with the model.
func (m *slotModel) check(t *rapid.T, a *slotAllocator) {
	if got, want := a.freeSlots(), a.slots-uint64(len(m.used)); got != want {
		t.Fatalf("%d slots free, want %d", got, want)
	}
	free := make([]uint16, len(a.groups))
	for s := range a.slots {
		used := a.isUsed(s)
		if used != m.used[s] {
			t.Fatalf("slot %d: used %v, want %v", s, used, m.used[s])
		}
		if !used {
			free[s/groupSlots]++
		}
	}
	for g := range free {
		if a.groups[g].free != free[g] {
			t.Fatalf("group %d counts %d free slots, has %d", g, a.groups[g].free, free[g])
		}
	}
}

func TestSlotsMatchModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// Sizes about the words of 64 and the groups of 4096.
		slots := rapid.SampledFrom([]uint64{1, 63, 64, 65, 4095, 4096, 4097, 4160, 9000, 3*4096 + 64}).Draw(t, "slots")
		a := newSlotAllocator(slots)
		m := &slotModel{used: map[uint64]bool{}}
		t.Repeat(map[string]func(*rapid.T){
			"alloc": func(t *rapid.T) {
				n := rapid.IntRange(1, 700).Draw(t, "n")
				keep := rapid.SampledFrom([]uint64{0, 0, 1, 64, 4096}).Draw(t, "keep")
				free := slots - uint64(len(m.used))
				before := []extent{{1 << 39, 1}}
				exts, ok := a.alloc(before, n, keep)
				if ok != (uint64(n)+keep <= free) {
					t.Fatalf("alloc of %d keeping %d with %d free: %v", n, keep, free, ok)
				}
				if exts[0] != before[0] || !ok && len(exts) != 1 {
					t.Fatalf("alloc changed what was in dst: %v", exts)
				}
				if ok {
					m.take(t, exts[1:], n, slots)
				}
			},
			"release": func(t *rapid.T) {
				for k := rapid.IntRange(1, 8).Draw(t, "k"); k > 0 && len(m.held) > 0; k-- {
					i := rapid.IntRange(0, len(m.held)-1).Draw(t, "i")
					e := m.held[i]
					m.held[i] = m.held[len(m.held)-1]
					m.held = m.held[:len(m.held)-1]
					a.release(e.Slot, e.Count)
					for s := e.Slot; s < e.Slot+uint64(e.Count); s++ {
						delete(m.used, s)
					}
				}
			},
			"claim": func(t *rapid.T) {
				s := rapid.Uint64Range(0, slots+5).Draw(t, "slot")
				want := s < slots && !m.used[s]
				if got := a.claim(s); got != want {
					t.Fatalf("claim of slot %d: %v, want %v", s, got, want)
				}
				if want {
					m.used[s] = true
					m.held = append(m.held, extent{s, 1})
				}
			},
			"": func(t *rapid.T) { m.check(t, a) },
		})
	})
}

// TestSlotsComeInOrder holds what makes random writes sequential: a store without holes is filled from
// its beginning to its end, and what one call takes is one extent.
func TestSlotsComeInOrder(t *testing.T) {
	const slots = 3*4096 + 17
	a := newSlotAllocator(slots)
	next := uint64(0)
	for n := 1; next+uint64(n) <= slots; n = n%200 + 1 {
		exts, ok := a.alloc(nil, n, 0)
		if !ok || len(exts) != 1 || exts[0] != (extent{next, uint32(n)}) {
			t.Fatalf("%d slots after %d: %v %v", n, next, exts, ok)
		}
		next += uint64(n)
	}
}

// TestSlotsTakeTheLast hands out every slot, one at a time, from a store with holes everywhere.
func TestSlotsTakeTheLast(t *testing.T) {
	const slots = 2*4096 + 100
	a := newSlotAllocator(slots)
	for s := uint64(0); s < slots; s += 2 {
		a.claim(s)
	}
	left := a.freeSlots()
	for i := range left {
		exts, ok := a.alloc(nil, 1, 0)
		if !ok || len(exts) != 1 || exts[0].Slot%2 != 1 {
			t.Fatalf("slot %d of %d: %v %v", i, left, exts, ok)
		}
	}
	if exts, ok := a.alloc(nil, 1, 0); ok {
		t.Errorf("a full store handed out %v", exts)
	}
	a.release(slots-1, 1)
	if exts, ok := a.alloc(nil, 1, 0); !ok || exts[0].Slot != slots-1 {
		t.Errorf("the only free slot was not found: %v %v", exts, ok)
	}
}

// TestExtentsDoNotOverflow joins ranges to the longest that an extent can tell, and no further.
func TestExtentsDoNotOverflow(t *testing.T) {
	exts := appendExtent([]extent{{100, 1<<32 - 2}}, 100+1<<32-2, 1)
	if len(exts) != 1 || exts[0].Count != 1<<32-1 {
		t.Fatalf("not joined to the longest extent: %v", exts)
	}
	exts = appendExtent(exts, 100+1<<32-1, 1)
	if len(exts) != 2 || exts[1] != (extent{100 + 1<<32 - 1, 1}) {
		t.Errorf("joined beyond the longest extent: %v", exts)
	}
}

// BenchmarkSlots allocates and releases single slots in a store of 1 TiB that is all but full.
func BenchmarkSlots(b *testing.B) {
	const slots = 1 << 40 >> blockShift
	fill := func(used func(s uint64) bool) *slotAllocator {
		a := newSlotAllocator(slots)
		for s := range uint64(slots) {
			if used(s) {
				a.claim(s)
			}
		}
		return a
	}
	run := func(b *testing.B, a *slotAllocator) {
		held := make([]uint64, 0, 64)
		exts := make([]extent, 0, 4)
		b.ReportAllocs()
		b.ResetTimer()
		for b.Loop() {
			var ok bool
			exts, ok = a.alloc(exts[:0], 1, 0)
			if !ok {
				b.Fatal("full")
			}
			held = append(held, exts[0].Slot)
			if len(held) == 64 {
				for _, s := range held {
					a.release(s, 1)
				}
				held = held[:0]
			}
		}
	}
	b.Run("free=scattered", func(b *testing.B) {
		run(b, fill(func(s uint64) bool { return s%50000 != 17 }))
	})
	b.Run("free=last100", func(b *testing.B) {
		run(b, fill(func(s uint64) bool { return s < slots-100 }))
	})
}
