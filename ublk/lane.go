package ublk

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A lane is a reactor's side of a queue: the way to the driver, and what the driver holds of it.
//
//	attached ──fetch──▶ serving ──every tag ended by the driver──▶ ended
//	                       │                                        ▲
//	                     drain                                      │
//	                       ▼                                        │
//	                    draining ──nothing in service──▶ drained ───┘
//
// A tag is with the driver (idle), with the Handler (served, completing), ended by the driver
// (its command came back with an error, and none is issued any more), or withheld: its request came
// after draining began, or the Handler gave it back then, and is left for the kernel to issue to a successor.
type lane struct {
	q         *Queue
	re        *reactor
	owner     *Attachment
	drv       driver
	transport Transport // nil with the kernel's driver
	area      []byte    // descriptors
	slot      uint16
	state     laneState
	commands  int // issued and not come back
	withheld  int
	files     []*os.File // that the Handler registered
	char      *os.File   // ublkc, held by the ring; nil with a Transport
}

type laneState uint8

const (
	laneAttached laneState = iota
	laneServing
	laneDraining
	laneDrained
	laneEnded
)

// attach takes a queue in and lets its Handler prepare. Nothing is fetched yet.
func (re *reactor) attach(owner *Attachment, src *QueueSource) (*lane, error) {
	if len(re.lanes) == maxSlots && len(re.free) == 0 {
		return nil, fmt.Errorf("reactor of CPU %d serves %d queues already", re.cpu, maxSlots)
	}
	q, err := NewQueue(src.QueueConfig, re)
	if err != nil {
		return nil, err
	}
	l := &lane{q: q, re: re, owner: owner, area: src.Descriptors}
	q.lane = l
	if err := l.connect(src); err != nil {
		return nil, errors.Join(err, q.Release())
	}
	l.takeSlot()
	if err := q.handler.Attach(q); err != nil {
		l.leave()
		return nil, fmt.Errorf("attach handler to queue %d: %w", q.index, err)
	}
	return l, nil
}

func (l *lane) connect(src *QueueSource) error {
	if need := len(l.q.reqs) * descSize; len(l.area) < need {
		return fmt.Errorf("descriptor area of queue %d has %d bytes, %d tags need %d", l.q.index, len(l.area), len(l.q.reqs), need)
	}
	if src.Transport != nil {
		l.transport = src.Transport
		l.transport.Bind(l.re.waker.wake)
		l.drv = transportDriver{src.Transport}
		return nil
	}
	drv, err := newKernelDriver(l.re, src.Char, l.q.index, src.LegacyCommands)
	if err != nil {
		return fmt.Errorf("use character device for queue %d: %w", l.q.index, err)
	}
	// The ring that writes what the device stores on holds ublkc: a successor cannot begin before it is gone.
	if _, err := l.re.files.hold(src.Char); err != nil {
		return fmt.Errorf("register character device for queue %d: %w", l.q.index, err)
	}
	l.drv, l.char = drv, src.Char
	return nil
}

func (l *lane) takeSlot() {
	re := l.re
	if n := len(re.free); n > 0 {
		l.slot = re.free[n-1]
		re.free = re.free[:n-1]
		re.lanes[l.slot] = l
	} else {
		l.slot = uint16(len(re.lanes))
		re.lanes = append(re.lanes, l)
	}
	if l.transport != nil {
		re.polled = append(re.polled, l)
	}
	re.attached.Add(1)
}

// fetch issues the first command of every tag.
func (l *lane) fetch() {
	l.state = laneServing
	for i := range l.q.reqs {
		l.issue(&l.q.reqs[i], true, 0)
	}
}

func (l *lane) issue(r *Request, fetch bool, result int32) {
	l.commands++
	l.drv.command(Command{
		Fetch:  fetch,
		Tag:    r.tag,
		Result: result,
		Addr:   addressOf(l.q.bufs[int(r.tag)*l.q.maxIO:]),
	}, packUserData(kindCommand, l.slot, r.tag, r.gen, 0))
}

func (l *lane) commandEnded(u userData, res int32) {
	r := &l.q.reqs[u.tag()]
	if r.state != stateIdle || r.gen != u.gen() {
		l.re.stats.Strays++
		return
	}
	l.commands--
	switch {
	case res == 0 && l.state == laneServing:
		l.re.stats.Requests++
		l.q.Start(int(r.tag), descriptorAt(l.area, r.tag))
		return
	case res == 0:
		l.withhold(r)
	case res == -int32(unix.ENODEV):
		r.state = stateEnded
	default:
		r.state = stateEnded
		l.owner.fail(fmt.Errorf("command of queue %d tag %d: %w", l.q.index, r.tag, commandError(res)))
	}
	l.re.touch(l)
}

// withhold leaves a request to a successor, by never answering it.
func (l *lane) withhold(r *Request) {
	r.state = stateWithheld
	l.withheld++
	l.re.touch(l)
}

func commandError(res int32) error {
	if res < 0 {
		return syscall.Errno(-res)
	}
	return fmt.Errorf("driver answered %d, which was not asked for", res)
}

func (l *lane) targetEnded(u userData, res int32) {
	r := &l.q.reqs[u.tag()]
	if r.gen != u.gen() || r.inflight == 0 {
		l.re.stats.Strays++
		return
	}
	l.q.Resume(r, u.cookie(), res)
}

// settle moves the lane on when what its state waited for has happened. It runs between
// batches, never inside a call of the Handler.
func (l *lane) settle() {
	if l.q.served > 0 {
		return
	}
	switch {
	case l.state == laneEnded || l.state == laneAttached:
	case l.commands == 0 && l.withheld == 0:
		l.detachHandler()
		l.leave()
	case l.state == laneDraining:
		l.detachHandler()
		l.state = laneDrained
		l.owner.laneDrained()
	}
}

// detachHandler ends the Handler's part, once.
func (l *lane) detachHandler() {
	if l.state != laneDrained {
		l.q.handler.Detach(l.q)
		l.dropFiles()
	}
}

func (l *lane) dropFiles() {
	for _, f := range l.files {
		l.owner.fail(l.re.files.drop(f))
	}
	l.files = nil
}

// leave frees everything that the reactor has for the lane.
func (l *lane) leave() {
	re := l.re
	re.lanes[l.slot] = nil
	re.free = append(re.free, l.slot)
	re.attached.Add(-1)
	for i, have := range re.polled {
		if have == l {
			re.polled = append(re.polled[:i], re.polled[i+1:]...)
			break
		}
	}
	l.dropFiles()
	if l.char != nil {
		l.owner.fail(re.files.drop(l.char))
		l.char = nil
	}
	l.finish(l.q.Release())
}

func (l *lane) finish(err error) {
	l.owner.fail(err)
	wasDrained := l.state == laneDrained
	l.state = laneEnded
	l.owner.laneEnded(wasDrained)
}

func addressOf(p []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(p))) }
