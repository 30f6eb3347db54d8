package union

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sort"
	"testing"

	"pgregory.net/rapid"
)

// modelMap is the plainest sector map that there can be.
type modelMap struct {
	at   []mapping
	sums []uint32
}

func (m *modelMap) set(block uint64, to mapping, sum uint32) mapping {
	old := m.at[block]
	m.at[block], m.sums[block] = to, sum
	return old
}

func (m *modelMap) zero(first, count uint64) (freed []uint64) {
	for b := first; b < first+count; b++ {
		if old := m.set(b, mapZero, 0); old.isData() {
			freed = append(freed, old.slot())
		}
	}
	return freed
}

func (m *modelMap) data() (n uint64) {
	for _, e := range m.at {
		if e.isData() {
			n++
		}
	}
	return n
}

// compare looks up every block, in steps of a length that does not divide a region.
func (m *modelMap) compare(got *sectorMap) error {
	var out [37]mapping
	var sums [37]uint32
	n := uint64(len(m.at))
	for b := uint64(0); b < n; b += uint64(len(out)) {
		k := min(uint64(len(out)), n-b)
		if r, ok := got.lookup(b, out[:k], sums[:k]); !ok {
			return fmt.Errorf("region %d is not loaded", r)
		}
		for i := range k {
			if out[i] != m.at[b+i] || out[i].isData() && sums[i] != m.sums[b+i] {
				return fmt.Errorf("block %d: %#x sum %#x, want %#x sum %#x", b+i, out[i], sums[i], m.at[b+i], m.sums[b+i])
			}
		}
	}
	if got.data != m.data() {
		return fmt.Errorf("%d blocks of data counted, want %d", got.data, m.data())
	}
	return nil
}

// compareRegions demands that what region tells of all regions is sorted, within each region, without neighbouring
// zeros in two records, and enough to rebuild the map.
func (m *modelMap) compareRegions(got *sectorMap) error {
	again := newSectorMap(newPager(), 1, got.blocks)
	for r := range got.regions() {
		records := got.region(r, 7, nil)
		after := r << regionShift
		end := min(after+regionBlocks, got.blocks)
		for i, e := range records {
			count := uint64(1)
			if e.Kind == kindZero {
				count = e.Slot
			}
			if e.Layer != 7 || e.Block < after || count == 0 || e.Block+count > end {
				return fmt.Errorf("region %d: record %+v out of order or out of the region", r, e)
			}
			if i > 0 && e.Kind == kindZero && records[i-1].Kind == kindZero && e.Block == after {
				return fmt.Errorf("region %d: zeros at %d in two records", r, e.Block)
			}
			after = e.Block + count
			again.apply(&e, func(slot uint64) { panic(slot) })
		}
	}
	return m.compare(again)
}

var mapSizes = []uint64{1, 7, 1023, 1024, 1025, 3000, 4096, 5*1024 + 256}

func TestSectorMapMatchesModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		blocks := rapid.SampledFrom(mapSizes).Draw(t, "blocks")
		m := newSectorMap(newPager(), 1, blocks)
		model := &modelMap{make([]mapping, blocks), make([]uint32, blocks)}
		slot := uint64(maxSlots) // down from the highest, so that all 36 bits are used
		set := func(b uint64) {
			slot--
			sum := uint32(slot * 2654435761)
			got, want := m.set(b, dataMapping(slot), sum), model.set(b, dataMapping(slot), sum)
			if got != want && (got.isData() || want.isData()) {
				t.Fatalf("set of block %d returned %#x, want %#x", b, got, want)
			}
		}
		place := func() (first, count uint64) {
			first = rapid.Uint64Range(0, blocks-1).Draw(t, "first")
			return first, rapid.Uint64Range(1, blocks-first).Draw(t, "count")
		}
		t.Repeat(map[string]func(*rapid.T){
			"one": func(t *rapid.T) { set(rapid.Uint64Range(0, blocks-1).Draw(t, "block")) },
			"run": func(*rapid.T) {
				first, count := place()
				for b := first; b < first+min(count, 300); b++ {
					set(b)
				}
			},
			"scatter": func(t *rapid.T) {
				rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
				for range rapid.IntRange(1, 600).Draw(t, "n") {
					set(rng.Uint64N(blocks))
				}
			},
			"zero": func(t *rapid.T) {
				first, count := place()
				if rapid.Bool().Draw(t, "regions") { // whole regions, the last one cut short
					first &^= regionBlocks - 1
					count = min((count+regionBlocks)&^(regionBlocks-1), blocks-first)
				}
				var freed []uint64
				m.zero(first, count, func(s uint64) { freed = append(freed, s) })
				want := model.zero(first, count)
				slices.Sort(freed)
				slices.Sort(want)
				if !slices.Equal(freed, want) {
					t.Fatalf("zeroing %d blocks from %d freed %d slots, want %d: %v, want %v", count, first, len(freed), len(want), freed, want)
				}
			},
			"": func(t *rapid.T) {
				if err := model.compare(m); err != nil {
					t.Fatal(err)
				}
				if err := model.compareRegions(m); err != nil {
					t.Fatal(err)
				}
			},
		})
	})
}

// TestSectorMapGrowth takes one region through every class of arrays, in orders that insert at the front, at the
// end and in between.
func TestSectorMapGrowth(t *testing.T) {
	orders := map[string]func(i int) uint64{
		"ascending":  func(i int) uint64 { return uint64(i) },
		"descending": func(i int) uint64 { return uint64(regionBlocks - 1 - i) },
		"mixed":      func(i int) uint64 { return uint64(i*389) % regionBlocks },
	}
	for name, at := range orders {
		t.Run(name, func(t *testing.T) {
			m := newSectorMap(newPager(), 1, 3*regionBlocks)
			model := &modelMap{make([]mapping, m.blocks), make([]uint32, m.blocks)}
			for i := range regionBlocks {
				b := regionBlocks + at(i)
				m.set(b, dataMapping(uint64(i)), uint32(i))
				model.set(b, dataMapping(uint64(i)), uint32(i))
				if got, want := m.arrayOf(m.word(1)).count(), i+1; got != want {
					t.Fatalf("array counts %d entries, want %d", got, want)
				}
				if err := model.compare(m); err != nil {
					t.Fatalf("after %d entries: %v", i+1, err)
				}
			}
			if a := m.arrayOf(m.word(1)); a.c.form != tableForm {
				t.Errorf("a full region has an array of %d entries", a.c.cap)
			}
		})
	}
}

// TestSectorMapReusesArrays fills and drops regions over and over: the memory of the first round serves all.
func TestSectorMapReusesArrays(t *testing.T) {
	const regions = 40
	m := newSectorMap(newPager(), 1, regions*regionBlocks)
	var first int64
	for round := range 20 {
		rng := rand.New(rand.NewPCG(uint64(round), 1))
		for r := range uint64(regions) {
			for range []int{3, 200, 1000}[r%3] { // the same arrays in each round
				m.set(r<<regionShift+rng.Uint64N(regionBlocks), dataMapping(r), 0)
			}
		}
		freed := uint64(0)
		data := m.data
		m.zero(0, m.blocks, func(uint64) { freed++ })
		if freed != data || m.data != 0 {
			t.Fatalf("round %d: %d of %d slots freed, %d left", round, freed, data, m.data)
		}
		if round == 2 {
			first = m.pager.arena.bytes()
		}
		if round > 2 && m.pager.arena.bytes() > first+chunkBytes {
			t.Fatalf("round %d: %d bytes in arrays, %d after the third", round, m.pager.arena.bytes(), first)
		}
	}
}

// scatter maps n different blocks at random places, and counts them.
func scatter(n uint64) func(m *sectorMap) uint64 {
	return func(m *sectorMap) uint64 {
		rng := rand.New(rand.NewPCG(1, 1))
		for m.data < n {
			m.set(rng.Uint64N(m.blocks), dataMapping(m.data), 0)
		}
		return m.data
	}
}

// account tells where the bytes of a map's memory are, for each of n blocks.
func (m *sectorMap) account(n uint64) string {
	var entries, heads, room int64
	for r := range m.regions() {
		w := m.word(r)
		if w>>wordState != wordArray {
			continue
		}
		a := m.arrayOf(w)
		each, head := valueBytes, a.c.values
		if a.c.form == listForm {
			each, head = 1+valueBytes, keyField
		}
		entries += int64(a.count() * each)
		heads += int64(head)
		room += int64(a.c.size - head - a.count()*each)
	}
	per := func(bytes int64) float64 { return float64(bytes) / float64(n) }
	return fmt.Sprintf("entries %.2f, heads %.2f, room in arrays %.2f, none of an array's %.2f, directory %.2f",
		per(entries), per(heads), per(room), per(m.arena.bytes()-m.arena.used.Load()), per(m.memory()-m.held))
}

// TestSectorMapMemory bounds the bytes per block, which docs and limits rely on.
func TestSectorMapMemory(t *testing.T) {
	cases := []struct {
		name    string
		regions uint64
		fill    func(m *sectorMap) (blocks uint64)
		bound   float64 // bytes per block
	}{
		{"dense, in order", 1024, func(m *sectorMap) uint64 {
			for b := range m.blocks {
				m.set(b, dataMapping(b), 0)
			}
			return m.data
		}, 10},
		{"dense, all regions growing at once", 1024, func(m *sectorMap) uint64 {
			regions := m.blocks >> regionShift
			for i := range m.blocks {
				m.set(i%regions<<regionShift|i/regions, dataMapping(i), 0)
			}
			return m.data
		}, 10},
		{"100 of each 1024, scattered", 1024, func(m *sectorMap) uint64 {
			rng := rand.New(rand.NewPCG(1, 1))
			for i := range m.blocks / 10 {
				m.set(rng.Uint64N(m.blocks), dataMapping(i), 0)
			}
			return m.data
		}, 13},
		{"one of each 1024", 16384, func(m *sectorMap) uint64 {
			for r := range m.blocks >> regionShift {
				m.set(r<<regionShift+r%regionBlocks, dataMapping(r), 0)
			}
			return m.data
		}, 74},
		{"100,000 in 1 GiB", 256, scatter(100_000), 16},
		{"100,000 in 10 GiB", 2560, scatter(100_000), 16},
		{"10,000 runs of 1 to 19 in 10 GiB", 2560, func(m *sectorMap) uint64 {
			rng := rand.New(rand.NewPCG(1, 1))
			for range 10_000 {
				first := rng.Uint64N(m.blocks - 19)
				for b := range 1 + rng.Uint64N(19) {
					m.set(first+b, dataMapping(b), 0)
				}
			}
			return m.data
		}, 16},
		{"all zeros", 16384, func(m *sectorMap) uint64 {
			m.zero(0, m.blocks, nothingFreed)
			return m.blocks
		}, 8.4 / regionBlocks},
	}
	for _, c := range cases {
		m := newSectorMap(newPager(), 1, c.regions*regionBlocks)
		blocks := c.fill(m)
		per := float64(m.pager.arena.bytes()+m.memory()-m.held) / float64(blocks)
		t.Logf("%s: %.2f bytes per block: %s", c.name, per, m.account(blocks))
		if per > c.bound {
			t.Errorf("%s: %.2f bytes per block, more than %.2f", c.name, per, c.bound)
		}
	}
}

// scattered returns a map of 10 GiB with a million blocks at random places.
func scattered(tb testing.TB) *sectorMap {
	tb.Helper()
	m := newSectorMap(newPager(), 1, 10<<30>>blockShift)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range uint64(1 << 20) {
		m.set(rng.Uint64N(m.blocks), dataMapping(i), uint32(i))
	}
	return m
}

func BenchmarkLookup(b *testing.B) {
	m := scattered(b)
	for _, n := range []int{1, 32} {
		b.Run(fmt.Sprintf("blocks=%d", n), func(b *testing.B) {
			rng := rand.New(rand.NewPCG(3, 4))
			out := make([]mapping, n)
			sums := make([]uint32, n)
			b.ReportAllocs()
			for b.Loop() {
				m.lookup(rng.Uint64N(m.blocks-uint64(n)), out, sums)
			}
		})
	}
}

// extentList is what a sector map is compared with: sorted extents, found by sort.Search.
type extentList []benchExtent

type benchExtent struct {
	block, len uint64
	to         mapping
}

func (l extentList) lookup(block uint64) mapping {
	i := sort.Search(len(l), func(i int) bool { return l[i].block+l[i].len > block })
	if i == len(l) || l[i].block > block {
		return mapAbsent
	}
	return l[i].to
}

// BenchmarkLookup100K looks up blocks at random in 100,000 extents: of one block each, made in any order, scattered over 10 GiB and over 1 GiB.
func BenchmarkLookup100K(b *testing.B) {
	const extents = 100_000
	for _, gib := range []uint64{10, 1} {
		m := newSectorMap(newPager(), 1, gib<<30>>blockShift)
		rng := rand.New(rand.NewPCG(1, 2))
		at := map[uint64]bool{}
		for uint64(len(at)) < extents {
			at[rng.Uint64N(m.blocks)] = true
		}
		var list extentList
		for _, block := range slices.Sorted(maps.Keys(at)) {
			list = append(list, benchExtent{block, 1, dataMapping(uint64(len(list)))})
		}
		for _, i := range rng.Perm(extents) { // as a guest that writes at random makes them
			m.set(list[i].block, list[i].to, uint32(list[i].block))
		}
		per := float64(m.pager.arena.bytes()+m.memory()-m.held) / extents
		// Half of the look-ups find something. The places are made beforehand: to draw one costs as much as to look it up.
		places := make([]uint64, 1<<16)
		for i := range places {
			places[i] = rng.Uint64N(m.blocks)
			if i%2 == 0 {
				places[i] = list[rng.IntN(extents)].block
			}
		}
		name := fmt.Sprintf("over=%dGiB/", gib)
		b.Run(name+"map", func(b *testing.B) {
			var out [1]mapping
			var sums [1]uint32
			b.ReportAllocs()
			for i := range b.N {
				m.lookup(places[i%len(places)], out[:], sums[:])
			}
			b.ReportMetric(per, "B/extent")
		})
		b.Run(name+"sort.Search", func(b *testing.B) {
			b.ReportAllocs()
			var sum mapping
			for i := range b.N {
				sum += list.lookup(places[i%len(places)])
			}
			if sum == 0 && b.N > 1 {
				b.Error("nothing was found")
			}
		})
	}
}

// BenchmarkMapScale looks up blocks of devices of 1 GiB to 10 TiB, half of them mapped, in maps of up to 10 million blocks. It is not among those of `make bench-native`: giving so much memory back disturbs those that follow.
func BenchmarkMapScale(b *testing.B) {
	for _, c := range []struct{ gib, mapped uint64 }{{1, 100_000}, {10, 100_000}, {100, 100_000}, {1 << 10, 100_000}, {10 << 10, 100_000}, {10 << 10, 0}, {10 << 10, 1_000_000}, {10 << 10, 10_000_000}} {
		m := newSectorMap(newPager(), 1, c.gib<<30>>blockShift)
		rng := rand.New(rand.NewPCG(1, 2))
		places := make([]uint64, 1<<16)
		for m.data < c.mapped {
			block := rng.Uint64N(m.blocks)
			places[m.data%uint64(len(places))] = block
			m.set(block, dataMapping(m.data), uint32(block))
		}
		for i := range places {
			if i%2 == 0 || c.mapped == 0 {
				places[i] = rng.Uint64N(m.blocks)
			}
		}
		b.Run(fmt.Sprintf("device=%dGiB/mapped=%d", c.gib, c.mapped), func(b *testing.B) {
			var out [1]mapping
			var sums [1]uint32
			for i := range b.N {
				m.lookup(places[i%len(places)], out[:], sums[:])
			}
		})
		m.drop()
	}
}

func BenchmarkSet(b *testing.B) {
	for _, c := range []struct {
		name string
		at   func(rng *rand.Rand, i, blocks uint64) uint64
	}{
		{"sequential", func(_ *rand.Rand, i, blocks uint64) uint64 { return i % blocks }},
		{"random", func(rng *rand.Rand, _, blocks uint64) uint64 { return rng.Uint64N(blocks) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			m := newSectorMap(newPager(), 1, 10<<30>>blockShift)
			rng := rand.New(rand.NewPCG(5, 6))
			i := uint64(0)
			b.ReportAllocs()
			for b.Loop() {
				m.set(c.at(rng, i, m.blocks), dataMapping(i), uint32(i))
				i++
			}
		})
	}
}

// BenchmarkFill writes each block of a new map once: all of 1 GiB in order or in any, or 100,000 places of 10 GiB. Unlike BenchmarkSet it has no overwrites.
func BenchmarkFill(b *testing.B) {
	order := rand.New(rand.NewPCG(9, 10)).Perm(10 << 30 >> blockShift)
	all := slices.DeleteFunc(slices.Clone(order), func(block int) bool { return block >= 1<<30>>blockShift })
	for _, c := range []struct {
		name   string
		gib    uint64
		places []int
	}{
		{"sequential", 1, slices.Sorted(slices.Values(all))},
		{"random", 1, all},
		{"scattered", 10, order[:100_000]},
	} {
		b.Run(c.name, func(b *testing.B) {
			var m *sectorMap
			b.ReportAllocs()
			for i := range b.N {
				at := i % len(c.places)
				if at == 0 {
					b.StopTimer()
					m = newSectorMap(newPager(), 1, c.gib<<30>>blockShift)
					b.StartTimer()
				}
				m.set(uint64(c.places[at]), dataMapping(uint64(i)), uint32(i))
			}
		})
	}
}

// TestHotPathsOfTheMapDoNotAllocate covers what every request does.
func TestHotPathsOfTheMapDoNotAllocate(t *testing.T) {
	m := scattered(t)
	rng := rand.New(rand.NewPCG(7, 8))
	var out [32]mapping
	var sums [32]uint32
	if n := testing.AllocsPerRun(1000, func() { m.lookup(rng.Uint64N(m.blocks-32), out[:], sums[:]) }); n != 0 {
		t.Errorf("lookup allocates %v times", n)
	}
}
