package union

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"sort"
	"sync"

	"github.com/google/uuid"
)

// A sector map on the store has two parts. Records of regions lie in segments: strings of bytes, cut into blocks, that are
// written once, by a checkpoint, and given back when no region's newest record lies there. The directory, one word per region, lies in
// pages of one block each, of which a checkpoint writes those that changed to fresh slots. The catalog names both.
//
// Each block of a segment begins with:
//
//	 0  4  magic "CMAP"
//	 4  4  CRC-32C of the block
//	 8 16  UUID of the store
//	24  4  number of the map
//	28  4  index of this block in its segment
//	32  8  generation of the segment
//	40  2  bytes used, from byte 64 on
//	42     zero to 64
//	64     region records, which go on in the next block of the segment
//
// A region record begins at an even offset:
//
//	0  4  region
//	4  2  number of entries; bit 15: blocks without an entry read as zeros
//	6     entries of 10 bytes, in order of blocks:
//	        0  6  index of the block in the region in the low 10 bits, kind in two, slot (data) or count of blocks (zero) above
//	        6  4  CRC-32C of the slot's content (data)
//
// A page of the directory:
//
//	 0  4  magic "CDIR"
//	 4  4  CRC-32C of the block, which the catalog has too: an older page cannot stand in for it
//	 8 16  UUID of the store
//	24  4  number of the map
//	28  4  index of the page
//	32  8  generation of the checkpoint that wrote it
//	40     zero to 64
//	64     504 words, see wordState: none, zero, or the place of the region's record
//
// Torn writes: both are written only where nothing live is, and the superblocks name them when a flush has
// covered them.
type mapHeader struct {
	Magic      uint32
	UUID       uuid.UUID
	Map        uint32
	Index      uint32
	Generation uint64
	Used       int
}

const (
	segmentMagic  = uint32('C') | uint32('M')<<8 | uint32('A')<<16 | uint32('P')<<24
	dirMagic      = uint32('C') | uint32('D')<<8 | uint32('I')<<16 | uint32('R')<<24
	mapHeaderSize = 64
	mapPayload    = blockSize - mapHeaderSize
	dirWords      = mapPayload / 8

	regionHeaderSize = 6
	regionEntrySize  = 10
	regionZero       = 1 << 15
	regionKind       = 10
	regionValue      = 12
	maxRegionBytes   = regionHeaderSize + regionBlocks*regionEntrySize
	// maxRecordBlocks is how many blocks a record can touch.
	maxRecordBlocks = (maxRegionBytes+mapPayload-1)/mapPayload + 1
)

// regionBytes is the size of a record with n entries at most: neighbouring blocks of zeros make one.
func regionBytes(n int) int { return regionHeaderSize + n*regionEntrySize }

// encode writes the header and the checksum of the block.
func (h *mapHeader) encode(p []byte) {
	clear(p[:mapHeaderSize])
	le.PutUint32(p, h.Magic)
	copy(p[8:24], h.UUID[:])
	le.PutUint32(p[24:], h.Map)
	le.PutUint32(p[28:], h.Index)
	le.PutUint64(p[32:], h.Generation)
	le.PutUint16(p[40:], uint16(h.Used))
	le.PutUint32(p[logSumField:], blockChecksum(p, logSumField))
}

// decode checks the block against its checksum.
func (h *mapHeader) decode(p []byte, off int64) error {
	h.Magic = le.Uint32(p)
	what := "map"
	switch h.Magic {
	case dirMagic:
		what = "directory"
	case segmentMagic:
	default:
		return &CorruptError{what, off, "magic missing"}
	}
	if got, want := blockChecksum(p, logSumField), le.Uint32(p[logSumField:]); got != want {
		return &CorruptError{what, off, fmt.Sprintf("checksum %#08x, stored %#08x", got, want)}
	}
	copy(h.UUID[:], p[8:24])
	h.Map = le.Uint32(p[24:])
	h.Index = le.Uint32(p[28:])
	h.Generation = le.Uint64(p[32:])
	h.Used = int(le.Uint16(p[40:]))
	if h.Used > mapPayload {
		return &CorruptError{what, off, "length out of range"}
	}
	return nil
}

// regionRecord is an encoded record, from its header to its last entry.
type regionRecord struct {
	b   []byte
	buf *recordBuffer
}

type recordBuffer struct{ blocks, payload []byte }

var recordBuffers = sync.Pool{New: func() any {
	return &recordBuffer{alignedBuffer(maxRecordBlocks << blockShift), make([]byte, 0, maxRecordBlocks*mapPayload)}
}}

func (r *regionRecord) release() {
	if r.buf != nil {
		recordBuffers.Put(r.buf)
	}
	*r = regionRecord{}
}

func (r *regionRecord) region() uint64 { return uint64(le.Uint32(r.b)) }
func (r *regionRecord) entries() int   { return int(le.Uint16(r.b[4:]) &^ regionZero) }
func (r *regionRecord) zero() bool     { return le.Uint16(r.b[4:])&regionZero != 0 }

// regionEntry is one entry of a record.
type regionEntry struct {
	index, count uint64 // blocks: count is 1 for data
	to           mapping
	sum          uint32
}

func (r *regionRecord) entry(i int) regionEntry {
	p := r.b[regionHeaderSize+i*regionEntrySize:]
	v := uint64(le.Uint32(p)) | uint64(le.Uint16(p[4:]))<<32
	e := regionEntry{index: v & (regionBlocks - 1), count: 1, sum: le.Uint32(p[6:])}
	switch v >> regionKind & 3 {
	case kindZero:
		e.to, e.count = mapZero, v>>regionValue
	case kindData:
		e.to = dataMapping(v >> regionValue)
	}
	return e
}

func (e *regionEntry) encode(p []byte) {
	kind, value := uint64(kindData), e.to.slot()
	if !e.to.isData() {
		kind, value = kindZero, e.count
	}
	v := e.index | kind<<regionKind | value<<regionValue
	le.PutUint32(p, uint32(v))
	le.PutUint16(p[4:], uint16(v>>32))
	le.PutUint32(p[6:], e.sum)
}

// check bounds a record's numbers, and returns how many blocks of data it has.
func (r *regionRecord) check(region, length, slots uint64) (data uint64, err error) {
	if r.region() != region {
		return 0, fmt.Errorf("record of region %d, not %d", r.region(), region)
	}
	next := uint64(0)
	for i := range r.entries() {
		e := r.entry(i)
		switch {
		case e.to == mapAbsent || e.index < next || e.count == 0 || e.count > length || e.index > length-e.count:
			return 0, fmt.Errorf("entry %d of region %d out of range or out of order", i, region)
		case e.to.isData() && e.to.slot() >= slots:
			return 0, fmt.Errorf("entry %d of region %d beyond the store", i, region)
		case e.to.isData():
			data++
		}
		next = e.index + e.count
	}
	return data, nil
}

// encodeRegion appends the record of a region that has an array.
func (m *sectorMap) encodeRegion(region uint64, dst []byte) (_ []byte, data uint64) {
	w := m.word(region)
	a := m.arrayOf(w)
	start := len(dst)
	dst = append(dst, make([]byte, regionHeaderSize)...)
	entries := 0
	var run regionEntry // of zeros
	put := func(e regionEntry) {
		var p [regionEntrySize]byte
		e.encode(p[:])
		dst = append(dst, p[:]...)
		entries++
	}
	var out [1 << groupShift]mapping
	var sums [1 << groupShift]uint32
	for i := range uint64(regionBlocks) {
		k := i % uint64(len(out))
		if k == 0 {
			a.read(int(i), out[:], sums[:], mapAbsent)
		}
		to := out[k]
		if run.count > 0 && to != mapZero {
			put(run)
			run.count = 0
		}
		switch {
		case to.isData():
			put(regionEntry{i, 1, to, sums[k]})
			data++
		case to != mapZero:
		case run.count > 0:
			run.count++
		default:
			run = regionEntry{index: i, count: 1, to: mapZero}
		}
	}
	if run.count > 0 {
		put(run)
	}
	head := uint16(entries)
	if w&arrayZero != 0 {
		head |= regionZero
	}
	le.PutUint32(dst[start:], uint32(region))
	le.PutUint16(dst[start+4:], head)
	return dst, data
}

// fill makes the array of a paged region from its record, which check has passed.
func (m *sectorMap) fill(region uint64, at place, r regionRecord) {
	covered := 0
	for i := range r.entries() {
		covered += int(r.entry(i).count)
	}
	w := m.newArray(classFor(covered), region)
	a := m.arrayOf(w)
	a.setPlace(at)
	pos := 0
	for i := range r.entries() {
		e := r.entry(i)
		for k := range e.count {
			if a.c.form == tableForm {
				pos = int(e.index + k)
			}
			a.insert(int(e.index+k), pos, e.to, e.sum)
			pos++
		}
	}
	if r.zero() {
		w |= arrayZero
	}
	m.setWord(region, w)
}

// mapStore is where a map lies on the store.
type mapStore struct {
	segments []*segment
	index    []segmentExtent // of all segments, sorted by slot
	writing  *segment        // by the checkpoint under way; not in the index yet
}

// segment is what one checkpoint wrote of a map.
type segment struct {
	generation uint64
	extents    []extent // in order of the blocks' indexes
	blocks     uint32
	records    uint32 // that were written to it
	live       uint32 // of them, those that are the newest of their region
}

// segmentExtent finds the segment of a slot.
type segmentExtent struct {
	slot  uint64
	count uint32
	index uint32 // of its first block in the segment
	seg   *segment
}

func (st *mapStore) reindex() {
	st.index = st.index[:0]
	for _, seg := range st.segments {
		index := uint32(0)
		for _, e := range seg.extents {
			st.index = append(st.index, segmentExtent{e.Slot, e.Count, index, seg})
			index += e.Count
		}
	}
	sort.Slice(st.index, func(i, j int) bool { return st.index[i].slot < st.index[j].slot })
}

// find returns the extent that a slot lies in.
func (st *mapStore) find(slot uint64) (segmentExtent, bool) {
	i := sort.Search(len(st.index), func(i int) bool { return st.index[i].slot > slot }) - 1
	if i < 0 || slot-st.index[i].slot >= uint64(st.index[i].count) {
		return segmentExtent{}, false
	}
	return st.index[i], true
}

// forget notes that the record at a place is not the newest of its region any more.
func (st *mapStore) forget(p place) {
	if p == 0 {
		return
	}
	if x, ok := st.find(p.slot()); ok {
		x.seg.live--
	} else if st.writing != nil {
		st.writing.live--
	}
}

// recordBlocks is where the blocks of a record lie.
type recordBlocks struct {
	generation uint64
	index      uint32 // of the first block in its segment
	slots      [maxRecordBlocks]uint64
	n          int // blocks that the segment has from there on, at most maxRecordBlocks
}

// blocksFrom finds the blocks of the record at a place.
func (st *mapStore) blocksFrom(p place) (b recordBlocks, err error) {
	x, ok := st.find(p.slot())
	if !ok || p.off() < mapHeaderSize {
		return b, &CorruptError{"directory", -1, fmt.Sprintf("slot %d is in no segment of the map", p.slot())}
	}
	b.generation = x.seg.generation
	skip := uint32(p.slot() - x.slot)
	b.index = x.index + skip
	found := false
	for _, e := range x.seg.extents {
		if !found && e.Slot != x.slot {
			continue
		}
		for i := uint32(0); i < e.Count; i++ {
			if !found && i < skip {
				continue
			}
			found = true
			if b.n == len(b.slots) {
				return b, nil
			}
			b.slots[b.n] = e.Slot + uint64(i)
			b.n++
		}
	}
	return b, nil
}

// readRecord reads the record of a region: the blocks that its number of data blocks asks for at once, and more where it has
// zeros too.
func (s *Store) readRecord(m *sectorMap, region uint64, at place, from recordBlocks) (regionRecord, error) {
	buf := recordBuffers.Get().(*recordBuffer)
	r := regionRecord{buf: buf}
	want := at.off() - mapHeaderSize + regionHeaderSize + int(at.data())*regionEntrySize
	payload := buf.payload[:0]
	for done := 0; ; {
		k := min((want+mapPayload-1)/mapPayload, from.n)
		if want > from.n*mapPayload {
			return r, s.recordError(from, "goes on beyond its segment")
		}
		for done < k {
			n, err := s.readMapBlocks(m, from, done, k, buf.blocks)
			if err != nil {
				return r, err
			}
			for i := range n {
				payload = append(payload, buf.blocks[i<<blockShift+mapHeaderSize:(i+1)<<blockShift]...)
			}
			done += n
		}
		r.b = payload[at.off()-mapHeaderSize:]
		need := at.off() - mapHeaderSize + regionHeaderSize + r.entries()*regionEntrySize
		if need > maxRecordBlocks*mapPayload || r.entries() > regionBlocks {
			return r, s.recordError(from, "too long")
		}
		if need <= done*mapPayload {
			r.b = payload[at.off()-mapHeaderSize : need]
			break
		}
		want = need
	}
	if err := m.checkRecord(&r, region, at, s.sb.Slots); err != nil {
		return r, s.recordError(from, err.Error())
	}
	return r, nil
}

// checkRecord compares a record with the directory's word.
func (m *sectorMap) checkRecord(r *regionRecord, region uint64, at place, slots uint64) error {
	data, err := r.check(region, m.regionLen(region), slots)
	if err == nil && data != at.data() {
		err = fmt.Errorf("region %d has %d blocks of data, the directory says %d", region, data, at.data())
	}
	return err
}

func (s *Store) recordError(from recordBlocks, detail string) error {
	return &CorruptError{"map", s.sb.slotOffset(from.slots[0]), detail}
}

// readMapBlocks reads blocks i to k of a record, as many as lie together, checks them, and returns how many those are.
func (s *Store) readMapBlocks(m *sectorMap, from recordBlocks, i, k int, buf []byte) (int, error) {
	n := 1
	for i+n < k && from.slots[i+n] == from.slots[i]+uint64(n) {
		n++
	}
	off := s.sb.slotOffset(from.slots[i])
	if _, err := s.disk.ReadAt(buf[:n<<blockShift], off); err != nil {
		return 0, fmt.Errorf("read map: %w", err)
	}
	for j := range n {
		if err := s.checkMapBlock(m, buf[j<<blockShift:][:blockSize], from.index+uint32(i+j), from.generation, off+int64(j)<<blockShift); err != nil {
			return 0, err
		}
	}
	return n, nil
}

func (s *Store) checkMapBlock(m *sectorMap, p []byte, index uint32, generation uint64, off int64) error {
	var h mapHeader
	if err := h.decode(p, off); err != nil {
		return err
	}
	if want := (mapHeader{segmentMagic, s.sb.UUID, m.number, index, generation, h.Used}); h != want {
		return &CorruptError{"map", off, "block of another segment"}
	}
	return nil
}

// mapEntry is what the catalog says of a map.
type mapEntry struct {
	Number   uint32
	Pages    []dirEntry
	Segments []segmentEntry
}

type dirEntry struct {
	Index uint32
	Slot  uint64
	CRC   uint32
}

type segmentEntry struct {
	Generation uint64
	Records    uint32
	Extents    []extent
}

// entry describes the map as it lies on the store since the last checkpoint. The caller holds Store.mu.
func (m *sectorMap) entry() mapEntry {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := mapEntry{Number: m.number}
	for i, p := range m.pages {
		if p != nil && p.slot != noSlot {
			e.Pages = append(e.Pages, dirEntry{uint32(i), p.slot, p.sum})
		}
	}
	for _, seg := range m.store.segments {
		e.Segments = append(e.Segments, segmentEntry{seg.generation, seg.records, seg.extents})
	}
	return e
}

// slots returns everything that the map takes on the store.
func (e *mapEntry) slots() (exts []extent) {
	for _, p := range e.Pages {
		exts = appendExtent(exts, p.Slot, 1)
	}
	for _, seg := range e.Segments {
		for _, x := range seg.Extents {
			exts = appendExtent(exts, x.Slot, x.Count)
		}
	}
	return exts
}

// openMap reads the directory of a map.
func (s *Store) openMap(e *mapEntry, blocks uint64) (*sectorMap, error) {
	m := newSectorMap(s.pager, e.Number, blocks)
	for _, x := range e.Segments {
		seg := &segment{generation: x.Generation, records: x.Records, extents: x.Extents}
		for _, y := range x.Extents {
			seg.blocks += y.Count
		}
		m.store.segments = append(m.store.segments, seg)
	}
	m.store.reindex()
	return m, s.readDirectory(m, e.Pages)
}

// readDirectory reads the pages of a map's directory, neighbours on the store together, and several at a time.
func (s *Store) readDirectory(m *sectorMap, pages []dirEntry) error {
	const batch, most = 1024, 64
	pages = slices.SortedFunc(slices.Values(pages), func(a, b dirEntry) int { return cmp.Compare(a.Slot, b.Slot) })
	mem := alignedBuffer(min(batch, len(pages)) << blockShift)
	for pages := range slices.Chunk(pages, batch) {
		var jobs []func() error
		for first := 0; first < len(pages); {
			end := first + 1
			for end < len(pages) && end-first < most && pages[end].Slot == pages[end-1].Slot+1 {
				end++
			}
			p, off := mem[first<<blockShift:end<<blockShift], s.sb.slotOffset(pages[first].Slot)
			jobs = append(jobs, func() error { _, err := s.disk.ReadAt(p, off); return err })
			first = end
		}
		if err := s.inParallel(jobs); err != nil {
			return fmt.Errorf("read directory: %w", err)
		}
		for i, x := range pages {
			if err := s.takeDirPage(m, x, mem[i<<blockShift:][:blockSize]); err != nil {
				return err
			}
		}
	}
	return nil
}

// takeDirPage checks what was read as a page.
func (s *Store) takeDirPage(m *sectorMap, x dirEntry, buf []byte) error {
	off := s.sb.slotOffset(x.Slot)
	if uint64(x.Index) >= uint64(len(m.pages)) {
		return &CorruptError{"directory", off, "page beyond the end of the device"}
	}
	var h mapHeader
	if err := h.decode(buf, off); err != nil {
		return err
	}
	if want := (mapHeader{dirMagic, s.sb.UUID, m.number, x.Index, h.Generation, 0}); h != want || le.Uint32(buf[logSumField:]) != x.CRC {
		return &CorruptError{"directory", off, "another page"}
	}
	p := &dirPage{slot: x.Slot, sum: x.CRC}
	first := uint64(x.Index) * dirWords
	for i := 0; i < dirWords; i++ {
		if i%8 == 0 && isZero(buf[mapHeaderSize+i*8:][:64]) { // as most are
			i += 7
			continue
		}
		w := le.Uint64(buf[mapHeaderSize+i*8:])
		if w == 0 {
			continue
		}
		if err := m.checkWord(first+uint64(i), w); err != nil {
			return &CorruptError{"directory", off, fmt.Sprintf("region %d: %v", first+uint64(i), err)}
		}
		p.words[i] = w
		p.used++
	}
	m.pages[x.Index] = p
	m.pager.pages.Add(1)
	return nil
}

// checkWord bounds a word of a page, and counts its record and its data.
func (m *sectorMap) checkWord(region, w uint64) error {
	if region >= m.regions() {
		return fmt.Errorf("beyond the end of the device")
	}
	if w == wordZero<<wordState {
		return nil
	}
	p := place(w & placeMask)
	x, ok := m.store.find(p.slot())
	switch {
	case w>>wordState != wordPaged || p.off() < mapHeaderSize:
		return fmt.Errorf("word %#x", w)
	case !ok:
		return fmt.Errorf("slot %d is in no segment of the map", p.slot())
	case p.data() > m.regionLen(region):
		return fmt.Errorf("%d blocks of data", p.data())
	}
	x.seg.live++
	m.data += p.data()
	return nil
}

// encodePage writes a page of the directory as it is now: each region's newest record, whether or not its array has
// changed since.
func (m *sectorMap) encodePage(index int, p []byte, id uuid.UUID, generation uint64) {
	clear(p[:blockSize])
	for i, w := range m.pages[index].words {
		if w>>wordState == wordArray {
			at := m.arrayOf(w).place()
			switch {
			case at != 0:
				w = wordPaged<<wordState | uint64(at)
			case w&arrayZero != 0:
				w = wordZero << wordState
			default:
				w = 0
			}
		}
		if w != 0 {
			le.PutUint64(p[mapHeaderSize+i*8:], w)
		}
	}
	h := mapHeader{Magic: dirMagic, UUID: id, Map: m.number, Index: uint32(index), Generation: generation}
	h.encode(p)
}

func isZero(p []byte) bool { return bytes.Equal(p, zeros[:len(p)]) }
