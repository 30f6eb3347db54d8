package union

import (
	"fmt"
	"math/bits"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// arena holds the entry arrays of all sector maps of a store, outside the Go heap, whose size would otherwise let the garbage collector wait for as much
// again. Arrays of a class lie together in a slab, without gaps: where one is freed, the slab's last takes its place, and the map that this belongs to is told.
// So what the arena takes from the system beyond what it has handed out is part of a span for each class, however the arrays grew (compare J. M. Robson, "Worst
// Case Fragmentation of First Fit and Best Fit Storage Allocation Strategies", 1977, for allocators that move nothing).
//
// Who looks into an array, or keeps a handle, holds the lock of the map that it belongs to, and no longer: an array may be elsewhere afterwards. alloc and free
// are called with that lock held, and lock the arena after it. To move another map's array takes that map's lock as well, which is tried only: where somebody has it, the
// gap stays until the next alloc or free of the class.
type arena struct {
	chunks atomic.Pointer[[]*arenaChunk]
	mapped *mappedChunks
	used   atomic.Int64 // bytes of arrays handed out

	mu     sync.Mutex
	slabs  [numClasses]slab
	whole  []uint64     // handles of chunks that are in no slab
	parts  []uint8      // by chunk, which of its small spans are in no slab; 0 where it was not cut
	cut    []uint64     // handles of the chunks with such spans
	owners []*sectorMap // by number in the owner field of arrays; 0 is none
	vacant []int        // such numbers without a map
}

// arenaChunk is what is taken from the system at once, and a large span.
type arenaChunk [chunkBytes]byte

const (
	chunkShift = 16
	chunkBytes = 1 << chunkShift
	smallSpan  = chunkBytes / 8 // of arrayClasses of arrays that are not larger than smallArray
	smallArray = smallSpan / 6
	noHandle   = handleMask
)

// slab is where the arrays of a class lie: the first n places of its spans, holes included. A hole has no owner, and the handles of the next and the previous one in
// its first two words.
type slab struct {
	spans []uint64 // handles
	n     int
	holes uint64 // handle of the first, or noHandle
}

func newArena() *arena {
	a := &arena{mapped: new(mappedChunks), owners: []*sectorMap{nil}}
	a.chunks.Store(new([]*arenaChunk))
	for i := range a.slabs {
		a.slabs[i].holes = noHandle
	}
	runtime.AddCleanup(a, (*mappedChunks).unmap, a.mapped)
	return a
}

// mappedChunks are unmapped when the arena is garbage: who may look into it holds it.
type mappedChunks struct{ all [][]byte }

func (c *mappedChunks) add() *arenaChunk {
	mem, err := unix.Mmap(-1, 0, chunkBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil { // as the Go heap ends when it finds no memory
		panic(fmt.Sprintf("union: map %d bytes for the sector map: %v", chunkBytes, err))
	}
	c.all = append(c.all, mem)
	return (*arenaChunk)(unsafe.Pointer(unsafe.SliceData(mem)))
}

func (c *mappedChunks) unmap() {
	for _, mem := range c.all {
		_ = unix.Munmap(mem)
	}
}

// at returns what lies at a handle, to the end of its chunk.
func (a *arena) at(handle uint64) []byte {
	return (*a.chunks.Load())[handle>>chunkShift][handle&(chunkBytes-1):]
}

// join makes a map one that arrays can belong to, and returns its number; leave undoes that when it has none any more.
func (a *arena) join(m *sectorMap) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	if k := len(a.vacant); k > 0 {
		id := a.vacant[k-1]
		a.vacant = a.vacant[:k-1]
		a.owners[id] = m
		return id
	}
	a.owners = append(a.owners, m)
	return len(a.owners) - 1
}

func (a *arena) leave(id int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.owners[id] = nil
	a.vacant = append(a.vacant, id)
}

// alloc returns the handle of an array for a region of the map with the number id. Its content but for the owner is undefined. The caller sets the
// region's word before it unlocks the map.
func (a *arena) alloc(class int, id int, region uint64) uint64 {
	c := &arrayClasses[class]
	a.used.Add(int64(c.size))
	a.mu.Lock()
	defer a.mu.Unlock()
	s := &a.slabs[class]
	h := s.holes
	if h != noHandle {
		a.unlink(s, h)
	} else {
		if s.n == len(s.spans)*c.perSpan {
			s.spans = append(s.spans, a.takeSpan(c))
		}
		h = s.place(c, s.n)
		s.n++
	}
	le.PutUint64(a.at(h)[ownerField:], uint64(id)<<ownerShift|region)
	return h
}

// place is the handle of the i-th array.
func (s *slab) place(c *arrayClass, i int) uint64 {
	return s.spans[i/c.perSpan] + uint64(i%c.perSpan*c.size)
}

// free takes back an array of a map, whose lock the caller holds. Another array, of that map or any, may move to its place.
func (a *arena) free(handle uint64, class int, of *sectorMap) {
	c := &arrayClasses[class]
	a.used.Add(-int64(c.size))
	a.mu.Lock()
	defer a.mu.Unlock()
	s := &a.slabs[class]
	a.link(s, handle)
	for range 2 { // one for this hole, and one for another that was left
		a.shrink(s, c)
		if s.holes == noHandle || !a.fillHole(s, c, of) {
			return
		}
	}
	a.shrink(s, c)
}

// link makes an array a hole.
func (a *arena) link(s *slab, h uint64) {
	b := a.at(h)
	le.PutUint64(b, s.holes)
	le.PutUint64(b[8:], noHandle)
	le.PutUint64(b[ownerField:], 0)
	if s.holes != noHandle {
		le.PutUint64(a.at(s.holes)[8:], h)
	}
	s.holes = h
}

func (a *arena) unlink(s *slab, h uint64) {
	b := a.at(h)
	next, previous := le.Uint64(b), le.Uint64(b[8:])
	if previous == noHandle {
		s.holes = next
	} else {
		le.PutUint64(a.at(previous), next)
	}
	if next != noHandle {
		le.PutUint64(a.at(next)[8:], previous)
	}
}

// shrink ends the slab before the holes at its end.
func (a *arena) shrink(s *slab, c *arrayClass) {
	for s.n > 0 {
		last := s.place(c, s.n-1)
		if le.Uint64(a.at(last)[ownerField:]) != 0 {
			return
		}
		a.unlink(s, last)
		a.pop(s, c)
	}
}

// pop ends the slab before its last place.
func (a *arena) pop(s *slab, c *arrayClass) {
	s.n--
	if s.n%c.perSpan == 0 {
		last := len(s.spans) - 1
		a.giveSpan(s.spans[last], c)
		s.spans = s.spans[:last]
	}
}

// fillHole moves the last array, which is none, into a hole, unless its map is locked by somebody else than who holds the one given.
func (a *arena) fillHole(s *slab, c *arrayClass, held *sectorMap) bool {
	last := s.place(c, s.n-1)
	from := a.at(last)[:c.size]
	owner := le.Uint64(from[ownerField:])
	m, region := a.owners[owner>>ownerShift], owner&(1<<ownerShift-1)
	if m != held {
		if !m.mu.TryLock() {
			return false
		}
		defer m.mu.Unlock()
	}
	w := m.word(region)
	if w>>wordState != wordArray || w&handleMask != last { // it was just made
		return false
	}
	to := s.holes
	a.unlink(s, to)
	copy(a.at(to)[:c.size], from)
	m.setWord(region, w&^handleMask|to)
	a.pop(s, c)
	return true
}

// takeSpan returns the handle of a span for a slab.
func (a *arena) takeSpan(c *arrayClass) uint64 {
	if c.size > smallArray {
		return a.takeChunk()
	}
	if len(a.cut) == 0 {
		h := a.takeChunk()
		a.parts[h>>chunkShift] = 0xff
		a.cut = append(a.cut, h)
	}
	h := a.cut[len(a.cut)-1]
	parts := &a.parts[h>>chunkShift]
	i := bits.TrailingZeros8(*parts)
	if *parts &^= 1 << i; *parts == 0 {
		a.cut = a.cut[:len(a.cut)-1]
	}
	return h + uint64(i*smallSpan)
}

// takeChunk returns the handle of a chunk that is in no slab.
func (a *arena) takeChunk() uint64 {
	if k := len(a.whole); k > 0 {
		h := a.whole[k-1]
		a.whole = a.whole[:k-1]
		return h
	}
	chunks := *a.chunks.Load()
	more := append(chunks, a.mapped.add()) // readers of the shorter slice do not see the new element
	a.chunks.Store(&more)
	a.parts = append(a.parts, 0)
	return uint64(len(chunks)) << chunkShift
}

// giveSpan takes a span back from its slab. Small ones make a chunk again when all of it is there.
func (a *arena) giveSpan(h uint64, c *arrayClass) {
	if c.size > smallArray {
		a.whole = append(a.whole, h)
		return
	}
	first := h &^ (chunkBytes - 1)
	parts := &a.parts[h>>chunkShift]
	if *parts == 0 {
		a.cut = append(a.cut, first)
	}
	if *parts |= 1 << ((h - first) / smallSpan); *parts == 0xff {
		*parts = 0
		i := slices.Index(a.cut, first)
		a.cut = slices.Delete(a.cut, i, i+1)
		a.whole = append(a.whole, first)
	}
}

// bytes is what the arena has taken from the system.
func (a *arena) bytes() int64 { return int64(len(*a.chunks.Load())) * chunkBytes }
