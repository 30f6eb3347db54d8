package cache

// queueKind says which queue a slot is in.
type queueKind uint8

const (
	queueNone queueKind = iota // it is filled just now, or its segment is given back
	queueFree
	queuePassing
	queueSmall
	queueMain
)

// queue is slots in an order, linked through their numbers. It is guarded by the memory's lock.
type queue struct {
	m          *memory
	kind       queueKind
	head, tail slotID
	n          int
}

// push puts a slot, which is in no queue, at the head.
func (q *queue) push(s *slot, id slotID) {
	s.queue, s.prev, s.next = q.kind, 0, q.head
	if q.head != 0 {
		q.m.slot(q.head).prev = id
	} else {
		q.tail = id
	}
	q.head = id
	q.n++
}

func (q *queue) remove(s *slot) {
	if s.prev != 0 {
		q.m.slot(s.prev).next = s.next
	} else {
		q.head = s.next
	}
	if s.next != 0 {
		q.m.slot(s.next).prev = s.prev
	} else {
		q.tail = s.prev
	}
	s.queue, s.prev, s.next = queueNone, 0, 0
	q.n--
}

// requeue moves a slot to the head.
func (q *queue) requeue(s *slot, id slotID) {
	q.remove(s)
	q.push(s, id)
}
