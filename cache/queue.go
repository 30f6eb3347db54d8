package cache

import "sync/atomic"

// queueKind says which queue a slot is in.
type queueKind uint8

const (
	queueNone queueKind = iota // it is filled just now, or its segment is given back
	queueFree
	queuePassing
	queueSmall
	queueMain
)

// entry is what a policy knows of a slot.
type entry struct {
	marks      atomic.Uint32
	prev, next slotID // in its queue
	queue      queueKind
}

// store is what a policy orders: slots of [memory], or those of a [miniature].
type store interface {
	// entry returns that of a slot which exists.
	entry(id slotID) *entry
	// name returns what ghosts know the content of a slot by.
	name(id slotID) uint64
	// take makes a slot free for other content, if nobody pins it.
	take(id slotID) bool
}

// queue is slots in an order, linked through their numbers. It is guarded by the lock of their store.
type queue struct {
	of         store
	kind       queueKind
	head, tail slotID
	n          int
}

// push puts a slot, which is in no queue, at the head.
func (q *queue) push(s *entry, id slotID) {
	s.queue, s.prev, s.next = q.kind, 0, q.head
	if q.head != 0 {
		q.of.entry(q.head).prev = id
	} else {
		q.tail = id
	}
	q.head = id
	q.n++
}

func (q *queue) remove(s *entry) {
	if s.prev != 0 {
		q.of.entry(s.prev).next = s.next
	} else {
		q.head = s.next
	}
	if s.next != 0 {
		q.of.entry(s.next).prev = s.prev
	} else {
		q.tail = s.prev
	}
	s.queue, s.prev, s.next = queueNone, 0, 0
	q.n--
}

// requeue moves a slot to the head.
func (q *queue) requeue(s *entry, id slotID) {
	q.remove(s)
	q.push(s, id)
}
