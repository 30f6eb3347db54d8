package union

import (
	"fmt"
	"sync"
)

// sectorMap says for each 4 KiB block of a device whether a layer holds it, and where.
//
// The device is divided into regions of 4 MiB (1,024 blocks). A directory of one word per region tells whether the
// layer holds nothing of it, reads as zeros all over, so that discarding 10 TiB costs no entries at all, or has entries. Those
// of a region lie in memory, in an array, or only on the store, in a record, from which they are loaded when they are asked for: see
// pager. An array is sorted by block and doubles as it grows, or is indexed by block once it holds more than 256. An entry takes 12
// bytes in memory and 11 in a record.
//
// mu guards everything in it. A map of a layer that is written to is changed only under the layer's lock as well.
type sectorMap struct {
	number uint32 // of the map in its store, in the headers of its blocks
	blocks uint64 // device size in blocks
	pager  *pager
	arena  *arena // the pager's
	owner  int    // number in it

	mu         sync.Mutex
	pages      []*dirPage // nil: no region of the page has anything
	data       uint64     // blocks that lie in slots
	held       int64      // bytes of arrays in memory
	dirty      []uint64   // regions with arrays newer than their records; may name one twice, or one that is not dirty any more
	dirtyBytes int64      // that the records of those arrays will take
	store      mapStore   // where records and directory lie
	loading    map[uint64]*loading
	hand       uint64 // region at which eviction goes on
}

// dirPage is a part of the directory: what is written to the store as one block.
type dirPage struct {
	words [dirWords]uint64
	used  int    // words that are not 0
	dirty bool   // differs from the block on the store
	slot  uint64 // of that block, or noSlot
	sum   uint32 // its checksum
}

// mapping is where a block is: kind in bits 38 and 39, the slot, which has 36, below. Zero means that the
// layer does not hold the block.
type mapping uint64

const (
	mapMask     = 1<<40 - 1
	mapSlotMask = 1<<38 - 1
	mapKind     = 38
	mapAbsent   = mapping(0)
	mapZero     = mapping(kindZero << mapKind)
)

func dataMapping(slot uint64) mapping { return mapping(slot | kindData<<mapKind) }

func (m mapping) isData() bool { return m>>mapKind&3 == kindData }
func (m mapping) slot() uint64 { return uint64(m) & mapSlotMask }

const (
	regionShift  = 10
	regionBlocks = 1 << regionShift
)

// A word of the directory has a state in its two highest bits.
const (
	wordState = 62

	wordNone  = 0 // the layer holds nothing of the region; the word is 0
	wordZero  = 1 // all its blocks read as zeros
	wordArray = 2 // has an array in memory, at the handle in the low 48 bits, of the class in the 6 bits above
	wordPaged = 3 // has a record on the store, at the place in the low 62 bits, and no array

	arrayZero  = 1 << 61 // with wordArray: blocks without an entry read as zeros
	classShift = 48
	classMask  = 1<<6 - 1
	handleMask = 1<<48 - 1
	placeMask  = 1<<62 - 1
)

// place is where the record of a region begins: slot in bits 22 up, half of the offset in that slot in bits 11 up, number of
// blocks with data below. No place is 0.
type place uint64

func newPlace(slot uint64, off int, data uint64) place {
	return place(slot<<22 | uint64(off/2)<<11 | data)
}

func (p place) slot() uint64 { return uint64(p) >> 22 }
func (p place) off() int     { return int(p>>11&0x7ff) * 2 }
func (p place) data() uint64 { return uint64(p) & 0x7ff }

func newSectorMap(p *pager, number uint32, blocks uint64) *sectorMap {
	regions := (blocks + regionBlocks - 1) >> regionShift
	m := &sectorMap{
		number: number, blocks: blocks, pager: p, arena: p.arena,
		pages:   make([]*dirPage, (regions+dirWords-1)/dirWords),
		loading: map[uint64]*loading{},
	}
	m.owner = m.arena.join(m)
	p.add(m)
	return m
}

func (m *sectorMap) regions() uint64 { return (m.blocks + regionBlocks - 1) >> regionShift }

// regionLen is the number of blocks of a region: fewer in the last.
func (m *sectorMap) regionLen(region uint64) uint64 {
	return min(regionBlocks, m.blocks-region<<regionShift)
}

func (m *sectorMap) word(region uint64) uint64 {
	if p := m.pages[region/dirWords]; p != nil {
		return p.words[region%dirWords]
	}
	return 0
}

func (m *sectorMap) setWord(region, w uint64) {
	p := m.pages[region/dirWords]
	if p == nil {
		p = &dirPage{slot: noSlot}
		m.pages[region/dirWords] = p
		m.pager.pages.Add(1)
	}
	old := &p.words[region%dirWords]
	if *old == 0 && w != 0 {
		p.used++
	}
	if *old != 0 && w == 0 {
		p.used--
	}
	*old = w
}

// changed notes that what the store's directory has to say of the region differs from what it says.
func (m *sectorMap) changed(region uint64) {
	if p := m.pages[region/dirWords]; !p.dirty {
		p.dirty = true
		m.pager.dirtyPages.Add(1)
	}
}

// arrayOf returns the array that a word names.
func (m *sectorMap) arrayOf(w uint64) array {
	c := &arrayClasses[w>>classShift&classMask]
	return array{m.arena.at(w & handleMask), c}
}

// lookup resolves len(out) blocks from first on. They must lie within the device. Where it returns false, the entries of
// region have to be loaded first.
func (m *sectorMap) lookup(first uint64, out []mapping, sums []uint32) (region uint64, ok bool) {
	for len(out) > 0 {
		n := int(min(uint64(len(out)), regionBlocks-first%regionBlocks))
		if !m.lookupRegion(first, out[:n], sums[:n]) {
			return first >> regionShift, false
		}
		first += uint64(n)
		out, sums = out[n:], sums[n:]
	}
	return 0, true
}

func (m *sectorMap) lookupRegion(first uint64, out []mapping, sums []uint32) bool {
	w := m.word(first >> regionShift)
	rest := mapAbsent
	switch w >> wordState {
	case wordPaged:
		return false
	case wordZero:
		rest = mapZero
	}
	if w>>wordState != wordArray {
		for i := range out {
			out[i] = rest
		}
		return true
	}
	if w&arrayZero != 0 {
		rest = mapZero
	}
	a := m.arrayOf(w)
	if !a.has(flagRead) {
		a.flag(flagRead)
	}
	if idx := int(first % regionBlocks); len(out) == 1 {
		out[0], sums[0] = a.one(idx, rest)
	} else {
		a.read(idx, out, sums, rest)
	}
	return true
}

// paged returns the first region that has to be loaded before blocks from first to first+count can be changed, and whether there is one.
func (m *sectorMap) paged(first, count uint64) (region uint64, found bool) {
	for r := first >> regionShift; r <= (first+count-1)>>regionShift; r++ {
		if m.pages[r/dirWords] == nil {
			r += dirWords - 1 - r%dirWords
			continue
		}
		if m.word(r)>>wordState == wordPaged {
			return r, true
		}
	}
	return 0, false
}

// set maps one block and returns the mapping that the layer had; not data where there was none. The region must not be
// paged, here and below.
func (m *sectorMap) set(block uint64, to mapping, sum uint32) mapping {
	old := m.replace(block, to, sum)
	if to.isData() {
		m.data++
	}
	if old.isData() {
		m.data--
	}
	return old
}

func (m *sectorMap) replace(block uint64, to mapping, sum uint32) mapping {
	region := block >> regionShift
	w := m.word(region)
	switch w >> wordState {
	case wordPaged:
		panic(fmt.Sprintf("union: region %d is changed before it is loaded", region))
	case wordNone, wordZero:
		to := m.newArray(0, region)
		if w != 0 {
			to |= arrayZero
		}
		w = to
		m.setWord(region, w)
	}
	a := m.arrayOf(w)
	m.markDirty(region, a)
	idx := int(block % regionBlocks)
	pos, found := a.locate(idx)
	if found {
		old, _ := a.value(pos)
		a.setValue(pos, to, sum)
		return old
	}
	if a.count() == a.c.cap {
		a = m.arrayOf(m.grow(region, w, idx, pos))
		if a.c.form == tableForm {
			pos = idx
		}
	}
	a.insert(idx, pos, to, sum)
	m.addDirtyBytes(regionEntrySize)
	return mapAbsent
}

// markDirty notes that an array is about to become newer than its record.
func (m *sectorMap) markDirty(region uint64, a array) {
	if a.has(flagDirty) {
		return
	}
	a.flag(flagDirty)
	m.dirty = append(m.dirty, region)
	m.pager.dirtyRegions.Add(1)
	m.addDirtyBytes(regionBytes(a.count()))
}

func (m *sectorMap) addDirtyBytes(n int) {
	m.dirtyBytes += int64(n)
	m.pager.dirtyBytes.Add(int64(n))
}

// markClean takes an array off the dirty ones.
func (m *sectorMap) markClean(a array) {
	if a.has(flagDirty) {
		a.unflag(flagDirty)
		m.pager.dirtyRegions.Add(-1)
		m.addDirtyBytes(-regionBytes(a.count()))
	}
}

// newArray returns the word of a region with an empty array, which the caller sets.
func (m *sectorMap) newArray(class int, region uint64) uint64 {
	w := wordArray<<wordState | uint64(class)<<classShift | m.arena.alloc(class, m.owner, region)
	a := m.arrayOf(w)
	m.held += int64(a.c.size)
	a.reset()
	a.flag(flagRead)
	return w
}

// freeArray gives back the array that a word names. Others of this map may move.
func (m *sectorMap) freeArray(w uint64) {
	class := int(w >> classShift & classMask)
	m.held -= int64(arrayClasses[class].size)
	m.arena.free(w&handleMask, class, m)
}

// grow moves the full array of a region into a larger one, and returns the region's new word. It gets an entry for block idx at pos. Where all that it
// has are the blocks right before that, more are likely to follow, as in a region that is written in order: then it doubles.
func (m *sectorMap) grow(region, w uint64, idx, pos int) uint64 {
	a := m.arrayOf(w)
	class := int(w>>classShift&classMask) + 1
	if n := a.count(); pos == n && idx >= n {
		if at, found := a.locate(idx - n); found && at == 0 {
			class = max(class, min(classFor(min(2*n, regionBlocks)), tableClass-1))
		}
	}
	to := m.newArray(class, region) | w&arrayZero
	a.moveTo(m.arrayOf(to))
	m.setWord(region, to)
	m.freeArray(w)
	return to
}

// zero makes count blocks from first on read as zeros and calls freed for each slot that they
// had. The range must lie within the device.
func (m *sectorMap) zero(first, count uint64, freed func(slot uint64)) {
	for count > 0 {
		n := min(count, regionBlocks-first%regionBlocks)
		region := first >> regionShift
		if n == m.regionLen(region) {
			m.dropRegion(region, wordZero<<wordState, freed)
		} else {
			m.zeroPart(first, n, freed)
		}
		first += n
		count -= n
	}
}

func (m *sectorMap) zeroPart(first, n uint64, freed func(slot uint64)) {
	if m.word(first>>regionShift)>>wordState == wordZero {
		return
	}
	for b := first; b < first+n; b++ {
		if old := m.set(b, mapZero, 0); old.isData() {
			freed(old.slot())
		}
	}
}

// dropRegion forgets the entries of a region and leaves the word to, which has none.
func (m *sectorMap) dropRegion(region, to uint64, freed func(slot uint64)) {
	w := m.word(region)
	if w == to {
		return
	}
	switch w >> wordState {
	case wordPaged:
		panic(fmt.Sprintf("union: region %d is dropped before it is loaded", region))
	case wordArray:
		a := m.arrayOf(w)
		n := a.count()
		if a.c.form == tableForm {
			n = a.c.cap
		}
		for i := range n {
			if e, _ := a.value(i); e.isData() {
				m.data--
				freed(e.slot())
			}
		}
		m.markClean(a)
		m.store.forget(a.place())
		m.freeArray(w)
	}
	m.setWord(region, to)
	m.changed(region)
}

// region appends what the layer holds of one region, sorted by block; neighbouring
// blocks of zeros make one record. A region that the layer does not touch appends nothing.
func (m *sectorMap) region(r uint64, layer uint32, dst []record) []record {
	w := m.word(r)
	first := r << regionShift
	n := m.regionLen(r)
	switch w >> wordState {
	case wordNone:
		return dst
	case wordZero:
		return append(dst, record{Kind: kindZero, Layer: layer, Block: first, Slot: n})
	}
	var out [64]mapping
	var sums [64]uint32
	for b := uint64(0); b < n; b += uint64(len(out)) {
		k := int(min(uint64(len(out)), n-b))
		if !m.lookupRegion(first+b, out[:k], sums[:k]) {
			panic(fmt.Sprintf("union: region %d is listed before it is loaded", r))
		}
		for i, e := range out[:k] {
			block := first + b + uint64(i)
			switch {
			case e.isData():
				dst = append(dst, record{kindData, layer, block, e.slot(), sums[i]})
			case e == mapZero:
				dst = appendZero(dst, layer, block, 1)
			}
		}
	}
	return dst
}

// appendZero joins a range of zeros to the record before it where it follows that one.
func appendZero(dst []record, layer uint32, block, count uint64) []record {
	if k := len(dst); k > 0 && dst[k-1].Kind == kindZero && dst[k-1].Block+dst[k-1].Slot == block {
		dst[k-1].Slot += count
		return dst
	}
	return append(dst, record{Kind: kindZero, Layer: layer, Block: block, Slot: count})
}

// holdsAll tells whether every block of a region has an entry.
func (m *sectorMap) holdsAll(region uint64) bool {
	w := m.word(region)
	switch w >> wordState {
	case wordNone:
		return false
	case wordZero:
		return true
	}
	if w&arrayZero != 0 {
		return true
	}
	return uint64(m.arrayOf(w).count()) == m.regionLen(region)
}

// apply brings one record into the map and calls freed for each slot that it supersedes.
func (m *sectorMap) apply(r *record, freed func(slot uint64)) {
	if r.Kind == kindZero {
		m.zero(r.Block, r.Slot, freed)
		return
	}
	if old := m.set(r.Block, dataMapping(r.Slot), r.CRC); old.isData() && old.slot() != r.Slot {
		freed(old.slot())
	}
}

// drop gives the memory of a map that nothing looks into any more back.
func (m *sectorMap) drop() {
	m.pager.remove(m)
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, p := range m.pages {
		if p == nil {
			continue
		}
		for k := range p.words {
			if w := p.words[k]; w>>wordState == wordArray {
				m.markClean(m.arrayOf(w))
				m.freeArray(w)
				p.words[k] = 0
			}
		}
		if p.dirty {
			m.pager.dirtyPages.Add(-1)
		}
		m.pages[i] = nil
		m.pager.pages.Add(-1)
	}
	m.arena.leave(m.owner)
}

// memory is what the map takes in bytes; nothing where there is none.
func (m *sectorMap) memory() int64 {
	if m == nil {
		return 0
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.held + int64(len(m.pages))*8
	for _, p := range m.pages {
		if p != nil {
			n += dirWords*8 + 32
		}
	}
	return n
}

// touches tells whether the layer holds anything of a region.
func (m *sectorMap) touches(region uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.word(region) != 0
}

// dataBlocks is how many blocks the layer itself holds in slots.
func (m *sectorMap) dataBlocks() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.data
}
