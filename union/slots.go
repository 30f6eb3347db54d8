package union

import (
	"math"
	"math/bits"
	"sync"
)

// slotAllocator hands out the slots of a store: a bitmap with a count of free slots per group,
// searched onwards from where the last search ended, so that writes that come together
// lie together. It costs one bit per slot of memory.
//
// It is safe for concurrent use.
type slotAllocator struct {
	mu     sync.Mutex
	used   []uint64
	groups []uint16 // free slots in each group of groupWords words
	free   uint64
	slots  uint64
	cursor uint64 // word to search next
}

const groupWords = 64

func newSlotAllocator(slots uint64) *slotAllocator {
	words := (slots + 63) / 64
	a := &slotAllocator{
		used:   make([]uint64, words),
		groups: make([]uint16, (words+groupWords-1)/groupWords),
		free:   slots,
		slots:  slots,
	}
	for i := range a.groups {
		a.groups[i] = uint16(min(slots-uint64(i)*groupWords*64, groupWords*64))
	}
	if tail := slots % 64; tail != 0 {
		a.used[words-1] = ^uint64(0) << tail
	}
	return a
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
	words := uint64(len(a.used))
	for w := a.cursor; n > 0; {
		if w >= words {
			w = 0
		}
		if w%groupWords == 0 && a.groups[w/groupWords] == 0 {
			w += groupWords
			continue
		}
		free := ^a.used[w]
		if free == 0 {
			w++
			continue
		}
		start := bits.TrailingZeros64(free)
		run := min(bits.TrailingZeros64(^(free >> start)), n, 64-start)
		a.used[w] |= (^uint64(0) >> (64 - run)) << start
		a.groups[w/groupWords] -= uint16(run)
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
	for i := uint64(0); i < uint64(count); i++ {
		s := slot + i
		a.used[s/64] &^= 1 << (s % 64)
		a.groups[s/64/groupWords]++
	}
	a.free += uint64(count)
	a.mu.Unlock()
}

// claim marks a slot as used and reports whether it had been free and within the store. It is for building the
// bitmap from the map when a store is opened or checked.
func (a *slotAllocator) claim(slot uint64) bool {
	if slot >= a.slots || a.used[slot/64]&(1<<(slot%64)) != 0 {
		return false
	}
	a.used[slot/64] |= 1 << (slot % 64)
	a.groups[slot/64/groupWords]--
	a.free--
	return true
}

func (a *slotAllocator) freeSlots() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.free
}
