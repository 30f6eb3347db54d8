package cache

import (
	"fmt"
	"strings"
	"sync"
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

// policy orders the slots of one class. All but touch is called with the lock of their store held.
type policy interface {
	// touch notes a hit. The caller has pinned the slot.
	touch(s *entry, id slotID)
	// add takes a slot with new content. scan says that it was read in passing.
	add(s *entry, id slotID, scan bool)
	// remove forgets a slot.
	remove(s *entry)
	// victim takes the slot that is to go next, and forgets it. It returns 0 where all are pinned.
	victim() slotID
	// resize says how many slots there are, and for how many of a cache each of them stands: 1, but in a [miniature].
	resize(slots, each int)
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

// build makes a policy for slots of a store whose lock is mu.
func (p Policy) build(of store, mu *sync.Mutex) policy {
	switch p {
	case CLOCK:
		return newS3FIFO(of, 1, true)
	case LRU:
		return &lruOrder{of: of, mu: mu, order: queue{of: of, kind: queueMain}}
	default:
		return newS3FIFO(of, 3, false)
	}
}

// s3fifo is S3-FIFO (Yang and others, SOSP 2023), and CLOCK where all is added to the main queue.
//
// A guest reads a chunk in pieces, so that the first read of it comes with more at once. They are one: a read counts when some other chunks were added since
// the one before. What a long sequential stream reads is known to be a scan, and has a queue of its own that goes first: it passes by even where all
// that was there before was read just once. The marks of a slot are when it was last read, in periods of so many additions, and how often, in the lowest two bits.
type s3fifo struct {
	of     store
	period atomic.Uint32 // the present one
	most   uint32        // reads that are counted

	passing, small, main queue
	ghosts               ghosts
	direct               bool // all is added to the main queue
	slots, each          int
	added                int // in this period
}

const (
	readBits = 2
	readMask = 1<<readBits - 1
	// smallShare is the part of the slots that the small queue has when memory is full: one in so many.
	smallShare = 10
	// passingShare is that of what is read in passing.
	passingShare = 32
	// A period is as many additions as a part of the slots, one in periodShare, and at most longestPeriod.
	periodShare   = 128
	longestPeriod = 64
	// apart is how many periods lie between two reads that both count, at least.
	apart = 2
)

func newS3FIFO(of store, most uint32, direct bool) *s3fifo {
	return &s3fifo{
		of: of, passing: queue{of: of, kind: queuePassing}, small: queue{of: of, kind: queueSmall}, main: queue{of: of, kind: queueMain},
		most: most, direct: direct, each: 1,
	}
}

func (p *s3fifo) touch(s *entry, _ slotID) {
	marks, now := s.marks.Load(), p.period.Load()
	if (now-marks>>readBits)&(1<<(32-readBits)-1) >= apart {
		s.marks.Store(now<<readBits | min(marks&readMask+1, p.most))
	}
}

func (p *s3fifo) add(s *entry, id slotID, scan bool) {
	p.added += p.each
	if period := min(p.slots*p.each/periodShare, longestPeriod) + 1; p.added >= period {
		p.period.Add(uint32(p.added / period))
		p.added %= period
	}
	s.marks.Store(p.period.Load() << readBits)
	switch {
	case p.direct:
		p.main.push(s, id)
	case scan:
		p.passing.push(s, id)
	case p.ghosts.take(p.of.name(id)):
		p.main.push(s, id)
	default:
		p.small.push(s, id)
	}
}

func (p *s3fifo) queueOf(s *entry) *queue {
	switch s.queue {
	case queuePassing:
		return &p.passing
	case queueSmall:
		return &p.small
	default:
		return &p.main
	}
}

func (p *s3fifo) remove(s *entry) { p.queueOf(s).remove(s) }

func (p *s3fifo) resize(slots, each int) { p.slots, p.each = slots, each }

func (p *s3fifo) victim() slotID {
	// Each slot is seen once for every read that it was granted, and once more; those that are pinned come back meanwhile.
	for range (p.passing.n + p.small.n + p.main.n) * (int(p.most) + 2) {
		var id slotID
		switch {
		case p.passing.n > p.slots/passingShare, p.passing.n > 0 && p.small.n+p.main.n == 0:
			id = p.fromNew(&p.passing)
		case p.small.n > p.slots/smallShare, p.small.n > 0 && p.main.n == 0:
			id = p.fromNew(&p.small)
		default:
			id = p.fromMain()
		}
		if id != 0 {
			return id
		}
	}
	return 0
}

// fromNew takes the oldest of a queue of what is new, or moves it to the main one.
func (p *s3fifo) fromNew(q *queue) slotID {
	id := q.tail
	s := p.of.entry(id)
	if marks := s.marks.Load(); marks&readMask > 0 {
		q.remove(s)
		s.marks.Store(marks &^ readMask)
		p.main.push(s, id)
		return 0
	}
	if !p.of.take(id) {
		q.requeue(s, id)
		return 0
	}
	q.remove(s)
	if q.kind == queueSmall {
		p.ghosts.add(p.of.name(id), p.slots)
	}
	return id
}

func (p *s3fifo) fromMain() slotID {
	id := p.main.tail
	if id == 0 {
		return 0
	}
	s := p.of.entry(id)
	if marks := s.marks.Load(); marks&readMask > 0 {
		s.marks.Store(marks - 1)
		p.main.requeue(s, id)
		return 0
	}
	if !p.of.take(id) {
		p.main.requeue(s, id)
		return 0
	}
	p.main.remove(s)
	return id
}

// lruOrder is LRU. It is here to be compared with.
type lruOrder struct {
	of    store
	mu    *sync.Mutex // of the store
	order queue
}

func (p *lruOrder) touch(s *entry, id slotID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.order.requeue(s, id)
}

func (p *lruOrder) add(s *entry, id slotID, _ bool) { p.order.push(s, id) }
func (p *lruOrder) remove(s *entry)                 { p.order.remove(s) }
func (p *lruOrder) resize(int, int)                 {}

func (p *lruOrder) victim() slotID {
	for range p.order.n {
		id := p.order.tail
		s := p.of.entry(id)
		if p.of.take(id) {
			p.order.remove(s)
			return id
		}
		p.order.requeue(s, id)
	}
	return 0
}
