package union

import (
	"hash/crc32"
	"math"
	"math/bits"
	"sync"
	"sync/atomic"
)

// slotAllocator hands out the slots of a store, searched onwards from where the last search ended, so that writes that come
// together lie together.
//
// It keeps two bits per slot: used by anything, and owned by the map of a layer, which is what the store's bitmap pages say. What
// is used and not owned is the map's own blocks and the catalog, slots that requests are writing to, and those
// that wait to be free. Groups of slots that are all free or all owned share one bitmap, so an empty or a full part of a store costs next
// to nothing.
//
// It is safe for concurrent use.
type slotAllocator struct {
	mu     sync.Mutex
	groups []*slotGroup
	free   uint64
	slots  uint64
	cursor uint64 // word to search next
	pages  []bitmapPage
	dirty  atomic.Int64 // pages that a checkpoint has to write
}

const (
	groupWords = 64
	groupSlots = groupWords * 64
	// pageGroups is how many groups a page of the bitmap on the store covers: it has no header, and the catalog its checksum.
	pageGroups = blockSize * 8 / groupSlots
)

// slotGroup is a part of the bitmaps.
type slotGroup struct {
	used, owned [groupWords]uint64
	free        uint16 // slots that are not used
	mine        uint16 // slots that are owned
}

// Groups that many share. They are never changed.
var (
	freeGroup  = &slotGroup{free: groupSlots}
	ownedGroup = func() *slotGroup {
		g := &slotGroup{mine: groupSlots}
		for i := range g.used {
			g.used[i], g.owned[i] = ^uint64(0), ^uint64(0)
		}
		return g
	}()
)

// bitmapPage is where a part of the bitmap of owned slots lies on the store.
type bitmapPage struct {
	slot  uint64 // noSlot: nowhere, because no slot is owned, or all are
	sum   uint32
	full  bool // all are owned
	dirty bool
}

func newSlotAllocator(slots uint64) *slotAllocator {
	a := &slotAllocator{free: slots, slots: slots}
	n := (slots + groupSlots - 1) / groupSlots
	a.groups = make([]*slotGroup, n)
	for i := range a.groups {
		a.groups[i] = freeGroup
	}
	if tail := slots % groupSlots; tail != 0 {
		g := a.change(n - 1)
		g.useFrom(tail)
		g.free = uint16(tail)
	}
	a.pages = make([]bitmapPage, (n+pageGroups-1)/pageGroups)
	for i := range a.pages {
		a.pages[i].slot = noSlot
	}
	return a
}

// useFrom marks all slots of a group from one on as used, which are beyond the store.
func (g *slotGroup) useFrom(slot uint64) {
	g.used[slot/64] |= ^uint64(0) << (slot % 64)
	for w := slot/64 + 1; w < groupWords; w++ {
		g.used[w] = ^uint64(0)
	}
}

// ownsFrom tells whether a slot of the group from one on is owned.
func (g *slotGroup) ownsFrom(slot uint64) bool {
	owned := g.owned[slot/64] >> (slot % 64)
	for _, w := range g.owned[slot/64+1:] {
		owned |= w
	}
	return owned != 0
}

// change returns a group to change.
func (a *slotAllocator) change(i uint64) *slotGroup {
	g := a.groups[i]
	if g == freeGroup || g == ownedGroup {
		c := *g
		g = &c
		a.groups[i] = g
	}
	return g
}

// settle lets a group that is all free or all owned share its bitmap again.
func (a *slotAllocator) settle(i uint64) {
	switch g := a.groups[i]; {
	case g.free == groupSlots:
		a.groups[i] = freeGroup
	case g.mine == groupSlots:
		a.groups[i] = ownedGroup
	}
}

// alloc appends extents with n slots in all to dst, or returns false and takes nothing where that
// would leave fewer than keep free.
func (a *slotAllocator) alloc(dst []extent, n int, keep uint64) ([]extent, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if uint64(n)+keep > a.free {
		return dst, false
	}
	a.free -= uint64(n)
	words := uint64(len(a.groups)) * groupWords
	for w := a.cursor; n > 0; {
		if w >= words {
			w = 0
		}
		i := w / groupWords
		if a.groups[i].free == 0 {
			w = (i + 1) * groupWords
			continue
		}
		free := ^a.groups[i].used[w%groupWords]
		if free == 0 {
			w++
			continue
		}
		g := a.change(i)
		start := bits.TrailingZeros64(free)
		run := min(bits.TrailingZeros64(^(free >> start)), n, 64-start)
		g.used[w%groupWords] |= (^uint64(0) >> (64 - run)) << start
		g.free -= uint16(run)
		dst = appendExtent(dst, w*64+uint64(start), uint32(run))
		n -= run
		a.cursor = w
	}
	return dst, true
}

// appendExtent joins the new slots to the last extent where they follow it and its count can tell them.
func appendExtent(dst []extent, slot uint64, count uint32) []extent {
	if k := len(dst); k > 0 && dst[k-1].Slot+uint64(dst[k-1].Count) == slot && count <= math.MaxUint32-dst[k-1].Count {
		dst[k-1].Count += count
		return dst
	}
	return append(dst, extent{slot, count})
}

// release makes slots free again.
func (a *slotAllocator) release(slot uint64, count uint32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for s := slot; s < slot+uint64(count); s++ {
		g := a.change(s / groupSlots)
		g.used[s%groupSlots/64] &^= 1 << (s % 64)
		g.free++
		if (s+1)%groupSlots == 0 || s+1 == slot+uint64(count) {
			a.settle(s / groupSlots)
		}
	}
	a.free += uint64(count)
}

// claim marks a slot as used and reports whether it had been free and within the store. It is for building the
// bitmap when a store is opened or checked.
func (a *slotAllocator) claim(slot uint64) bool {
	if slot >= a.slots || a.isUsed(slot) {
		return false
	}
	g := a.change(slot / groupSlots)
	g.used[slot%groupSlots/64] |= 1 << (slot % 64)
	g.free--
	a.free--
	return true
}

func (a *slotAllocator) isUsed(slot uint64) bool {
	return a.groups[slot/groupSlots].used[slot%groupSlots/64]&(1<<(slot%64)) != 0
}

func (a *slotAllocator) isOwned(slot uint64) bool {
	return a.groups[slot/groupSlots].owned[slot%groupSlots/64]&(1<<(slot%64)) != 0
}

// own notes that a layer's map names a used slot. The caller holds mu, here and in disown.
func (a *slotAllocator) own(slot uint64) {
	i := slot / groupSlots
	if a.isOwned(slot) {
		return
	}
	g := a.change(i)
	g.owned[slot%groupSlots/64] |= 1 << (slot % 64)
	g.mine++
	if g.mine == groupSlots && g.free == 0 {
		a.settle(i)
	}
	a.markDirty(i / pageGroups)
}

// disown notes that no layer's map names the slot any more. It stays used.
func (a *slotAllocator) disown(slot uint64) {
	if !a.isOwned(slot) {
		return
	}
	i := slot / groupSlots
	g := a.change(i)
	g.owned[slot%groupSlots/64] &^= 1 << (slot % 64)
	g.mine--
	a.markDirty(i / pageGroups)
}

func (a *slotAllocator) markDirty(page uint64) {
	if p := &a.pages[page]; !p.dirty {
		p.dirty = true
		a.dirty.Add(1)
	}
}

// cleanPages counts the pages of the bitmap that disowning the slots makes a checkpoint write.
func (a *slotAllocator) cleanPages(exts []extent) (n uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	counted := map[uint64]bool{}
	for _, e := range exts {
		for page := e.Slot / (pageGroups * groupSlots); page <= (e.Slot+uint64(e.Count)-1)/(pageGroups*groupSlots); page++ {
			if !a.pages[page].dirty && !counted[page] {
				counted[page] = true
				n++
			}
		}
	}
	return n
}

// disownAll is disown for callers that do not hold mu.
func (a *slotAllocator) disownAll(exts []extent) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range exts {
		for i := range uint64(e.Count) {
			a.disown(e.Slot + i)
		}
	}
}

func (a *slotAllocator) freeSlots() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.free
}

// ownedSlots counts the slots that maps name.
func (a *slotAllocator) ownedSlots() (n uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, g := range a.groups {
		n += uint64(g.mine)
	}
	return n
}

// useOwned makes exactly the owned slots used.
func (a *slotAllocator) useOwned() {
	a.free = 0
	for i := range a.groups {
		if g := a.groups[i]; g != freeGroup && g != ownedGroup {
			g.used = g.owned
			g.free = groupSlots - g.mine
		}
		a.settle(uint64(i))
		a.free += uint64(a.groups[i].free)
	}
	n := uint64(len(a.groups))
	if tail := a.slots % groupSlots; tail != 0 {
		g := a.change(n - 1)
		g.useFrom(tail)
		g.free -= uint16(groupSlots - tail)
		a.free -= groupSlots - tail
	}
}

// encodePage writes a page of the bitmap of owned slots and tells whether none or all of its slots are owned.
func (a *slotAllocator) encodePage(index int, p []byte) (none, all bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(p[:blockSize])
	a.pages[index].dirty = false
	a.dirty.Add(-1)
	none, all = true, true
	for i := range uint64(pageGroups) {
		at := uint64(index)*pageGroups + i
		if at >= uint64(len(a.groups)) {
			return none, false
		}
		g := a.groups[at]
		none = none && g.mine == 0
		all = all && g.mine == groupSlots
		if g.mine == 0 {
			continue
		}
		for w, bits := range g.owned {
			le.PutUint64(p[int(i)*groupSlots/8+w*8:], bits)
		}
	}
	return none, all
}

// decodePage takes a page of the bitmap over, and reports whether it owns no slot beyond the store.
func (a *slotAllocator) decodePage(index int, p []byte) bool {
	for i := range uint64(pageGroups) {
		at := uint64(index)*pageGroups + i
		if at >= uint64(len(a.groups)) {
			return isZero(p[int(i)*groupSlots/8 : blockSize])
		}
		part := p[int(i)*groupSlots/8:][:groupSlots/8]
		if isZero(part) {
			continue
		}
		g := new(slotGroup)
		n := 0
		for w := range g.owned {
			g.owned[w] = le.Uint64(part[w*8:])
			n += bits.OnesCount64(g.owned[w])
		}
		if tail := a.slots - at*groupSlots; tail < groupSlots && g.ownsFrom(tail) {
			return false
		}
		g.mine = uint16(n)
		a.groups[at] = g
	}
	return true
}

// ownPage makes all slots of a page owned, and reports whether the store has them all.
func (a *slotAllocator) ownPage(index int) bool {
	first := uint64(index) * pageGroups
	if (first+pageGroups)*groupSlots > a.slots {
		return false
	}
	for i := range uint64(pageGroups) {
		a.groups[first+i] = ownedGroup
	}
	return true
}

// bitmapEntry is what the catalog says of a page of the bitmap: Slot is noSlot where all its slots are owned.
type bitmapEntry struct {
	Index uint32
	Slot  uint64
	CRC   uint32
}

func pageChecksum(p []byte) uint32 { return crc32.Checksum(p[:blockSize], castagnoli) }

// bitmapEntries describes the bitmap as it lies on the store.
func (a *slotAllocator) bitmapEntries() (all []bitmapEntry) {
	for i := range a.pages {
		if p := &a.pages[i]; p.full || p.slot != noSlot {
			all = append(all, bitmapEntry{uint32(i), p.slot, p.sum})
		}
	}
	return all
}

// writeBitmap writes the pages that changed and returns the slots of those that they replace.
func (s *Store) writeBitmap() (old []extent, err error) {
	a := s.slots
	var buf []byte
	for i := range a.pages {
		p := &a.pages[i]
		a.mu.Lock()
		dirty := p.dirty
		a.mu.Unlock()
		if !dirty || seeded(bugBitmapStale) {
			continue
		}
		if buf == nil {
			buf = alignedBuffer(blockSize)
		}
		none, all := a.encodePage(i, buf)
		if p.slot != noSlot {
			old = append(old, extent{p.slot, 1})
		}
		p.slot, p.sum, p.full = noSlot, 0, all
		if none || all {
			continue
		}
		exts, err := s.writeBlocks(buf)
		if err != nil {
			return nil, err
		}
		p.slot, p.sum = exts[0].Slot, pageChecksum(buf)
	}
	return old, nil
}

// readBitmap reads the pages that the catalog names.
func (s *Store) readBitmap(entries []bitmapEntry) error {
	a := newSlotAllocator(s.sb.Slots)
	s.slots = a
	buf := alignedBuffer(blockSize)
	for _, e := range entries {
		if e.Slot == noSlot {
			if !a.ownPage(int(e.Index)) {
				return &CorruptError{"bitmap", -1, "all slots of a page owned that the store does not have"}
			}
			a.pages[e.Index].full = true
			continue
		}
		off := s.sb.slotOffset(e.Slot)
		if _, err := s.disk.ReadAt(buf, off); err != nil {
			return err
		}
		if pageChecksum(buf) != e.CRC {
			return &CorruptError{"bitmap", off, "checksum wrong"}
		}
		if !a.decodePage(int(e.Index), buf) {
			return &CorruptError{"bitmap", off, "slot beyond the store"}
		}
		a.pages[e.Index].slot, a.pages[e.Index].sum = e.Slot, e.CRC
	}
	return nil
}

// bitmapPages is how many pages the bitmap has.
func (a *slotAllocator) bitmapPages() int64 {
	return int64((a.size() + pageGroups*groupSlots - 1) / (pageGroups * groupSlots))
}

// size is how many slots there are.
func (a *slotAllocator) size() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.slots
}

// grow adds free slots at the end, so that there are as many as given. Fewer than there are change nothing.
func (a *slotAllocator) grow(slots uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if slots <= a.slots {
		return
	}
	if a.slots%groupSlots != 0 {
		a.extendGroup(a.slots/groupSlots, a.slots%groupSlots, slots)
	}
	for n := uint64(len(a.groups)); n*groupSlots < slots; n++ {
		a.groups = append(a.groups, freeGroup)
		if slots-n*groupSlots < groupSlots {
			g := a.change(n)
			g.useFrom(slots % groupSlots)
			g.free = uint16(slots % groupSlots)
		}
	}
	for len(a.pages)*pageGroups < len(a.groups) {
		a.pages = append(a.pages, bitmapPage{slot: noSlot})
	}
	a.free += slots - a.slots
	a.slots = slots
}

// extendGroup frees the slots from first on, as far as a store of so many slots has them.
func (a *slotAllocator) extendGroup(i, first, slots uint64) {
	g := a.change(i)
	for s := first; s < groupSlots && i*groupSlots+s < slots; s++ {
		g.used[s/64] &^= 1 << (s % 64)
		g.free++
	}
	a.settle(i)
}
