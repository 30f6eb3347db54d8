package cache

import (
	"fmt"
	"strings"
	"sync/atomic"
)

// Policy names what decides which chunk goes when memory is full.
type Policy string

// Policies. docs/figures-cache.md compares them.
const (
	// S3FIFO weighs recency and frequency: what is new waits in a small queue, and only what is read again there, or soon after it went, gets into the
	// main one. What is read once, such as a scan, passes through the small queue. It is the default.
	S3FIFO Policy = "s3fifo"
	// CLOCK gives what was read since the hand came by another round.
	CLOCK Policy = "clock"
	// LRU drops what was not read for the longest time. A hit takes a lock.
	LRU Policy = "lru"
)

// Policies returns the names of all.
func Policies() []Policy { return []Policy{S3FIFO, CLOCK, LRU} }

// policy orders the slots of one class. All but touch is called with the memory's lock held.
type policy interface {
	// touch notes a hit. The caller has pinned the slot.
	touch(s *slot, id slotID)
	// add takes a slot with new content.
	add(s *slot, id slotID)
	// remove forgets a slot.
	remove(s *slot)
	// victim takes the slot that is to go next, and forgets it. It returns 0 where all are pinned.
	victim() slotID
	// resize says how many slots there are.
	resize(slots int)
}

func (p Policy) validate() error {
	all := Policies()
	names := make([]string, len(all))
	for i, known := range all {
		if p == known {
			return nil
		}
		names[i] = string(known)
	}
	return fmt.Errorf("policy %q is not known: give %s", string(p), strings.Join(names, ", "))
}

func (p Policy) build(m *memory) policy {
	switch p {
	case CLOCK:
		return &s3fifo{main: queue{m: m, kind: queueMain}, small: queue{m: m, kind: queueSmall}, most: 1, direct: true}
	case LRU:
		return &lru{m: m, order: queue{m: m, kind: queueMain}}
	default:
		return &s3fifo{main: queue{m: m, kind: queueMain}, small: queue{m: m, kind: queueSmall}, most: 3}
	}
}

// s3fifo is S3-FIFO (Yang and others, SOSP 2023), and CLOCK where all is added to the main queue.
//
// A guest reads a chunk in pieces, so that the first read of it comes with more at once. They are one: a read counts when some other chunks were added since
// the one before. The marks of a slot are when it was last read, in periods of so many additions, and how often, in the lowest two bits.
type s3fifo struct {
	period atomic.Uint32 // the present one
	most   uint32        // reads that are counted

	small, main queue
	ghosts      ghosts
	direct      bool // there is no small queue
	slots       int
	added       int // in this period
}

const (
	readBits = 2
	readMask = 1<<readBits - 1
	// smallShare is the part of the slots that the small queue has when memory is full: one in so many.
	smallShare = 10
	// A period is as many additions as a part of the slots, one in periodShare, and at most longestPeriod.
	periodShare   = 128
	longestPeriod = 64
	// apart is how many periods lie between two reads that both count, at least.
	apart = 2
)

func (p *s3fifo) touch(s *slot, _ slotID) {
	marks, now := s.marks.Load(), p.period.Load()
	if (now-marks>>readBits)&(1<<(32-readBits)-1) >= apart {
		s.marks.Store(now<<readBits | min(marks&readMask+1, p.most))
	}
}

func (p *s3fifo) add(s *slot, id slotID) {
	if p.added++; p.added > min(p.slots/periodShare, longestPeriod) {
		p.added = 0
		p.period.Add(1)
	}
	s.marks.Store(p.period.Load() << readBits)
	if p.direct || p.ghosts.take(&s.key) {
		p.main.push(s, id)
		return
	}
	p.small.push(s, id)
}

func (p *s3fifo) of(s *slot) *queue {
	if s.queue == queueSmall {
		return &p.small
	}
	return &p.main
}

func (p *s3fifo) remove(s *slot) { p.of(s).remove(s) }

func (p *s3fifo) resize(slots int) { p.slots = slots }

func (p *s3fifo) victim() slotID {
	// Each slot is seen once for every read that it was granted, and once more; those that are pinned come back meanwhile.
	for range (p.small.n + p.main.n) * (int(p.most) + 2) {
		var id slotID
		if p.small.n > 0 && (p.small.n > p.slots/smallShare || p.main.n == 0) {
			id = p.fromSmall()
		} else {
			id = p.fromMain()
		}
		if id != 0 {
			return id
		}
	}
	return 0
}

func (p *s3fifo) fromSmall() slotID {
	id := p.small.tail
	s := p.small.m.slot(id)
	if marks := s.marks.Load(); marks&readMask > 0 {
		p.small.remove(s)
		s.marks.Store(marks &^ readMask)
		p.main.push(s, id)
		return 0
	}
	if !s.take() {
		p.small.requeue(s, id)
		return 0
	}
	p.small.remove(s)
	p.ghosts.add(&s.key, p.slots)
	return id
}

func (p *s3fifo) fromMain() slotID {
	id := p.main.tail
	if id == 0 {
		return 0
	}
	s := p.main.m.slot(id)
	if marks := s.marks.Load(); marks&readMask > 0 {
		s.marks.Store(marks - 1)
		p.main.requeue(s, id)
		return 0
	}
	if !s.take() {
		p.main.requeue(s, id)
		return 0
	}
	p.main.remove(s)
	return id
}

// lru is here to be compared with.
type lru struct {
	m     *memory
	order queue
}

func (p *lru) touch(s *slot, id slotID) {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	p.order.requeue(s, id)
}

func (p *lru) add(s *slot, id slotID) { p.order.push(s, id) }
func (p *lru) remove(s *slot)         { p.order.remove(s) }
func (p *lru) resize(int)             {}

func (p *lru) victim() slotID {
	for range p.order.n {
		id := p.order.tail
		s := p.m.slot(id)
		if s.take() {
			p.order.remove(s)
			return id
		}
		p.order.requeue(s, id)
	}
	return 0
}
