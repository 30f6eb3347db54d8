package ublk

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// postList takes requests from any thread and gives them to one, in the order in which they were
// put. It is a stack that is emptied whole and then turned round; the links lie in the
// requests, so that nothing is allocated.
type postList struct {
	top atomic.Pointer[Request]
}

func (l *postList) put(r *Request) {
	for {
		top := l.top.Load()
		r.next = top
		if l.top.CompareAndSwap(top, r) {
			return
		}
	}
}

func (l *postList) empty() bool { return l.top.Load() == nil }

// take empties the list and returns its oldest request, linked to the younger ones by next.
func (l *postList) take() *Request {
	var oldest *Request
	for r := l.top.Swap(nil); r != nil; {
		next := r.next
		r.next = oldest
		oldest, r = r, next
	}
	return oldest
}

// waker gets a reactor out of its wait. Whoever has left work for it calls wake; only the
// first one after the reactor went to sleep makes a system call.
type waker struct {
	asleep atomic.Bool
	fd     int // eventfd that the reactor's ring is reading
}

func newWaker() (*waker, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	return &waker{fd: fd}, nil
}

// wake is called after the work has been made visible. It cannot fail: the counter of
// an eventfd overflows only after 2^64-2 wakes without a read.
func (w *waker) wake() {
	if w.asleep.Load() && w.asleep.CompareAndSwap(true, false) {
		w.signal()
	}
}

func (w *waker) signal() {
	one := [8]byte{1} // host order does not matter: any value but 0 wakes
	for {
		if _, err := unix.Write(w.fd, one[:]); err != unix.EINTR {
			return
		}
	}
}
