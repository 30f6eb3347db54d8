package ublk

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ErrReactorsClosed says that the reactors have been closed.
var ErrReactorsClosed = errors.New("reactors are closed")

// ErrServing says that something cannot be closed while queues are being served.
var ErrServing = errors.New("queues are still being served: stop or detach their devices first")

// call runs f on the reactor's thread, between two batches, and returns what it returned. Not to be used
// from that thread: it would wait for itself.
func (re *reactor) call(f func() error) error { return <-re.ask(f) }

// ask is call without waiting: the channel gets what f returned.
func (re *reactor) ask(f func() error) <-chan error {
	done := make(chan error, 1)
	re.mu.Lock()
	if re.gone {
		re.mu.Unlock()
		done <- ErrReactorsClosed
		return done
	}
	re.calls = append(re.calls, func() { done <- f() })
	re.called.Store(true)
	re.mu.Unlock()
	re.waker.wake()
	return done
}

func (re *reactor) runCalls() {
	re.mu.Lock()
	calls := re.calls
	re.calls = nil
	re.called.Store(false)
	re.mu.Unlock()
	for _, f := range calls {
		f()
	}
}

func (re *reactor) mayExit() error {
	for _, l := range re.lanes {
		if l != nil && l.state != laneDrained {
			return fmt.Errorf("close reactor of CPU %d: %w", re.cpu, ErrServing)
		}
	}
	return nil
}

// exit makes the loop end, if no queue needs it any more.
func (re *reactor) exit() error {
	if err := re.mayExit(); err != nil {
		return err
	}
	re.exiting = true
	re.waker.signal() // ends the read of the eventfd, which the kernel must not be left with
	return nil
}

// refuseCalls runs the last calls and takes no more. It is the last thing that the thread does.
func (re *reactor) refuseCalls() {
	re.mu.Lock()
	re.gone = true
	calls := re.calls
	re.mu.Unlock()
	for _, f := range calls {
		f()
	}
}

// tearDown closes the ring, upon which the kernel cancels the commands of drained queues: their devices
// become quiesced. It runs elsewhere than on the reactor's thread, after that has ended: to a living thread
// the driver would still hand requests, and then wait for their answers without end.
//
// Buffers can go with the ring, because requests are copied by the thread only.
func (re *reactor) tearDown() {
	err := errors.Join(awaitThreadEnd(re.tid), re.ring.Close(), unix.Close(re.waker.fd))
	for _, l := range re.lanes {
		if l != nil {
			l.owner.fail(err)
			l.finish(l.q.Release())
		}
	}
}
