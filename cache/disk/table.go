package disk

import "coppice/cache"

// table is the index in memory: what lies in which slot, and which slot is taken next. It takes 16 bytes a slot, and 4 a bucket.
//
// Slots of one class are taken from one open segment after another, from its beginning to its end. A slot that was read from since the
// hand passed it keeps its chunk and loses one of up to three counted reads (FIFO with reinsertion in place, also known as CLOCK: Corbató,
// "A Paging Experiment with the Multics System", 1968). The next segment is a free one, or else the next in a circle that is of
// the class, or that few reads were counted in: such a one loses all that it holds.
//
// It is not safe for concurrent use.
type table struct {
	g        geometry
	heads    []uint32 // first slot of each bucket's chain, or none
	segs     []segment
	hand     int // segment that was looked at last
	open     [classes]cursor
	free     int // segments
	maxSlots int

	slots, used int
	bytes       int64 // of chunks
	evictions   uint64
}

type segment struct {
	entries []entry // nil: free
	class   uint8   // 0: free
	dirty   uint16  // a bit for each part of the index that is not what lies on the disk
}

// entry is what is known of a slot.
type entry struct {
	tag, check uint32
	// next is the next slot in the chain, or, at its end, lastBit and the number of the bucket: so no entry needs to have its bucket.
	next uint32
	meta uint32 // as on the disk
}

const (
	entryMemory  = 16 // bytes
	bucketMemory = 4

	none    = 1<<32 - 1
	lastBit = 1 << 31

	// maxPassed bounds how many slots that were read from one search passes by, and maxTried how many segments.
	maxPassed = 4096
	maxTried  = 16
)

// cursor is where a class takes its next slot.
type cursor struct{ seg, slot int }

var closedCursor = cursor{seg: -1}

func newTable(g geometry, maxSlots int) *table {
	t := &table{g: g, heads: make([]uint32, g.Buckets), segs: make([]segment, g.Segments), free: int(g.Segments), maxSlots: maxSlots}
	for i := range t.heads {
		t.heads[i] = none
	}
	for i := range t.open {
		t.open[i] = closedCursor
	}
	t.hand = len(t.segs) - 1
	return t
}

func (t *table) memory() int64 { return int64(t.slots)*entryMemory + int64(len(t.heads))*bucketMemory }

// hash returns where a key belongs.
func (t *table) hash(key *cache.Key) (bucket, tag uint32) {
	return le.Uint32(key[:]) & (t.g.Buckets - 1), le.Uint32(key[4:])
}

// place returns the segment and the slot that an identifier of a slot means.
func (t *table) place(id uint32) (seg, slot int) {
	return int(id / t.g.SegmentBlocks), int(id % t.g.SegmentBlocks)
}

func (t *table) id(seg, slot int) uint32 { return uint32(seg)*t.g.SegmentBlocks + uint32(slot) }

func (t *table) entry(id uint32) *entry {
	seg, slot := t.place(id)
	return &t.segs[seg].entries[slot]
}

// find returns the slot of a key.
func (t *table) find(bucket, tag uint32) (id uint32, ok bool) {
	for id = t.heads[bucket]; id&lastBit == 0; {
		e := t.entry(id)
		if e.tag == tag {
			return id, true
		}
		id = e.next
	}
	return 0, false
}

// holds reports whether a slot still has the entry that was read from it.
func (t *table) holds(id uint32, e *entry) bool {
	seg, slot := t.place(id)
	if slot >= len(t.segs[seg].entries) {
		return false
	}
	now := &t.segs[seg].entries[slot]
	return now.meta&metaUsed != 0 && now.tag == e.tag && now.check == e.check
}

// insert puts an entry into a slot that is not in use.
func (t *table) insert(id uint32, d diskEntry) {
	next := t.heads[d.bucket]
	if next == none {
		next = lastBit | d.bucket
	}
	*t.entry(id) = entry{tag: d.tag, check: d.check, next: next, meta: d.meta}
	t.heads[d.bucket] = id
	t.used++
	t.bytes += int64(d.meta&metaLen) + 1
	t.touch(id)
}

// remove makes a slot that is in use unused.
func (t *table) remove(id uint32) {
	e := t.entry(id)
	bucket := t.bucketOf(e)
	if t.heads[bucket] == id {
		t.heads[bucket] = e.next
		if e.next&lastBit != 0 {
			t.heads[bucket] = none
		}
	} else {
		before := t.entry(t.heads[bucket])
		for before.next != id {
			before = t.entry(before.next)
		}
		before.next = e.next
	}
	t.used--
	t.bytes -= int64(e.meta&metaLen) + 1
	*e = entry{}
	t.touch(id)
}

func (t *table) bucketOf(e *entry) uint32 {
	for e.next&lastBit == 0 {
		e = t.entry(e.next)
	}
	return e.next &^ lastBit
}

// touch notes that the index on the disk is behind for a slot.
func (t *table) touch(id uint32) {
	seg, slot := t.place(id)
	t.segs[seg].dirty |= 1 << (slot / entriesPerBlock)
}

// read counts a read of a slot in use.
func (e *entry) read() {
	if e.meta&metaRef != metaRef {
		e.meta += metaOne
	}
}

// take returns a slot of the class that is not in use, after evicting what was there.
func (t *table) take(class uint8) uint32 {
	cur := &t.open[class-minClass]
	passed := 0
	for {
		if cur.seg < 0 {
			*cur = cursor{seg: t.nextSegment(class)}
		}
		entries := t.segs[cur.seg].entries
		for cur.slot < len(entries) {
			e := &entries[cur.slot]
			id := t.id(cur.seg, cur.slot)
			cur.slot++
			if e.meta&metaRef != 0 && passed < maxPassed {
				e.meta -= metaOne
				passed++
				continue
			}
			if e.meta&metaUsed != 0 {
				t.remove(id)
				t.evictions++
			}
			return id
		}
		*cur = closedCursor
	}
}

// nextSegment returns the segment whose slots a class takes now.
func (t *table) nextSegment(class uint8) int {
	useFree := t.free > 0 && t.slots+t.g.slotsOf(class) <= t.maxSlots
	tried := 0
	for range t.segs {
		i := t.advance()
		s := &t.segs[i]
		switch {
		case t.isOpen(i) || useFree != (s.class == 0):
			continue
		case s.class == class:
			return i
		}
		if tried++; useFree || !t.age(s) || tried == maxTried {
			t.assign(i, class)
			return i
		}
	}
	i := t.advance()
	t.assign(i, class)
	return i
}

// advance moves the hand to the next segment.
func (t *table) advance() int {
	t.hand = (t.hand + 1) % len(t.segs)
	return t.hand
}

func (t *table) isOpen(seg int) bool {
	for i := range t.open {
		if t.open[i].seg == seg {
			return true
		}
	}
	return false
}

// age reports whether more than a quarter of a segment's slots were read from, and takes one read from each if so.
func (t *table) age(s *segment) bool {
	n := 0
	for i := range s.entries {
		if s.entries[i].meta&metaRef != 0 {
			n++
		}
	}
	if n <= len(s.entries)/4 {
		return false
	}
	for i := range s.entries {
		if s.entries[i].meta&metaRef != 0 {
			s.entries[i].meta -= metaOne
		}
	}
	return true
}

// assign makes all slots of a segment anew, of a class. Other segments become free where there would be too many slots otherwise.
func (t *table) assign(seg int, class uint8) {
	t.clear(seg)
	n := t.g.slotsOf(class)
	for t.slots+n > t.maxSlots && t.free < len(t.segs) {
		t.clear(t.advance())
	}
	s := &t.segs[seg]
	s.class, s.entries = class, make([]entry, n)
	s.dirty = 1<<partsFor(n) - 1
	t.slots += n
	t.free--
}

// clear evicts all that a segment holds, and frees it.
func (t *table) clear(seg int) {
	s := &t.segs[seg]
	for i := range t.open {
		if t.open[i].seg == seg {
			t.open[i] = closedCursor
		}
	}
	if s.class == 0 {
		return
	}
	for slot := range s.entries {
		if s.entries[slot].meta&metaUsed != 0 {
			t.remove(t.id(seg, slot))
			t.evictions++
		}
	}
	t.slots -= len(s.entries)
	*s = segment{dirty: 1}
	t.free++
}

// encodeIndex writes one index block of a segment into p.
func (t *table) encodeIndex(p []byte, seg, part int) {
	s := &t.segs[seg]
	clear(p[:blockSize])
	h := indexHeader{UUID: t.g.UUID, Segment: uint32(seg), Part: uint16(part), Class: s.class}
	h.encode(p)
	first := min(part*entriesPerBlock, len(s.entries))
	for i := range s.entries[first:min(first+entriesPerBlock, len(s.entries))] {
		e := &s.entries[first+i]
		if e.meta&metaUsed != 0 {
			diskEntry{t.bucketOf(e), e.tag, e.check, e.meta}.encode(p[indexHeaderSize+i*entrySize:])
		}
	}
	sealIndexBlock(p)
}

// load takes up the entries of an index block. A segment takes its class from part 0. What cannot be right is left out.
func (t *table) load(p []byte, seg, part int) {
	s := &t.segs[seg]
	var h indexHeader
	switch ok := h.decode(p, &t.g, seg, part); {
	case !ok && s.class == 0:
		return
	case !ok:
		s.dirty |= 1 << part
		return
	case part == 0 && h.Class != 0 && t.slots+t.g.slotsOf(h.Class) <= t.maxSlots:
		t.assign(seg, h.Class)
		s.dirty = 0
	case h.Class != s.class:
		s.dirty |= 1 << part
		return
	}
	was := s.dirty
	first := min(part*entriesPerBlock, len(s.entries))
	for i := range s.entries[first:min(first+entriesPerBlock, len(s.entries))] {
		var e diskEntry
		e.decode(p[indexHeaderSize+i*entrySize:])
		if e.valid(&t.g, s.class) {
			t.insert(t.id(seg, first+i), e)
		}
	}
	s.dirty = was
}
