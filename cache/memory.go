package cache

import (
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// MinMemory is the lowest threshold of the memory tier, in bytes.
	MinMemory = 4 << 20

	// defaultMemory is the highest threshold that is chosen where none is given, defaultShare the part of the machine's memory, one in so many.
	defaultMemory = 2 << 30
	defaultShare  = 8

	// shrinkTime bounds how long it takes to give memory back, and shrinkPause lies between two looks at whether a pinned slot is free.
	shrinkTime  = 10 * time.Second
	shrinkPause = 100 * time.Microsecond
)

var errBusy = errors.New("in use")

// memory is the memory tier. A hit takes no lock: it finds its slot in the index, pins it, and copies. All else is done under a lock, but for the copying.
//
// Chunks of different images may have different sizes. A slot is as large as a chunk of an image that is open, and a segment is cut into slots of one
// size, a class. A class takes segments while there are any, and then from classes that have more than an even share, or that
// no open image uses.
type memory struct {
	policy Policy
	log    *slog.Logger
	slab   *slab
	index  atomic.Pointer[index]
	curve  *curve // is told of hits; nil: nobody is

	machine int64 // bytes of memory that the machine has

	mu       sync.Mutex // guards what follows
	classes  []*class
	limit    int64 // bytes that may be used
	used     int64
	slots    int
	lowest   int // no segment below it is free
	chunks   int
	content  int64 // bytes of the chunks
	inserted uint64
	evicted  uint64
	refused  uint64 // chunks for which there was no slot
}

// class is the slots of one size.
type class struct {
	slotBytes int
	segments  int
	images    int // open ones with chunks of this size
	free      queue
	policy    policy
}

// machineMemory is how much memory this machine has, in bytes.
func machineMemory() (int64, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, fmt.Errorf("ask how much memory the machine has: %w", err)
	}
	return int64(info.Totalram) * int64(info.Unit), nil
}

func newMemory(p Policy, heap int64, log *slog.Logger) (*memory, error) {
	machine, err := machineMemory()
	if err != nil {
		return nil, err
	}
	bytes := machine
	if heap != 0 {
		bytes = heap
	}
	s, err := newSlab(bytes, heap != 0)
	if err != nil {
		return nil, err
	}
	m := &memory{policy: p, log: log, slab: s, machine: machine}
	m.index.Store(newIndex(bucketsFor(0), 0))
	m.used = 2 * indexBytes(bucketsFor(0))
	return m, nil
}

// slot returns a slot that exists.
func (m *memory) slot(id slotID) *slot {
	s, _ := m.index.Load().slot(id)
	return s
}

func (m *memory) entry(id slotID) *entry { return &m.slot(id).entry }
func (m *memory) name(id slotID) uint64  { return nameOf(&m.slot(id).key) }
func (m *memory) take(id slotID) bool    { return m.slot(id).take() }

// read fills p from byte skip of a chunk on, if it is there. It does not allocate, and waits for nothing. asked says that it is a request, and not the second try
// of one.
func (m *memory) read(key *Key, p []byte, skip int, asked bool) bool {
	s, g, id := m.index.Load().pin(key)
	if s == nil {
		return false
	}
	ok := skip+len(p) <= int(s.len)
	if ok {
		g.class.policy.touch(&s.entry, id)
		copy(p, g.content(id.slot())[skip:])
		if asked && m.curve != nil && m.curve.samples(hashOf(key)) {
			m.curve.hit(key, s, g.class)
		}
	}
	s.unpin()
	return ok
}

// insert adds a chunk, unless it is there or there is no slot for it. scan says that it is read in passing.
func (m *memory) insert(key *Key, content []byte, scan bool) {
	m.mu.Lock()
	if m.index.Load().has(key) {
		m.mu.Unlock()
		return
	}
	c := m.classFor(len(content))
	id := m.obtain(c)
	if id == 0 {
		m.refused++
		m.mu.Unlock()
		return
	}
	s, g := m.index.Load().slot(id)
	m.mu.Unlock()
	copy(g.content(id.slot()), content)
	m.mu.Lock()
	defer m.mu.Unlock()
	if x := m.index.Load(); x.has(key) || !x.add(key, id) {
		c.free.push(&s.entry, id)
		m.refused++
		return
	}
	s.key, s.len = *key, uint32(len(content))
	c.policy.add(&s.entry, id, scan)
	s.publish()
	m.inserted++
	m.chunks++
	m.content += int64(len(content))
}

// classFor returns the class for a chunk: that of the smallest chunks of open images that it fits in. The last chunk of an image is shorter than others.
func (m *memory) classFor(n int) *class {
	var best *class
	for _, c := range m.classes {
		if c.images > 0 && c.slotBytes >= n && (best == nil || c.slotBytes < best.slotBytes) {
			best = c
		}
	}
	if best != nil {
		return best
	}
	return m.classOf(max(minSlotBytes, 1<<bits.Len(uint(n-1))))
}

// classOf returns the class with a size of slots.
func (m *memory) classOf(slotBytes int) *class {
	for _, c := range m.classes {
		if c.slotBytes == slotBytes {
			return c
		}
	}
	c := &class{slotBytes: slotBytes, policy: m.policy.build(m, &m.mu)}
	c.free = queue{of: m, kind: queueFree}
	m.classes = append(m.classes, c)
	return c
}

// use counts the open images with chunks of a size.
func (m *memory) use(slotBytes, images int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.classOf(slotBytes).images += images
	if m.curve == nil {
		return
	}
	sizes := uint32(0)
	for _, c := range m.classes {
		if c.images > 0 {
			sizes |= 1 << sizeClassOf(c.slotBytes)
		}
	}
	m.curve.images.Store(sizes)
}

// obtain returns a slot that is taken and in no queue, or 0.
func (m *memory) obtain(c *class) slotID {
	if c.free.n == 0 && !m.grow(c) {
		m.rob(c)
	}
	if id := c.free.tail; id != 0 {
		c.free.remove(m.entry(id))
		return id
	}
	id := c.policy.victim()
	if id != 0 {
		m.forget(m.slot(id), id)
	}
	return id
}

// forget counts a slot that was taken as evicted.
func (m *memory) forget(s *slot, id slotID) {
	m.index.Load().remove(&s.key, id)
	m.evicted++
	m.chunks--
	m.content -= int64(s.len)
}

func (c *class) slotsPerSegment() int { return segmentBytes / c.slotBytes }

// segmentCost is what a segment takes, with what is known of its slots. What is on the Go heap counts twice, because garbage of as much may stand beside it.
func (c *class) segmentCost() int64 {
	return segmentBytes + int64(c.slotsPerSegment())*2*(slotMeta+ghostBytes)
}

// grow adds a segment to a class, if the threshold leaves room for it.
func (m *memory) grow(c *class) bool {
	x := m.index.Load()
	buckets := max(x.buckets(), bucketsFor(m.slots+c.slotsPerSegment()))
	more := c.segmentCost() + 2*(indexBytes(buckets)-indexBytes(x.buckets()))
	number := m.freeSegment(x)
	if m.used+more > m.limit || number < 0 {
		return false
	}
	mem, err := m.slab.use(number)
	if err != nil {
		m.log.Warn("cache gets no more memory", "error", err)
		return false
	}
	if buckets > x.buckets() {
		x = x.grown(buckets, len(x.segments))
		m.index.Store(x)
	}
	g := &segment{mem: mem, class: c, slots: make([]slot, c.slotsPerSegment())}
	for i := range g.slots {
		g.slots[i].state.Store(taken)
	}
	x.segments[number].Store(g)
	for i := range g.slots {
		c.free.push(&g.slots[i].entry, makeSlotID(number, i))
	}
	m.used += more
	m.resized(c, 1)
	return true
}

func (m *memory) resized(c *class, segments int) {
	c.segments += segments
	m.slots += segments * c.slotsPerSegment()
	c.policy.resize(c.segments*c.slotsPerSegment(), 1)
}

// freeSegment returns the lowest segment that is not in use, or -1.
func (m *memory) freeSegment(x *index) int {
	for ; m.lowest < len(x.segments); m.lowest++ {
		if x.segments[m.lowest].Load() == nil {
			return m.lowest
		}
	}
	return -1
}

// rob lets a class grow that has less than its share, at the cost of another.
func (m *memory) rob(c *class) {
	share := m.share()
	if c.segments >= share {
		return
	}
	for range 2 { // what is known of small slots takes room of its own
		d := m.richest(c, share)
		if d == nil || !m.shrink(d) || m.grow(c) {
			return
		}
	}
}

// share is how many segments each class in use may have when all want more.
func (m *memory) share() int {
	inUse := 0
	for _, c := range m.classes {
		if c.images > 0 {
			inUse++
		}
	}
	return int(m.limit / segmentBytes / int64(max(1, inUse)))
}

// richest returns the class to take from: one that no open image uses, or else the one with most beyond its share; not c.
func (m *memory) richest(c *class, share int) *class {
	var best *class
	for _, d := range m.classes {
		switch {
		case d == c || d.segments == 0:
		case d.images == 0:
			return d
		case d.segments > share && (best == nil || d.segments > best.segments):
			best = d
		}
	}
	return best
}

// shrink takes a segment from a class, if one is not in use.
func (m *memory) shrink(c *class) bool {
	x := m.index.Load()
	for number := len(x.segments) - 1; number >= 0; number-- {
		if g := x.segments[number].Load(); g != nil && g.class == c && m.give(x, g, number) == nil {
			return true
		}
	}
	return false
}

// give gives a segment back to the system. It fails with [errBusy] where a slot is pinned, or filled just now.
func (m *memory) give(x *index, g *segment, number int) error {
	for i := range g.slots {
		if err := m.clear(g, makeSlotID(number, i)); err != nil {
			for j := range i { // they are empty now
				g.class.free.push(&g.slots[j].entry, makeSlotID(number, j))
			}
			return err
		}
	}
	x.segments[number].Store(nil)
	m.lowest = min(m.lowest, number)
	m.used -= g.class.segmentCost()
	m.resized(g.class, -1)
	if err := m.slab.release(number); err != nil {
		m.log.Warn("cache cannot give memory back", "error", err)
	}
	return nil
}

// clear takes a slot, and takes it out of its queue.
func (m *memory) clear(g *segment, id slotID) error {
	s := &g.slots[id.slot()]
	switch {
	case s.queue == queueFree:
		g.class.free.remove(&s.entry)
	case s.queue == queueNone || !s.take():
		return errBusy
	default:
		g.class.policy.remove(&s.entry)
		m.forget(s, id)
	}
	return nil
}

// setLimit sets how many bytes may be used, and gives back what is used beyond that.
func (m *memory) setLimit(bytes int64) error {
	m.mu.Lock()
	m.limit = bytes
	if x, most := m.index.Load(), int(min(bytes/segmentBytes, int64(m.slab.segments()))); most > len(x.segments) {
		m.index.Store(x.grown(x.buckets(), most))
	}
	m.mu.Unlock()
	// Who has pinned a slot copies a chunk, so it is not long. Nobody tells when it is done, as that would make every hit slower.
	for end := time.Now().Add(shrinkTime); !m.fits(); time.Sleep(shrinkPause) {
		if time.Now().After(end) {
			return fmt.Errorf("shrink cache to %d bytes: %w for %s", bytes, errBusy, shrinkTime)
		}
	}
	return nil
}

// fits gives segments back until the limit is kept, and reports whether that could be done.
func (m *memory) fits() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.used > m.limit {
		c := m.richest(nil, m.share())
		if c == nil {
			c = m.largest()
		}
		if c == nil || !m.shrink(c) {
			return c == nil
		}
	}
	return true
}

// largest returns the class with the most segments, or nil where there are none.
func (m *memory) largest() *class {
	var best *class
	for _, c := range m.classes {
		if c.segments > 0 && (best == nil || c.segments > best.segments) {
			best = c
		}
	}
	return best
}

// drop forgets everything that is not pinned. The memory stays.
func (m *memory) drop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	x := m.index.Load()
	for number := range x.segments {
		g := x.segments[number].Load()
		if g == nil {
			continue
		}
		for i := range g.slots {
			id := makeSlotID(number, i)
			if g.slots[i].queue != queueFree && m.clear(g, id) == nil {
				g.class.free.push(&g.slots[i].entry, id)
			}
		}
	}
}

func (m *memory) close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.limit = 0
	m.index.Store(newIndex(bucketsFor(0), 0))
	return m.slab.close()
}

// MemoryStats is what the memory tier holds and did.
type MemoryStats struct {
	ThresholdBytes int64  `json:"threshold_bytes"`
	UsedBytes      int64  `json:"used_bytes"`    // with what is known of the chunks
	ContentBytes   int64  `json:"content_bytes"` // of chunks
	Chunks         int    `json:"chunks"`
	Inserted       uint64 `json:"inserted"`
	Evictions      uint64 `json:"evictions"`
	Refused        uint64 `json:"refused"` // chunks for which there was no room: all slots were being read or filled
}

func (m *memory) stats() MemoryStats {
	m.mu.Lock()
	defer m.mu.Unlock()
	return MemoryStats{UsedBytes: m.used, ContentBytes: m.content, Chunks: m.chunks, Inserted: m.inserted, Evictions: m.evicted, Refused: m.refused}
}
