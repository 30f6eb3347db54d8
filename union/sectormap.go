package union

// sectorMap says for each 4 KiB block of a device whether the layer holds it, and where: it
// is the layer's whole map in memory.
//
// The device is divided into regions of 4 MiB (1,024 blocks). A directory of one word per region
// tells whether blocks without an entry come from below or read as zeros, so that discarding
// 10 TiB costs no entries at all, and points to the region's entries: a sorted array
// that doubles as it grows, or an array indexed by block once it holds more than 256.
// An entry takes 12 bytes. Arrays hold no pointers, and the garbage collector does not look into them.
//
// It is not safe for concurrent use; [Layer] guards it.
type sectorMap struct {
	dir    []uint64
	arena  arena
	blocks uint64 // device size in blocks
	data   uint64 // blocks that lie in slots
}

// mapping is where a block is: kind in bits 40 and 41, the slot below. Zero means that the
// layer does not hold the block.
type mapping uint64

const (
	mapSlotMask = 1<<40 - 1
	mapKind     = 40
	mapAbsent   = mapping(0)
	mapZero     = mapping(kindZero << mapKind)
)

func dataMapping(slot uint64) mapping { return mapping(slot | kindData<<mapKind) }

func (m mapping) isData() bool { return m>>mapKind&3 == kindData }
func (m mapping) slot() uint64 { return uint64(m) & mapSlotMask }

const (
	regionShift  = 10
	regionBlocks = 1 << regionShift

	dirZero  = 1 << 63 // blocks without an entry read as zeros
	dirArray = 1 << 62 // the region has entries, at the handle in the low 48 bits
	dirMask  = 1<<48 - 1
)

func newSectorMap(blocks uint64) *sectorMap {
	return &sectorMap{dir: make([]uint64, (blocks+regionBlocks-1)>>regionShift), blocks: blocks}
}

// An entry array in the arena: one word of header (count in the low 16 bits, class above), then a word per
// entry (index in the region in bits 48 up, mapping below), then the checksums, two to a word.
const (
	denseClass = 7
	idxShift   = 48
)

var classCap = [denseClass + 1]int{4, 8, 16, 32, 64, 128, 256, regionBlocks}

func classWords(class int) int { return 1 + classCap[class] + classCap[class]/2 }

// array is a view of a region's entries.
type array struct {
	words []uint64
	cap   int
}

func (m *sectorMap) arrayAt(handle uint64) array {
	w := m.arena.at(handle)
	class := int(w[0] >> 16)
	return array{w[:classWords(class)], classCap[class]}
}

func (a array) dense() bool { return a.cap == regionBlocks }
func (a array) count() int  { return int(a.words[0] & 0xffff) }
func (a array) class() int  { return int(a.words[0] >> 16) }

func (a array) setCount(n int) { a.words[0] = uint64(n) | a.words[0]&^0xffff }

func (a array) entry(i int) uint64       { return a.words[1+i] }
func (a array) setEntry(i int, e uint64) { a.words[1+i] = e }
func (a array) mapping(i int) mapping    { return mapping(a.words[1+i] & (1<<idxShift - 1)) }
func (a array) index(i int) uint64       { return a.words[1+i] >> idxShift }
func (a array) checksum(i int) uint32    { return uint32(a.words[1+a.cap+i/2] >> (i % 2 * 32)) }
func (a array) setChecksum(i int, c uint32) {
	w := &a.words[1+a.cap+i/2]
	shift := i % 2 * 32
	*w = *w&^(0xffffffff<<shift) | uint64(c)<<shift
}

// search returns the position of idx in a sorted array, or where it belongs.
func (a array) search(idx uint64) (int, bool) {
	lo, hi := 0, a.count()
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if a.index(mid) < idx {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo, lo < a.count() && a.index(lo) == idx
}

// lookup resolves len(out) blocks from first on. They must lie within the device.
func (m *sectorMap) lookup(first uint64, out []mapping, sums []uint32) {
	for len(out) > 0 {
		n := int(min(uint64(len(out)), regionBlocks-first%regionBlocks))
		m.lookupRegion(first, out[:n], sums[:n])
		first += uint64(n)
		out, sums = out[n:], sums[n:]
	}
}

func (m *sectorMap) lookupRegion(first uint64, out []mapping, sums []uint32) {
	d := m.dir[first>>regionShift]
	rest := mapAbsent
	if d&dirZero != 0 {
		rest = mapZero
	}
	if d&dirArray == 0 {
		for i := range out {
			out[i] = rest
		}
		return
	}
	a := m.arrayAt(d & dirMask)
	idx := first % regionBlocks
	if a.dense() {
		for i := range out {
			at := int(idx) + i
			if e := a.mapping(at); e != mapAbsent {
				out[i], sums[i] = e, a.checksum(at)
			} else {
				out[i] = rest
			}
		}
		return
	}
	pos, _ := a.search(idx)
	for i := range out {
		if pos < a.count() && a.index(pos) == idx+uint64(i) {
			out[i], sums[i] = a.mapping(pos), a.checksum(pos)
			pos++
		} else {
			out[i] = rest
		}
	}
}

// set maps one block and returns the slot mapping that it had; one that is not data where there was none.
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
	d := &m.dir[block>>regionShift]
	idx := block % regionBlocks
	if *d&dirArray == 0 {
		*d |= dirArray | m.newArray(0)
	}
	a := m.arrayAt(*d & dirMask)
	if a.dense() {
		old := a.mapping(int(idx))
		if old == mapAbsent {
			a.setCount(a.count() + 1)
		}
		a.setEntry(int(idx), idx<<idxShift|uint64(to))
		a.setChecksum(int(idx), sum)
		return old
	}
	pos, found := a.search(idx)
	if found {
		old := a.mapping(pos)
		a.setEntry(pos, idx<<idxShift|uint64(to))
		a.setChecksum(pos, sum)
		return old
	}
	if a.count() == a.cap {
		handle := m.grow(a, *d&dirMask)
		*d = *d&^uint64(dirMask) | handle
		return m.replace(block, to, sum)
	}
	n := a.count()
	copy(a.words[1+pos+1:1+n+1], a.words[1+pos:1+n])
	for i := n; i > pos; i-- {
		a.setChecksum(i, a.checksum(i-1))
	}
	a.setEntry(pos, idx<<idxShift|uint64(to))
	a.setChecksum(pos, sum)
	a.setCount(n + 1)
	return mapAbsent
}

func (m *sectorMap) newArray(class int) uint64 {
	handle := m.arena.alloc(class)
	w := m.arena.at(handle)[:classWords(class)]
	clear(w)
	w[0] = uint64(class) << 16
	return handle
}

// grow moves an array into one of the next class.
func (m *sectorMap) grow(a array, handle uint64) uint64 {
	class := a.class() + 1
	to := m.newArray(class)
	b := m.arrayAt(to)
	for i := range a.count() {
		at := i
		if b.dense() {
			at = int(a.index(i))
		}
		b.setEntry(at, a.entry(i))
		b.setChecksum(at, a.checksum(i))
	}
	b.setCount(a.count())
	m.arena.free(handle, a.class())
	return to
}

// zero makes count blocks from first on read as zeros and calls freed for each slot that they
// had. The range must lie within the device.
func (m *sectorMap) zero(first, count uint64, freed func(slot uint64)) {
	for count > 0 {
		n := min(count, regionBlocks-first%regionBlocks)
		whole := n == regionBlocks || first%regionBlocks == 0 && first+n == m.blocks
		if whole {
			m.dropRegion(first>>regionShift, freed)
			m.dir[first>>regionShift] = dirZero
		} else {
			m.zeroPart(first, n, freed)
		}
		first += n
		count -= n
	}
}

func (m *sectorMap) zeroPart(first, n uint64, freed func(slot uint64)) {
	d := m.dir[first>>regionShift]
	if d&(dirZero|dirArray) == dirZero {
		return
	}
	for b := first; b < first+n; b++ {
		if old := m.set(b, mapZero, 0); old.isData() {
			freed(old.slot())
		}
	}
}

func (m *sectorMap) dropRegion(region uint64, freed func(slot uint64)) {
	d := m.dir[region]
	if d&dirArray == 0 {
		return
	}
	a := m.arrayAt(d & dirMask)
	n := a.count()
	if a.dense() {
		n = a.cap
	}
	for i := range n {
		if e := a.mapping(i); e.isData() {
			m.data--
			freed(e.slot())
		}
	}
	m.arena.free(d&dirMask, a.class())
}

// region appends what the layer holds of one region, sorted by block; neighbouring
// blocks of zeros make one record. A region that the layer does not touch appends nothing.
func (m *sectorMap) region(r uint64, layer uint32, dst []record) []record {
	d := m.dir[r]
	if d == 0 {
		return dst
	}
	first := r << regionShift
	n := min(regionBlocks, m.blocks-first)
	if d&dirArray == 0 {
		return append(dst, record{Kind: kindZero, Layer: layer, Block: first, Slot: n})
	}
	var out [64]mapping
	var sums [64]uint32
	for b := uint64(0); b < n; b += uint64(len(out)) {
		k := int(min(uint64(len(out)), n-b))
		m.lookupRegion(first+b, out[:k], sums[:k])
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

// apply brings one record into the map and calls freed for each slot that it supersedes.
func (m *sectorMap) apply(r *record, freed func(slot uint64)) {
	if r.Kind == kindZero {
		m.zero(r.Block, r.Slot, freed)
		return
	}
	if old := m.set(r.Block, dataMapping(r.Slot), r.CRC); old.isData() {
		freed(old.slot())
	}
}

// arena holds the entry arrays of a map in large chunks without pointers. Freed arrays are kept
// for the next of their class.
type arena struct {
	chunks [][]uint64
	next   int // first free word of the last chunk
	lists  [denseClass + 1]uint64
}

const (
	chunkShift = 14
	chunkWords = 1 << chunkShift
)

func (a *arena) at(handle uint64) []uint64 {
	return a.chunks[handle>>chunkShift][handle&(chunkWords-1):]
}

// alloc returns the handle of an array of the class with undefined content. Handle 0 is never given
// out, so that a list can end with it.
func (a *arena) alloc(class int) uint64 {
	if h := a.lists[class]; h != 0 {
		a.lists[class] = a.at(h)[0]
		return h
	}
	n := classWords(class)
	if len(a.chunks) == 0 || a.next+n > chunkWords {
		a.retire()
		a.chunks = append(a.chunks, make([]uint64, chunkWords))
		a.next = 0
		if len(a.chunks) == 1 {
			a.next = 1
		}
	}
	h := uint64(len(a.chunks)-1)<<chunkShift | uint64(a.next)
	a.next += n
	return h
}

// retire gives what is left of the last chunk to the lists of smaller classes.
func (a *arena) retire() {
	if len(a.chunks) == 0 {
		return
	}
	for class := denseClass - 1; class >= 0; class-- {
		for a.next+classWords(class) <= chunkWords {
			a.free(uint64(len(a.chunks)-1)<<chunkShift|uint64(a.next), class)
			a.next += classWords(class)
		}
	}
}

func (a *arena) free(handle uint64, class int) {
	a.at(handle)[0] = a.lists[class]
	a.lists[class] = handle
}

func (a *arena) bytes() int64 { return int64(len(a.chunks)) * chunkWords * 8 }
