package union

import (
	"syscall"

	"coppice/ublk"
)

var _ ublk.Leaver = (*Device)(nil)

// Leave gives up what requests of the queue wait for that is not the store's own I/O: reads of a root that is no file, and space. They
// have changed nothing yet that a second run would not change in the same way, so the next program serves them from the start. All other
// requests end as ever: their writes are in the kernel's hands, and the next program would have to wait for them as well.
func (d *Device) Leave(uq *ublk.Queue) {
	q := uq.Local().(*queue)
	d.leaving.Store(true) // before a read of any queue fails for it
	if b, ok := d.base.(interface{ Interrupt() }); ok {
		b.Interrupt()
	}
	q.misses.dissolve((*op).forsake)
	d.layer.store.leaveSpaceLine(q)
}

// forsake makes the request end without an answer.
func (o *op) forsake() {
	o.forsaken = true
	o.note(-int32(syscall.EIO)) // it goes no further
}

// leaveSpaceLine ends the wait of a queue's requests for space.
func (s *Store) leaveSpaceLine(q *queue) {
	sp := &s.space
	var own opList
	sp.mu.Lock()
	for c := range sp.line {
		var rest opList
		for o := sp.line[c].pop(); o != nil; o = sp.line[c].pop() {
			if o.q != q {
				rest.push(o)
				continue
			}
			s.stepOut(o)
			own.push(o)
		}
		sp.line[c] = rest
	}
	sp.mu.Unlock()
	for o := own.pop(); o != nil; o = own.pop() {
		o.forsake()
		o.complete(syscall.ENOSPC)
	}
	s.spaceFreed()
}

// Waits says what a request of the device waits for.
func (d *Device) Waits(r *ublk.Request) string {
	o := &r.Queue().Local().(*queue).ops[r.Tag()]
	switch {
	case o.ticket.number.Load() != 0:
		return "others to have read the root"
	case o.async.Load() > 0:
		return "the root"
	}
	switch o.step {
	case stepAlloc:
		return "space in the store"
	case stepRecord:
		return "room in the log"
	case stepWait:
		return "a commit that another led"
	case stepLog:
		return "its commit to the log"
	case stepFlush:
		return "the flush of the store"
	case stepMap:
		return "a part of the sector map"
	}
	return "reads or writes of the store or a raw root"
}
