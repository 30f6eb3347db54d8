package cache

import (
	"encoding/binary"
	"math/bits"
	"sync/atomic"
)

// index finds slots by key. It has no pointers, and is read without a lock: what it says is a hint, and the slot's key decides. An entry is
// 32 bits of the key, and the slot; 0 is none. Eight entries, a line of the CPU's cache, are a bucket, and a key is in one of two. It is
// written under the memory's lock. A larger one takes its place when it is full.
type index struct {
	entries  []atomic.Uint64
	mask     uint64 // of bucket numbers
	segments []atomic.Pointer[segment]
}

const (
	bucketSize = 8
	// fullBucket is how many entries the first bucket of a key has before the second is looked at.
	fullBucket = 6
	// slotsPerBucket is how many slots an index has at most for each bucket. With the choice of two, buckets of eight hardly ever overflow then.
	slotsPerBucket = 4
)

// bucketsFor is how many buckets an index over so many slots has.
func bucketsFor(slots int) int {
	n := max(slots/slotsPerBucket, 16)
	return 1 << bits.Len(uint(n-1))
}

func indexBytes(buckets int) int64 { return int64(buckets) * bucketSize * 8 }

func newIndex(buckets, segments int) *index {
	return &index{
		entries:  make([]atomic.Uint64, buckets*bucketSize),
		mask:     uint64(buckets - 1),
		segments: make([]atomic.Pointer[segment], segments),
	}
}

func (x *index) buckets() int { return int(x.mask) + 1 }

// The digest is as random as a hash: its first words say where it is.
func (x *index) bucket(key *Key, choice int) []atomic.Uint64 {
	h := binary.LittleEndian.Uint64(key[choice*8:]) & x.mask
	return x.entries[h*bucketSize:][:bucketSize:bucketSize]
}

// nameOf returns what a policy knows a key by.
func nameOf(key *Key) uint64 { return binary.LittleEndian.Uint64(key[16:]) }

func tagOf(key *Key) uint64 { return nameOf(key) << 32 }

const tagMask = uint64(0xffffffff) << 32

// pin returns the slot with a key's content, which the caller unpins, and its segment; nil where there is none.
func (x *index) pin(key *Key) (*slot, *segment, slotID) {
	tag := tagOf(key)
	for choice := range 2 {
		b := x.bucket(key, choice)
		for i := range b {
			e := b[i].Load()
			if e&tagMask != tag || slotID(e) == 0 {
				continue
			}
			id := slotID(e)
			if s, g := x.slot(id); s != nil {
				if s.pin() && s.key == *key {
					return s, g, id
				}
				s.unpin()
			}
		}
	}
	return nil, nil, 0
}

// slot returns what an entry names, or nil: a segment may be gone since, and its number may have another one.
func (x *index) slot(id slotID) (*slot, *segment) {
	g := x.segments[id.segment()].Load()
	if g == nil || id.slot() >= len(g.slots) {
		return nil, nil
	}
	return &g.slots[id.slot()], g
}

// has reports whether a key is in the index.
func (x *index) has(key *Key) bool {
	s, _, _ := x.pin(key)
	if s == nil {
		return false
	}
	s.unpin()
	return true
}

// add reports whether there was room for a key.
func (x *index) add(key *Key, id slotID) bool {
	first, second := x.bucket(key, 0), x.bucket(key, 1)
	n, place := fill(first)
	if n >= fullBucket {
		if m, other := fill(second); m < n {
			n, place = m, other
		}
	}
	if n == bucketSize {
		return false
	}
	place.Store(tagOf(key) | uint64(id))
	return true
}

// fill counts the entries of a bucket, and returns an empty one.
func fill(b []atomic.Uint64) (n int, empty *atomic.Uint64) {
	for i := range b {
		if b[i].Load() != 0 {
			n++
		} else {
			empty = &b[i]
		}
	}
	return n, empty
}

func (x *index) remove(key *Key, id slotID) {
	for choice := range 2 {
		b := x.bucket(key, choice)
		for i := range b {
			if b[i].Load() == tagOf(key)|uint64(id) {
				b[i].Store(0)
				return
			}
		}
	}
}

// grown returns an index with the same slots and more room.
func (x *index) grown(buckets, segments int) *index {
	y := newIndex(buckets, segments)
	for i := range x.segments {
		y.segments[i].Store(x.segments[i].Load())
	}
	for i := range x.entries {
		if id := slotID(x.entries[i].Load()); id != 0 {
			if s, _ := x.slot(id); s != nil {
				y.add(&s.key, id)
			}
		}
	}
	return y
}
