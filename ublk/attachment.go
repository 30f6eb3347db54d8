package ublk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// QueueSource is a queue that a driver offers to be served.
type QueueSource struct {
	QueueConfig

	CPU         int    // whose reactor is to serve it; -1, or a CPU not ours: the one with the fewest queues
	Descriptors []byte // the queue's descriptor area, mapped from the driver, 24 bytes for each tag

	Char           *os.File // /dev/ublkcN, which stays open until the queue has ended
	LegacyCommands bool     // use command numbers from before Linux 6.4 (no UBLK_F_CMD_IOCTL_ENCODE)

	Transport Transport // instead of Char, to a driver that is not the kernel's
}

// An Attachment is the queues of one device on their reactors.
type Attachment struct {
	lanes []*lane
	epoch time.Time // of the reactors' clock

	mu        sync.Mutex // guards what follows
	errs      []error
	undrained int
	unended   int

	broken  chan struct{}
	drained chan struct{}
	ended   chan struct{}
}

// Attach gives queues to reactors and calls [Handler.Attach] for each. Nothing is asked of the driver
// before Fetch. When a Handler refuses, all queues are given back.
func (rs *Reactors) Attach(sources []QueueSource) (*Attachment, error) {
	if len(sources) == 0 {
		return nil, errors.New("attach queues: none given")
	}
	a := &Attachment{
		epoch:   rs.epoch,
		broken:  make(chan struct{}),
		drained: make(chan struct{}),
		ended:   make(chan struct{}),
	}
	for i := range sources {
		if err := a.add(rs, &sources[i]); err != nil {
			return nil, errors.Join(err, a.Abandon())
		}
	}
	return a, nil
}

func (a *Attachment) add(rs *Reactors, src *QueueSource) error {
	re, err := rs.pick(src.CPU)
	if err != nil {
		return err
	}
	return re.call(func() error {
		l, err := re.attach(a, src)
		if err == nil {
			a.lanes = append(a.lanes, l)
		}
		return err
	})
}

// Abandon gives the queues back to a driver that Fetch was never called for.
func (a *Attachment) Abandon() error {
	var errs []error
	for _, l := range a.lanes {
		errs = append(errs, l.re.call(func() error {
			if l.state != laneAttached {
				return fmt.Errorf("abandon queue %d: %w", l.q.index, ErrServing)
			}
			l.detachHandler()
			l.leave()
			return nil
		}))
	}
	return errors.Join(append(errs, a.Err())...)
}

// Fetch asks the driver for requests: one command for each tag of each queue, all those of one
// reactor in one system call as far as its ring has room. It returns when they are
// submitted; the driver may refuse them later (see Broken).
func (a *Attachment) Fetch() error {
	a.mu.Lock()
	a.undrained, a.unended = len(a.lanes), len(a.lanes)
	a.mu.Unlock()
	byReactor := make(map[*reactor][]*lane)
	for _, l := range a.lanes {
		byReactor[l.re] = append(byReactor[l.re], l)
	}
	for re, lanes := range byReactor {
		if err := re.call(func() error { return re.fetch(lanes) }); err != nil {
			return fmt.Errorf("fetch requests: %w", err)
		}
	}
	return nil
}

func (re *reactor) fetch(lanes []*lane) error {
	tags := 0
	for _, l := range lanes {
		tags += len(l.q.reqs)
	}
	if tags > int(re.ring.Space()) {
		re.flush() // what waits there now, so that as many commands as can be go together
	}
	for _, l := range lanes {
		l.fetch()
	}
	re.flush()
	return nil
}

// Drain, to be called after Fetch, stops serving without ending the device: requests that a Handler has are ended and
// committed, or given back by a [Leaver], those that come from now on are left uncommitted, and when no Handler has
// any more, each is detached. The commands of idle tags stay with the driver until the reactors
// are closed; then the kernel quiesces the device and issues what was left to a successor
// (UBLK_F_USER_RECOVERY with REISSUE). When ctx ends first the error names what is still in service.
func (a *Attachment) Drain(ctx context.Context) error {
	err := a.onThreads(ctx, func(l *lane) {
		if l.state == laneServing {
			l.state = laneDraining
			l.re.touch(l)
		}
	})
	if err == nil { // all queues are draining when the first Handler gives requests back
		err = a.onThreads(ctx, func(l *lane) {
			if h, ok := l.q.handler.(Leaver); ok && l.state == laneDraining {
				h.Leave(l.q)
			}
		})
	}
	if err != nil {
		return fmt.Errorf("drain queues: %w", err)
	}
	select {
	case <-a.drained:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("drain queues: %w: %s", ctx.Err(), a.describe())
	}
}

// onThreads runs f for every queue on its thread, and waits for that until ctx ends. A thread that is gone is left out.
func (a *Attachment) onThreads(ctx context.Context, f func(*lane)) error {
	asked := make([]<-chan error, len(a.lanes))
	for i, l := range a.lanes {
		asked[i] = l.re.ask(func() error { f(l); return nil })
	}
	for i, l := range a.lanes {
		select {
		case err := <-asked[i]:
			if err != nil && !errors.Is(err, ErrReactorsClosed) {
				return err
			}
		case <-ctx.Done():
			return fmt.Errorf("the thread of CPU %d, which serves queue %d, does not answer: %w", l.re.cpu, l.q.index, ctx.Err())
		}
	}
	return nil
}

// SetMarks has what Handlers say of requests of a queue ([Request.Mark]) written to m, which has a word for each of its tags, from now on; where m is nil, to
// nothing. When it returns, the thread that serves the queue has let go what was given before. It fails with ErrReactorsClosed, and then nobody writes any more.
func (a *Attachment) SetMarks(queue int, m []uint64) error {
	if queue < 0 || queue >= len(a.lanes) {
		return fmt.Errorf("set marks: no queue %d", queue)
	}
	l := a.lanes[queue]
	return l.re.call(func() error { return l.q.SetMarks(m) })
}

// Ended is closed when every queue has ended: the driver has given back every command with ENODEV, the
// Handler is detached, and neither ublkc nor the descriptor areas are in use any more. It
// is also closed, for drained queues, when their reactors are.
func (a *Attachment) Ended() <-chan struct{} { return a.ended }

// Drained is closed when no Handler serves any of the queues any more, after Drain or because they ended.
func (a *Attachment) Drained() <-chan struct{} { return a.drained }

// Broken is closed at the first failure that Err tells of. The tags concerned are not served any
// more; the device should be stopped.
func (a *Attachment) Broken() <-chan struct{} { return a.broken }

// Err returns what went wrong: commands that the driver refused, or resources that could not be freed.
func (a *Attachment) Err() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return errors.Join(a.errs...)
}

const maxErrs = 8 // kept: a whole queue fails with as many errors as it has tags

func (a *Attachment) fail(err error) {
	if err == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.errs) == 0 {
		close(a.broken)
	}
	if len(a.errs) < maxErrs {
		a.errs = append(a.errs, err)
	}
}

func (a *Attachment) laneDrained() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.countDrained()
}

func (a *Attachment) countDrained() {
	if a.undrained--; a.undrained == 0 {
		close(a.drained)
	}
}

func (a *Attachment) laneEnded(wasDrained bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.unended == 0 {
		return // never fetched
	}
	if !wasDrained {
		a.countDrained()
	}
	if a.unended--; a.unended == 0 {
		close(a.ended)
	}
}
