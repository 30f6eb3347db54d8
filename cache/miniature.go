package cache

import (
	"math"
	"math/bits"
	"sync"
)

// sizeClasses is how many sizes slots may have: powers of two from minSlotBytes to segmentBytes.
const sizeClasses = 9

// sizeClassOf returns the number of the smallest size of slots that so many bytes fit in.
func sizeClassOf(bytes int) int {
	return max(0, bits.Len(uint(bytes-1))-bits.Len(uint(minSlotBytes-1)))
}

func classBytes(class int) int { return minSlotBytes << class }

// keys are the sampled chunks that a [curve] knows, each under a number from 1 on, which is the number of its slot in every miniature that holds it.
// They are found by name, in chains that begin at first. Nothing in here has pointers.
type keys struct {
	all   []sampledKey // number 0 is none
	first []uint32     // by name
	free  uint32
	n     int
}

type sampledKey struct {
	name   uint64
	hash   uint32
	stream uint32 // KiB of the stream that it was last fetched in
	next   uint32 // in its chain, or of the free ones
	in     uint16 // the miniatures that hold it, a bit each
	missed uint16 // those that did not when it was last asked for
	class  uint8
}

func newKeys(most int) *keys {
	k := &keys{all: make([]sampledKey, most+1), first: make([]uint32, 1<<bits.Len(uint(most)))}
	k.clear()
	return k
}

func (k *keys) clear() {
	clear(k.all)
	clear(k.first)
	for n := 1; n < len(k.all)-1; n++ {
		k.all[n].next = uint32(n + 1)
	}
	k.free, k.n = 1, 0
}

func (k *keys) chain(name uint64) *uint32 { return &k.first[name&uint64(len(k.first)-1)] }

// find returns the number of a name, or 0.
func (k *keys) find(name uint64) uint32 {
	n := *k.chain(name)
	for n != 0 && k.all[n].name != name {
		n = k.all[n].next
	}
	return n
}

// add gives a name a number, or 0 where there is none left.
func (k *keys) add(name uint64, hash uint32, class uint8) uint32 {
	n := k.free
	if n == 0 {
		return 0
	}
	k.free = k.all[n].next
	first := k.chain(name)
	k.all[n] = sampledKey{name: name, hash: hash, next: *first, class: class}
	*first = n
	k.n++
	return n
}

func (k *keys) remove(n uint32) {
	at := k.chain(k.all[n].name)
	for *at != n {
		at = &k.all[*at].next
	}
	*at = k.all[n].next
	k.all[n] = sampledKey{next: k.free}
	k.free = n
	k.n--
}

// miniature is the memory tier as it would be with another threshold, without its content, and a fraction of its size: it has slots for the sampled chunks alone,
// and as many fewer of them. What goes when it is full is decided by the very code that decides it for [memory]. (Waldspurger and others, Cache Modeling and
// Optimization using Miniature Simulations, USENIX ATC 2017.) It is guarded by the curve's lock.
type miniature struct {
	threshold int64  // that is tried, in bytes
	scan      int64  // a stream of more bytes is a scan
	bit       uint16 // in the keys
	keys      *keys
	gone      func(n uint32) // is called with each key that goes
	entries   []entry        // of all miniatures, those of each key together; this one's are from place on
	place     int
	classes   [sizeClasses]miniClass
	each      int    // one of so many chunks is sampled
	images    uint16 // sizes of chunks that open images have, a bit each

	misses  float64 // requests that it could not have served, of all chunks
	fetched float64 // bytes of the chunks that it would have fetched for them
}

// miniClass is the slots of one size.
type miniClass struct {
	policy   policy
	slots, n int // that it has, and that are in use
	room     int // slots, had it all
	chunks   int // that the memory tier would have room for, had they all this size
}

func newMiniature(p Policy, threshold int64, place int, entries []entry, k *keys, gone func(n uint32)) *miniature {
	m := &miniature{
		threshold: threshold, scan: scanLimit(threshold), bit: 1 << place, keys: k, gone: gone, entries: entries, place: place,
	}
	for i := range m.classes {
		m.classes[i].policy = p.build(m, new(sync.Mutex))
	}
	return m
}

func (m *miniature) entry(id slotID) *entry { return &m.entries[int(id)*len(curveSteps)+m.place] }
func (m *miniature) name(id slotID) uint64  { return m.keys.all[id].name }
func (m *miniature) take(slotID) bool       { return true }

func (m *miniature) classOf(n uint32) *miniClass { return &m.classes[m.keys.all[n].class] }

// fit says that one of so many chunks is sampled, and density times as many by chance, how many bytes digests take in the cache as it is, and which sizes of chunks
// open images have.
func (m *miniature) fit(each int, density float64, digests int64, images uint16) {
	m.each, m.images = each, images
	limit := chunkBytes(m.threshold, min(digests, int64(pageBudget(m.threshold))*pageBytes))
	for i := range m.classes {
		c := &m.classes[i]
		c.chunks = chunksIn(limit, classBytes(i))
		c.room = max(1, int(math.Round(float64(c.chunks)/float64(each)*density)))
		c.policy.resize(c.slots, each)
	}
	for m.used() > 1+rounding {
		m.shrink(m.richest(nil))
	}
}

// chunksIn returns how many chunks of a size memory has room for that may take so many bytes.
func chunksIn(limit int64, bytes int) int {
	c := class{slotBytes: bytes}
	n := limit / c.segmentCost()
	for n > 0 && n*c.segmentCost()+2*indexBytes(bucketsFor(int(n)*c.slotsPerSegment())) > limit {
		n--
	}
	return int(max(n, 0)) * c.slotsPerSegment()
}

// rounding is by how much what is used may be above 1.
const rounding = 1e-6

// used is which part of the limit the slots take.
func (m *miniature) used() (part float64) {
	for i := range m.classes {
		part += m.classes[i].share()
	}
	return part
}

func (c *miniClass) share() float64 {
	if c.slots == 0 {
		return 0
	}
	return float64(c.slots) / float64(c.room)
}

// touch notes a hit.
func (m *miniature) touch(n uint32) { m.classOf(n).policy.touch(m.entry(slotID(n)), slotID(n)) }

// add takes a chunk in.
func (m *miniature) add(n uint32, scan bool) {
	c := m.classOf(n)
	if c.n == c.slots && !m.grow(c) {
		m.rob(c)
	}
	if c.n == c.slots && !m.evict(c) {
		return
	}
	c.n++
	m.keys.all[n].in |= m.bit
	c.policy.add(m.entry(slotID(n)), slotID(n), scan)
}

// evict frees a slot.
func (m *miniature) evict(c *miniClass) bool {
	id := c.policy.victim()
	if id != 0 {
		m.forget(c, uint32(id))
	}
	return id != 0
}

func (m *miniature) forget(c *miniClass, n uint32) {
	c.n--
	m.keys.all[n].in &^= m.bit
	m.gone(n)
}

// remove takes a chunk out that is in.
func (m *miniature) remove(n uint32) {
	c := m.classOf(n)
	c.policy.remove(m.entry(slotID(n)))
	m.forget(c, n)
}

// grow adds a slot to a class where there is room for it.
func (m *miniature) grow(c *miniClass) bool {
	if m.used()+1/float64(c.room) > 1+rounding {
		return false
	}
	m.resize(c, 1)
	return true
}

func (m *miniature) resize(c *miniClass, slots int) {
	c.slots += slots
	c.policy.resize(c.slots, m.each)
}

// shrink takes a slot from a class that has some.
func (m *miniature) shrink(c *miniClass) {
	if c.n == c.slots {
		m.evict(c)
	}
	m.resize(c, -1)
}

// rob lets a class grow that has less than its share, at the cost of another, as that of [memory] does.
func (m *miniature) rob(c *miniClass) {
	for c.share() < m.fairShare() {
		d := m.richest(c)
		if d == nil {
			return
		}
		m.shrink(d)
		if m.grow(c) {
			return
		}
	}
}

// fairShare is which part each class in use may have when all want more.
func (m *miniature) fairShare() float64 { return 1 / float64(max(1, bits.OnesCount16(m.images))) }

// richest returns the class to take from: one that no open image uses, or else the one with most, if that is beyond its share where it is for another, c.
func (m *miniature) richest(c *miniClass) *miniClass {
	var best *miniClass
	for i := range m.classes {
		d := &m.classes[i]
		switch {
		case d == c || d.slots == 0:
		case m.images&(1<<i) == 0:
			return d
		case c != nil && d.share() <= m.fairShare():
		case best == nil || d.share() > best.share():
			best = d
		}
	}
	return best
}

// thin leaves half of the slots, after half of the keys were removed.
func (m *miniature) thin() {
	for i := range m.classes {
		c := &m.classes[i]
		for half := (c.slots + 1) / 2; c.slots > half; {
			m.shrink(c)
		}
	}
}

// coarse reports whether it has room for so few chunks, because not all are sampled, that what it tells is worth little.
func (m *miniature) coarse() bool {
	if m.each == 1 {
		return false
	}
	for i := range m.classes {
		if m.images&(1<<i) != 0 && m.classes[i].room >= coarseRoom {
			return false
		}
	}
	return true
}
