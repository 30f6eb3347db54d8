package union

import (
	"sync/atomic"
	"syscall"
	"time"
)

// misses bounds how many requests of a queue read a root that is no file, and so how many goroutines, range requests and buffers
// those keep busy.
//
// A request that the kernel has sent holds its tag until it is answered, whatever it waits for, and the kernel asks nobody which one to
// send next. So tags cannot be kept for the leaf beforehand: they can only be given back, by an answer. Reads beyond the bound stand in
// line, and nobody has seen their buffers yet, so they can be answered at any time. While the root answers, the line moves, however slowly. Where not one read
// has ended for a time ([DeviceOptions.RootWait]) that somebody has been in line, the root has stalled: all in line get EIO, and so does
// at once, until the root answers again, whoever would stand in line. The reads within the bound go on to wait, for as long as the root has patience.
//
// It all belongs to the queue's thread, but for the tickets.
type misses struct {
	most    int // requests that may read the root at a time
	wait    time.Duration
	reading int
	line    opList
	tickets uint64 // given so far
	moving  bool   // the line is
	stalled bool
	ended   time.Time // when a read of the root ended last
}

// ask is a range that a request needs of a root that is no file.
type ask struct {
	p   []byte
	off int64
}

// ticket is a place in line. Whoever takes it away, the queue's thread or the timer, decides what becomes of the request.
type ticket struct {
	number atomic.Uint64 // 0: not in line
	timer  *time.Timer
	called bool // it was its turn when the timer had taken it
}

// expired is the number of a ticket that the timer has taken.
const expired = ^uint64(0)

// defaultRootWait is how long the line of a queue may stand still.
const defaultRootWait = 10 * time.Second

// maxMisses is how many requests of a queue may read the root at a time: all but a quarter, and at least but two, because one tag of each
// queue is idle anyway. A queue of up to three has one that may.
func maxMisses(depth int) int { return max(1, depth-max(2, depth/4)) }

// askRoot reads what a request needs of the root, as soon as few enough others of the queue do.
func (o *op) askRoot() {
	m := &o.q.misses
	switch {
	case o.q.d.leaving.Load():
		o.forsake()
	case m.reading < m.most:
		o.left++
		o.startRoot()
	case m.stalled:
		o.refuseRoot()
	default:
		o.left++
		o.q.d.stats.rootWaits.Add(1)
		o.takeTicket(m.wait)
		m.line.push(o)
	}
}

// takeTicket has the request woken after a time, unless it leaves the line before.
func (o *op) takeTicket(wait time.Duration) {
	m := &o.q.misses
	m.tickets++
	number := m.tickets
	o.ticket.number.Store(number)
	o.ticket.timer = time.AfterFunc(wait, func() {
		if o.ticket.number.CompareAndSwap(number, expired) {
			o.r.Post(cookieWake, 0)
		}
	})
}

// leaveLine reports false where the timer has been faster, and has the request woken.
func (o *op) leaveLine() bool {
	number := o.ticket.number.Load()
	if number == expired || !o.ticket.number.CompareAndSwap(number, 0) {
		o.ticket.called = true
		return false
	}
	o.ticket.timer.Stop()
	return true
}

// startRoot counts all asynchronous reads of a request as one thing to wait for: the last of them posts.
func (o *op) startRoot() {
	o.q.misses.reading++
	o.failed.Store(false)
	o.came.Store(0)
	// One more, so that none is the last before all are started.
	o.async.Store(int32(len(o.asks)) + 1)
	for _, a := range o.asks {
		o.q.d.base.ReadAsync(a.p, a.off, o.rootDone)
	}
	if o.async.Add(-1) == 0 { // all have ended already
		o.rootsDone()
	}
}

func (o *op) rootDone(from Origins, err error) {
	o.came.Or(uint32(from))
	if err != nil {
		o.failed.Store(true)
	}
	if o.async.Add(-1) == 0 {
		o.r.Post(cookieWake, 0)
	}
}

func (o *op) rootsDone() {
	m := &o.q.misses
	m.reading--
	m.ended = time.Now()
	o.from |= Origins(o.came.Load())
	switch {
	case !o.failed.Load():
		m.stalled = false
	case o.q.d.leaving.Load():
		o.forsake()
	default:
		o.note(-int32(syscall.EIO))
	}
	o.left--
	m.move()
}

// move starts who is first in line.
func (m *misses) move() {
	if m.moving {
		return
	}
	m.moving = true
	for m.reading < m.most {
		o := m.line.pop()
		if o == nil {
			break
		}
		if o.leaveLine() {
			o.startRoot()
			o.goOn()
		}
	}
	m.moving = false
}

// rootWoken goes on when the reads of the root have ended, or when the time in line has.
func (o *op) rootWoken() {
	if o.ticket.number.Load() == expired {
		o.waitedInLine()
	} else {
		o.rootsDone()
	}
	o.goOn()
}

// waitedInLine decides what becomes of a request whose ticket has expired: it waits on where the root answers.
func (o *op) waitedInLine() {
	m := &o.q.misses
	still := time.Since(m.ended)
	switch {
	case o.q.d.leaving.Load():
		o.ticket.number.Store(0)
		o.left--
		o.forsake()
	case still >= m.wait:
		m.stall() // with the ticket still expired: this request may be in line too
		o.ticket.number.Store(0)
		o.left--
		o.refuseRoot()
	case !o.ticket.called:
		o.takeTicket(m.wait - still)
	case m.reading < m.most:
		o.ticket.number.Store(0)
		o.startRoot()
	default:
		o.takeTicket(m.wait - still)
		m.line.pushFront(o)
	}
	o.ticket.called = false
}

// stall refuses all in line.
func (m *misses) stall() {
	m.stalled = true
	m.dissolve((*op).refuseRoot)
}

// dissolve ends the wait of all in line. Those whose timer has been faster are woken by that.
func (m *misses) dissolve(end func(*op)) {
	for o := m.line.pop(); o != nil; o = m.line.pop() {
		if o.leaveLine() {
			o.left--
			end(o)
			o.goOn()
		}
	}
}

func (o *op) refuseRoot() {
	o.q.d.stats.rootRefused.Add(1)
	o.note(-int32(syscall.EIO))
}

func (o *op) goOn() {
	if o.left == 0 {
		o.advance()
	}
}
