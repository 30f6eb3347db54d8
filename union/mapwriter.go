package union

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sort"
)

// mapBatch is how many blocks of a segment are written at once.
const mapBatch = 64

// mapWriter packs the records of regions into the blocks of a new segment. A record's place is known, and told, before its
// block is written: until finish has returned, the pager must be pinned.
type mapWriter struct {
	s    *Store
	m    *sectorMap
	seg  *segment
	left int      // blocks that may still be wanted; a batch takes no more
	exts []extent // of the batch
	buf  []byte
	n    int // blocks of the batch
	at   int // block that takes records
	off  int // in it
}

// newMapWriter begins a segment for at most size bytes of records.
func (s *Store) newMapWriter(m *sectorMap, size int64) *mapWriter {
	seg := &segment{generation: s.sb.Generation + 1}
	m.mu.Lock()
	m.store.writing = seg
	m.mu.Unlock()
	return &mapWriter{s: s, m: m, seg: seg, left: int((size + mapPayload - 1) / mapPayload)}
}

// begin takes slots for the next blocks.
func (w *mapWriter) begin() error {
	want := min(max(w.left, 1), mapBatch)
	exts, ok := w.s.slots.alloc(w.exts[:0], want, 0)
	if !ok {
		return fmt.Errorf("%d blocks: %w", want, ErrNoSpace)
	}
	if len(w.buf) < want<<blockShift {
		w.buf = alignedBuffer(want << blockShift)
	}
	w.exts, w.n, w.at, w.off = exts, want, 0, mapHeaderSize
	w.left -= want
	return nil
}

// place is where the next record goes.
func (w *mapWriter) place(data uint64) (place, error) {
	if w.at == w.n {
		if err := w.begin(); err != nil {
			return 0, err
		}
	}
	return newPlace(slotAt(w.exts, w.at), w.off, data), nil
}

func slotAt(exts []extent, i int) uint64 {
	for _, e := range exts {
		if i < int(e.Count) {
			return e.Slot + uint64(i)
		}
		i -= int(e.Count)
	}
	panic("union: block beyond its extents")
}

// put adds a record, at the place that was told last.
func (w *mapWriter) put(b []byte) error {
	w.seg.records++
	for len(b) > 0 {
		if w.at == w.n {
			if err := w.begin(); err != nil {
				return err
			}
		}
		k := copy(w.buf[w.at<<blockShift+w.off:(w.at+1)<<blockShift], b)
		b = b[k:]
		w.off += k
		if w.off == blockSize {
			if err := w.sealBlock(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *mapWriter) sealBlock() error {
	p := w.buf[w.at<<blockShift:][:blockSize]
	clear(p[w.off:])
	h := mapHeader{Magic: segmentMagic, UUID: w.s.sb.UUID, Map: w.m.number, Index: w.seg.blocks, Generation: w.seg.generation, Used: w.off - mapHeaderSize}
	h.encode(p)
	w.seg.blocks++
	w.at++
	w.off = mapHeaderSize
	if w.at < w.n {
		return nil
	}
	return w.write()
}

// write writes the blocks of the batch and gives back the slots that it did not fill.
func (w *mapWriter) write() error {
	p := w.buf
	used := w.at
	for _, e := range w.exts {
		k := min(used, int(e.Count))
		used -= k
		if k < int(e.Count) {
			w.s.slots.release(e.Slot+uint64(k), e.Count-uint32(k))
		}
		if k == 0 {
			continue
		}
		if _, err := w.s.disk.WriteAt(p[:k<<blockShift], w.s.sb.slotOffset(e.Slot)); err != nil {
			return err
		}
		p = p[k<<blockShift:]
		w.seg.extents = appendExtent(w.seg.extents, e.Slot, uint32(k))
	}
	w.n, w.at = 0, 0
	return nil
}

// finish writes what is left and makes the segment one of the map's.
func (w *mapWriter) finish() error {
	if w.at < w.n && w.off > mapHeaderSize {
		if err := w.sealBlock(); err != nil {
			return err
		}
	}
	if w.n > 0 {
		if err := w.write(); err != nil {
			return err
		}
	}
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	w.m.store.writing = nil
	if w.seg.blocks > 0 {
		w.m.store.segments = append(w.m.store.segments, w.seg)
		w.m.store.reindex()
	}
	return nil
}

// writeMap writes the records of all regions that changed since the last checkpoint, moves what is left in segments that are
// mostly dead, and writes the pages of the directory that this changes. Requests go on meanwhile: each region is written as it
// is at some moment of this, which is not before the checkpoint's start in the log. It returns the slots that nothing
// names any more when the checkpoint is done. The pager is pinned.
func (s *Store) writeMap(m *sectorMap) (old []extent, err error) {
	m.mu.Lock()
	regions, size := m.dirty, m.dirtyBytes
	m.dirty = nil
	victims, moved := m.store.victims(size, s.tidying.Load())
	m.mu.Unlock()
	if want := s.keepFor(classOverwrite, 0) + uint64(max(mapBatch, size/mapPayload+moved)); len(victims) > 0 && s.slots.freeSlots() < want {
		victims = nil
		if s.tidying.Load() {
			s.cramped = max(s.cramped, want)
		}
	}
	if len(regions) > 0 || len(victims) > 0 {
		for _, seg := range victims {
			size += int64(seg.blocks) * mapPayload
		}
		if err := s.writeSegment(m, regions, victims, size); err != nil {
			return nil, err
		}
	}
	dead := m.takeDead()
	pages, err := s.writeDirectory(m)
	return append(dead, pages...), err
}

func (s *Store) writeSegment(m *sectorMap, regions []uint64, victims []*segment, size int64) error {
	w := s.newMapWriter(m, size)
	slices.Sort(regions)
	scratch := make([]byte, 0, maxRegionBytes)
	for _, r := range regions {
		b, err := w.capture(r, scratch)
		if err != nil {
			return err
		}
		if b == nil {
			continue
		}
		if err := w.put(b); err != nil {
			return err
		}
	}
	for _, seg := range victims {
		err := w.move(seg)
		var damaged *CorruptError
		if errors.As(err, &damaged) {
			slog.Warn("part of a sector map cannot be moved and stays where it is", "store", s.path, "error", err)
			continue
		}
		if err != nil {
			return err
		}
	}
	return w.finish()
}

// capture encodes the record of a region if its array is newer than the one on the store, and makes that the new one.
func (w *mapWriter) capture(region uint64, scratch []byte) ([]byte, error) {
	m := w.m
	m.mu.Lock()
	defer m.mu.Unlock()
	word := m.word(region)
	if word>>wordState != wordArray {
		return nil, nil
	}
	a := m.arrayOf(word)
	if !a.has(flagDirty) {
		return nil, nil
	}
	b, data := m.encodeRegion(region, scratch[:0])
	at, err := w.place(data)
	if err != nil {
		return nil, err
	}
	m.markClean(a)
	m.store.forget(a.place())
	a.setPlace(at)
	w.seg.live++
	m.changed(region)
	return b, nil
}

// move brings what is alive in a segment into the new one.
func (w *mapWriter) move(seg *segment) error {
	r := segmentReader{s: w.s, m: w.m, seg: seg}
	for {
		at, record, err := r.next()
		if err != nil || record.b == nil {
			return err
		}
		moved, err := w.relocate(at, &record)
		if err != nil {
			return err
		}
		if moved {
			if err := w.put(record.b); err != nil {
				return err
			}
		}
	}
}

// relocate points a region whose newest record is the one at a place to where the next record goes.
func (w *mapWriter) relocate(at place, r *regionRecord) (bool, error) {
	m := w.m
	m.mu.Lock()
	defer m.mu.Unlock()
	region := r.region()
	if region >= m.regions() {
		return false, nil
	}
	word := m.word(region)
	var have place
	switch word >> wordState {
	case wordPaged:
		have = place(word & placeMask)
	case wordArray:
		have = m.arrayOf(word).place()
	}
	if have>>11 != at>>11 {
		return false, nil
	}
	to, err := w.place(have.data())
	if err != nil {
		return false, err
	}
	m.store.forget(have)
	w.seg.live++
	if word>>wordState == wordArray {
		m.arrayOf(word).setPlace(to)
	} else {
		m.setWord(region, wordPaged<<wordState|uint64(to))
	}
	m.changed(region)
	return true, nil
}

const (
	// maxSegments of a map; then the smallest are joined.
	maxSegments = 64
	// spareSegments are not worth the trouble of moving what is alive in them while there is other work.
	spareSegments = 8
	// tidyBlocks are moved at once when there is no other work.
	tidyBlocks = 16 << 20 >> blockShift
)

// dead returns how many blocks all segments have, and how many of them hold what is not alive.
func (st *mapStore) dead() (blocks, dead float64) {
	for _, seg := range st.segments {
		blocks += float64(seg.blocks)
		dead += float64(seg.blocks) * seg.deadPart()
	}
	return blocks, dead
}

// untidy is how many blocks are to be gained by moving what is alive, or 0 where that is not worth it.
func (st *mapStore) untidy() float64 {
	blocks, dead := st.dead()
	if dead <= max(blocks/8, mapBatch) {
		return 0
	}
	return dead
}

// victims chooses segments to give up: those with the smallest live part, until the dead part of all is less than an eighth, or there are few
// enough. What they have alive, moved blocks, is at most about what the checkpoint writes anyway, or tidyBlocks or one segment.
func (st *mapStore) victims(size int64, tidy bool) (victims []*segment, moved int64) {
	blocks, dead := st.dead()
	count := len(st.segments)
	if !tidy && count < spareSegments && dead < blocks/2 || dead <= blocks/8 && count <= maxSegments {
		return nil, 0
	}
	all := slices.Clone(st.segments)
	if dead <= blocks/8 {
		sort.SliceStable(all, func(i, j int) bool { return all[i].blocks < all[j].blocks })
	} else {
		sort.SliceStable(all, func(i, j int) bool { return all[i].deadPart() > all[j].deadPart() })
	}
	budget := float64(max(mapBatch, size/mapPayload))
	if tidy {
		budget = max(budget, tidyBlocks)
	}
	for _, seg := range all {
		alive := float64(seg.blocks) * (1 - seg.deadPart())
		if dead <= blocks/16 && count <= maxSegments/2 || alive > budget && (!tidy || victims != nil) {
			break
		}
		if seg.live == 0 {
			continue
		}
		victims = append(victims, seg)
		budget -= alive
		moved += int64(math.Ceil(alive))
		dead -= float64(seg.blocks) * seg.deadPart()
		count--
	}
	return victims, moved
}

func (seg *segment) deadPart() float64 { return 1 - float64(seg.live)/float64(max(seg.records, 1)) }

// takeDead removes the segments in which nothing is alive and returns their slots.
func (m *sectorMap) takeDead() (old []extent) {
	m.mu.Lock()
	defer m.mu.Unlock()
	alive := m.store.segments[:0]
	for _, seg := range m.store.segments {
		if seg.live > 0 {
			alive = append(alive, seg)
		} else {
			old = append(old, seg.extents...)
		}
	}
	clear(m.store.segments[len(alive):])
	m.store.segments = alive
	if len(old) > 0 {
		m.store.reindex()
	}
	return old
}

// writeDirectory writes the pages that changed and returns the slots of those that they replace.
func (s *Store) writeDirectory(m *sectorMap) (old []extent, err error) {
	var buf []byte
	for next := 0; ; {
		var batch []int
		m.mu.Lock()
		if buf == nil {
			buf = alignedBuffer(min(mapBatch, max(1, m.dirtyPages())) << blockShift)
		}
		for ; next < len(m.pages) && len(batch) < len(buf)>>blockShift; next++ {
			p := m.pages[next]
			if p == nil || !p.dirty {
				continue
			}
			p.dirty = false
			m.pager.dirtyPages.Add(-1)
			if p.slot != noSlot {
				old = append(old, extent{p.slot, 1})
				p.slot = noSlot
			}
			if p.used == 0 {
				continue
			}
			m.encodePage(next, buf[len(batch)<<blockShift:][:blockSize], s.sb.UUID, s.sb.Generation+1)
			batch = append(batch, next)
		}
		m.mu.Unlock()
		if len(batch) == 0 {
			return old, nil
		}
		exts, err := s.writeBlocks(buf[:len(batch)<<blockShift])
		if err != nil {
			return nil, err
		}
		for i, index := range batch {
			m.pages[index].slot = slotAt(exts, i)
			m.pages[index].sum = le.Uint32(buf[i<<blockShift+logSumField:])
		}
	}
}

// dirtyPages counts the pages of the directory that a checkpoint has to write.
func (m *sectorMap) dirtyPages() (n int) {
	for _, p := range m.pages {
		if p != nil && p.dirty {
			n++
		}
	}
	return n
}

// writeBlocks writes blocks to fresh slots.
func (s *Store) writeBlocks(p []byte) ([]extent, error) {
	n := len(p) >> blockShift
	exts, ok := s.slots.alloc(nil, n, 0)
	if !ok {
		return nil, fmt.Errorf("%d blocks: %w", n, ErrNoSpace)
	}
	return exts, s.writeExtents(p, exts)
}

// writeExtents writes blocks to the slots of extents, in their order.
func (s *Store) writeExtents(p []byte, exts []extent) error {
	for _, e := range exts {
		k := int(e.Count) << blockShift
		if _, err := s.disk.WriteAt(p[:k], s.sb.slotOffset(e.Slot)); err != nil {
			return err
		}
		p = p[k:]
	}
	return nil
}

// segmentReader goes through the records of a segment.
type segmentReader struct {
	s     *Store
	m     *sectorMap
	seg   *segment
	buf   []byte
	ext   int // extent to read from
	done  uint32
	index uint32
	b     []byte   // what was read and not returned
	slots []uint64 // that b lies in
	off   int      // of b in the first of them
}

// next returns a record and its place, or none at the end.
func (r *segmentReader) next() (place, regionRecord, error) {
	for {
		if len(r.b) >= regionHeaderSize {
			rec := regionRecord{b: r.b}
			if rec.entries() > regionBlocks {
				return 0, rec, &CorruptError{"map", r.s.sb.slotOffset(r.slots[0]), "record too long"}
			}
			if n := regionBytes(rec.entries()); len(r.b) >= n {
				at := newPlace(r.slots[0], r.off, 0)
				rec.b = r.b[:n:n]
				r.advance(n)
				return at, rec, nil
			}
		}
		more, err := r.read()
		if err != nil || !more {
			return 0, regionRecord{}, err
		}
	}
}

func (r *segmentReader) advance(n int) {
	r.b = r.b[n:]
	r.off += n
	for r.off >= blockSize {
		r.off -= mapPayload
		r.slots = r.slots[1:]
	}
}

// read appends the next blocks.
func (r *segmentReader) read() (more bool, err error) {
	if r.ext == len(r.seg.extents) {
		return false, nil
	}
	if r.buf == nil {
		r.buf = alignedBuffer(int(min(r.seg.blocks, mapBatch)) << blockShift)
		r.off = mapHeaderSize
	}
	e := r.seg.extents[r.ext]
	n := min(e.Count-r.done, mapBatch)
	first := e.Slot + uint64(r.done)
	off := r.s.sb.slotOffset(first)
	p := r.buf[:n<<blockShift]
	if _, err := r.s.disk.ReadAt(p, off); err != nil {
		return false, fmt.Errorf("read map: %w", err)
	}
	r.b = append([]byte(nil), r.b...) // what was returned before stays as it is
	for i := range n {
		q := p[i<<blockShift:][:blockSize]
		if err := r.s.checkMapBlock(r.m, q, r.index, r.seg.generation, off+int64(i)<<blockShift); err != nil {
			return false, err
		}
		r.b = append(r.b, q[mapHeaderSize:mapHeaderSize+int(le.Uint16(q[40:]))]...)
		r.slots = append(r.slots, first+uint64(i))
		r.index++
	}
	r.done += n
	if r.done == e.Count {
		r.ext++
		r.done = 0
	}
	return true, nil
}
