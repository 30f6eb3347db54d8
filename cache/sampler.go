package cache

import (
	"encoding/binary"
	"sync/atomic"
)

// accessKind says what a request for a chunk was.
type accessKind uint8

const (
	accessHit    accessKind = iota // memory had it
	accessMiss                     // it was fetched
	accessJoined                   // somebody fetched it already, and the request waited with him
	accessPast                     // memory did not have it, and was not given it
	accessFill                     // memory was given it, or had it, and nobody asked for it
)

// access is a request for a sampled chunk.
type access struct {
	name   uint64
	hash   uint32
	stream uint32 // KiB of the stream that the request was a part of
	class  uint8  // of its size
	kind   accessKind
}

// hashBits is how many bits of a key decide whether it is sampled. They have no other use, so that those that are sampled are spread evenly wherever keys lead.
const hashBits = 32

func hashOf(key *Key) uint32 { return binary.LittleEndian.Uint32(key[24:]) }

const (
	// samplerSize is how many accesses wait at most, samplerBatch how many are worked off together, both powers of two.
	samplerSize  = 1 << 10
	samplerBatch = 1 << 6
)

// sampler picks the requests for some chunks, always the same, out of all requests, and keeps them in order until a curve has taken them. (Waldspurger and others,
// Efficient MRC Construction with SHARDS, USENIX FAST 2015.) To put one in takes no lock and allocates nothing. It is a bounded queue after Vyukov: the number of
// a place says whose turn it is.
type sampler struct {
	below atomic.Uint64 // keys are sampled whose hash is less
	_     [56]byte      // what follows is written all the time

	tail   atomic.Uint64
	_      [56]byte
	head   uint64 // guarded by the curve's lock
	lost   atomic.Uint64
	places [samplerSize]samplerPlace
}

type samplerPlace struct {
	turn atomic.Uint64
	access
}

func (s *sampler) init() {
	s.below.Store(1 << hashBits)
	for i := range s.places {
		s.places[i].turn.Store(uint64(i))
	}
}

// samples reports whether a key is one of those.
func (s *sampler) samples(hash uint32) bool { return uint64(hash) < s.below.Load() }

// put reports where an access is, from 1 on, or 0 where there is no room for it.
func (s *sampler) put(a access) uint64 {
	for {
		at := s.tail.Load()
		p := &s.places[at%samplerSize]
		switch turn := p.turn.Load(); {
		case turn == at:
			if s.tail.CompareAndSwap(at, at+1) {
				p.access = a
				p.turn.Store(at + 1)
				return at + 1
			}
		case turn < at:
			s.lost.Add(1)
			return 0
		}
	}
}

// next takes the oldest access out. It is called with the curve's lock held.
func (s *sampler) next() (access, bool) {
	p := &s.places[s.head%samplerSize]
	if p.turn.Load() != s.head+1 {
		return access{}, false
	}
	a := p.access
	p.turn.Store(s.head + samplerSize)
	s.head++
	return a, true
}
