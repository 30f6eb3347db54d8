package union

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// check compares the arena with the maps that arrays belong to, which must be all there are. It demands that slabs have no more holes than that.
func (a *arena) check(maps []*sectorMap, holes int) error {
	type array struct {
		m      *sectorMap
		region uint64
	}
	owned := map[uint64]array{}
	used := int64(0)
	for _, m := range maps {
		held := int64(0)
		for r := range m.regions() {
			w := m.word(r)
			if w>>wordState != wordArray {
				continue
			}
			if _, taken := owned[w&handleMask]; taken {
				return fmt.Errorf("region %d of map %d shares its array", r, m.owner)
			}
			owned[w&handleMask] = array{m, r}
			held += int64(m.arrayOf(w).c.size)
		}
		if m.held != held {
			return fmt.Errorf("map %d holds %d bytes, it says %d", m.owner, held, m.held)
		}
		used += held
	}
	if a.used.Load() != used {
		return fmt.Errorf("%d bytes handed out, the arena says %d", used, a.used.Load())
	}
	spans := map[uint64]bool{}
	for class := range a.slabs {
		s, c := &a.slabs[class], &arrayClasses[class]
		if want := (s.n + c.perSpan - 1) / c.perSpan; len(s.spans) != want {
			return fmt.Errorf("class %d has %d spans for %d arrays", class, len(s.spans), s.n)
		}
		for _, h := range s.spans {
			if spans[h] {
				return fmt.Errorf("span %#x twice", h)
			}
			spans[h] = true
		}
		for i := range s.n {
			h := s.place(c, i)
			owner := le.Uint64(a.at(h)[ownerField:])
			if owner == 0 {
				holes--
				continue
			}
			x, ok := owned[h]
			if !ok || owner != uint64(x.m.owner)<<ownerShift|x.region {
				return fmt.Errorf("array %d of class %d has owner %#x: %t", i, class, owner, ok)
			}
			if got := int(x.m.word(x.region) >> classShift & classMask); got != class {
				return fmt.Errorf("region %d of map %d has an array of class %d, not %d", x.region, x.m.owner, class, got)
			}
			delete(owned, h)
		}
	}
	if len(owned) > 0 || holes < 0 {
		return fmt.Errorf("%d arrays in no slab, %d holes too many", len(owned), -holes)
	}
	return nil
}

// TestArenaMatchesMaps lets several maps grow, shrink and go over one arena: each keeps what was written to it, and no gap is left.
func TestArenaMatchesMaps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := newPager()
		const blocks = 40 * regionBlocks
		var list []*sectorMap
		var models []*modelMap
		slot := uint64(0)
		one := func() int { return rapid.IntRange(0, len(list)-1).Draw(t, "map") }
		t.Repeat(map[string]func(*rapid.T){
			"make": func(t *rapid.T) {
				if len(list) == 4 {
					t.Skip("enough maps")
				}
				list = append(list, newSectorMap(p, uint32(len(list)), blocks))
				models = append(models, &modelMap{make([]mapping, blocks), make([]uint32, blocks)})
			},
			"write": func(t *rapid.T) {
				if len(list) == 0 {
					t.Skip("no map")
				}
				i := one()
				rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
				first := uint64(rapid.IntRange(0, 39).Draw(t, "region")) << regionShift
				within := min(blocks-first, uint64(rapid.SampledFrom([]int{700, 5000, blocks}).Draw(t, "within")))
				for range rapid.IntRange(1, 3000).Draw(t, "n") {
					b := first + rng.Uint64N(within)
					slot++
					list[i].set(b, dataMapping(slot), uint32(slot*2654435761))
					models[i].set(b, dataMapping(slot), uint32(slot*2654435761))
				}
			},
			"discard": func(t *rapid.T) {
				if len(list) == 0 {
					t.Skip("no map")
				}
				i := one()
				first := uint64(rapid.IntRange(0, 39).Draw(t, "region")) << regionShift
				count := min(blocks-first, uint64(rapid.IntRange(1, 20).Draw(t, "regions"))<<regionShift)
				list[i].zero(first, count, nothingFreed)
				models[i].zero(first, count)
			},
			"drop": func(t *rapid.T) {
				if len(list) == 0 {
					t.Skip("no map")
				}
				i := one()
				list[i].drop()
				list, models = append(list[:i:i], list[i+1:]...), append(models[:i:i], models[i+1:]...)
			},
			"": func(t *rapid.T) {
				if err := p.arena.check(list, 0); err != nil {
					t.Fatal(err)
				}
				for i, m := range list {
					if err := models[i].compare(m); err != nil {
						t.Fatalf("map %d: %v", i, err)
					}
				}
			},
		})
	})
}

// TestArenaMovesArraysOfOthers changes and reads several maps at once: arrays of one move when another frees some.
func TestArenaMovesArraysOfOthers(t *testing.T) {
	const workers, blocks, rounds = 4, 64 * regionBlocks, 12
	p := newPager()
	list := make([]*sectorMap, workers)
	var group sync.WaitGroup
	for w := range workers {
		m := newSectorMap(p, uint32(w), blocks)
		list[w] = m
		group.Go(func() {
			model := &modelMap{make([]mapping, blocks), make([]uint32, blocks)}
			rng := rand.New(rand.NewPCG(uint64(w), 1))
			for round := range rounds {
				for i := range uint64(4000) {
					b := rng.Uint64N(blocks)
					to := dataMapping(uint64(w)<<32 | i)
					m.mu.Lock()
					m.set(b, to, uint32(i))
					m.mu.Unlock()
					model.set(b, to, uint32(i))
				}
				m.mu.Lock()
				err := model.compare(m)
				if first := rng.Uint64N(60) << regionShift; round%2 == 1 {
					m.zero(first, 4<<regionShift, nothingFreed)
					model.zero(first, 4<<regionShift)
				}
				m.mu.Unlock()
				if err != nil {
					t.Errorf("map %d, round %d: %v", w, round, err)
					return
				}
			}
		})
	}
	group.Wait()
	// Each array that was freed while another map was locked may have left a hole, and later ones filled most.
	if err := p.arena.check(list, len(arrayClasses)*workers); err != nil {
		t.Error(err)
	}
	for _, m := range list {
		m.drop()
	}
	if err := p.arena.check(nil, 0); err != nil || p.arena.used.Load() != 0 {
		t.Errorf("%d bytes in use when all maps are gone, %v", p.arena.used.Load(), err)
	}
}

// TestArrayClasses holds the classes to what the arena and a word of the directory have for them, and to what they promise of sizes.
func TestArrayClasses(t *testing.T) {
	if numClasses > classMask+1 {
		t.Errorf("%d classes do not fit a word", numClasses)
	}
	for i, c := range arrayClasses {
		if c.size%64 != 0 || c.perSpan == 0 || c.cap > regionBlocks {
			t.Errorf("class %d: %+v", i, c)
		}
		if c.form == listForm && c.cap > 255 {
			t.Errorf("class %d: %d entries do not fit ranks of one byte", i, c.cap)
		}
		if i > 0 && (c.cap <= arrayClasses[i-1].cap || c.form < arrayClasses[i-1].form) {
			t.Errorf("class %d: %+v after %+v", i, c, arrayClasses[i-1])
		}
		// The least entries that an array of the class has when it is made for one more than the class before has room for.
		if least := arrayClasses[max(i, 1)-1].cap + 1; least > 16 && c.size > 16*least {
			t.Errorf("class %d: %d bytes for %d entries", i, c.size, least)
		}
	}
}
