package cache

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// segmentBytes is what memory is taken and given back by: as much as the largest chunk.
	segmentBytes = 1 << 20
	// minSlotBytes is the smallest slot: no chunk but the last of an image is shorter.
	minSlotBytes = 4 << 10
)

// slab is a range of addresses, of which segments take memory when they are in use.
type slab struct {
	base []byte
	heap bool // on the Go heap, which the race detector sees
}

// newSlab reserves addresses, which costs nothing.
func newSlab(bytes int64, heap bool) (*slab, error) {
	n := int((bytes + segmentBytes - 1) / segmentBytes * segmentBytes)
	if heap {
		return &slab{base: make([]byte, n), heap: true}, nil
	}
	base, err := unix.Mmap(-1, 0, n, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("reserve %d bytes of addresses for the cache: %w", n, err)
	}
	return &slab{base: base}, nil
}

func (s *slab) segments() int { return len(s.base) / segmentBytes }

func (s *slab) segment(n int) []byte {
	return s.base[n*segmentBytes : (n+1)*segmentBytes : (n+1)*segmentBytes]
}

// use makes the memory of a segment usable.
func (s *slab) use(n int) ([]byte, error) {
	mem := s.segment(n)
	if s.heap {
		return mem, nil
	}
	return mem, unix.Mprotect(mem, unix.PROT_READ|unix.PROT_WRITE)
}

// release gives the memory of a segment back to the system. Mapping over it works where memory is locked, too.
func (s *slab) release(n int) error {
	mem := s.segment(n)
	if s.heap {
		clear(mem)
		return nil
	}
	_, err := unix.MmapPtr(-1, 0, unsafe.Pointer(unsafe.SliceData(mem)), segmentBytes, unix.PROT_NONE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE|unix.MAP_FIXED)
	return err
}

func (s *slab) close() error {
	if s.heap || s.base == nil {
		return nil
	}
	base := s.base
	s.base = nil
	return unix.Munmap(base)
}

// slotID names a slot: the number of its segment, plus one, and its number there. 0 is none.
type slotID uint32

const (
	slotShift = 8 // of the segment
	slotMask  = 1<<slotShift - 1
)

func makeSlotID(segment, slot int) slotID { return slotID(segment+1)<<slotShift | slotID(slot) }
func (id slotID) segment() int            { return int(id>>slotShift) - 1 }
func (id slotID) slot() int               { return int(id & slotMask) }

// taken is set in the state of a slot whose content may change. The other bits count who has pinned it.
const taken = 1 << 31

// slot says what is in a slot. A slot that is free, is filled or was evicted is taken. Its key and length are written then, and read by who has pinned it, or
// under the memory's lock while it is not taken.
type slot struct {
	key   Key
	state atomic.Uint32
	len   uint32
	entry               // guarded by the memory's lock, but for the marks
	seen  atomic.Uint32 // where the curve's queue was when a read of this slot was last put there
}

// pin keeps the content of a slot as it is until unpin, and reports whether it has any. unpin is called either way. A slot is only taken when nobody
// pins it, so who sees it pinned and not taken reads what was there before, or after, and never what is being written.
func (s *slot) pin() bool { return s.state.Add(1)&taken == 0 }

func (s *slot) unpin() { s.state.Add(^uint32(0)) }

// take makes a slot free for other content, if nobody pins it.
func (s *slot) take() bool { return s.state.CompareAndSwap(0, taken) }

// publish ends what take began. Pins of those who are about to find out that it was taken stay counted.
func (s *slot) publish() { s.state.Add(^uint32(taken) + 1) }

// segment is memory that is cut into slots of one size. The collector keeps it for who still looks at it after its memory is gone: all its slots are
// taken then.
type segment struct {
	mem   []byte
	class *class
	slots []slot
}

// content is the memory of a slot.
func (g *segment) content(slot int) []byte {
	return g.mem[slot*g.class.slotBytes:][:g.class.slotBytes]
}

const slotMeta = int64(unsafe.Sizeof(slot{}))
