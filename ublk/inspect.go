package ublk

import (
	"fmt"
	"time"
)

// RequestInfo describes a request that a Handler has.
type RequestInfo struct {
	Queue, Tag int
	Op         Op
	Off, Len   int64         // bytes
	Age        time.Duration // since it was handed to the Handler
	TargetIO   int           // reads, writes and syncs of it in flight
	Completing bool          // the Handler has completed it, its target I/O has not ended
}

// InService returns how many requests Handlers have, or -1 when the reactors are closed.
func (a *Attachment) InService() int {
	n := 0
	for _, l := range a.lanes {
		err := l.re.call(func() error {
			n += l.q.served
			return nil
		})
		if err != nil {
			return -1
		}
	}
	return n
}

// Oldest returns the request that a Handler has had for longest: what to look at when a device is
// stuck. ok is false when there is none. It fails with ErrReactorsClosed.
func (a *Attachment) Oldest() (oldest RequestInfo, ok bool, err error) {
	now := int64(time.Since(a.epoch))
	for _, l := range a.lanes {
		err := l.re.call(func() error {
			for i := range l.q.reqs {
				r := &l.q.reqs[i]
				if !r.inService() || r.began > now {
					continue
				}
				if info := r.info(now); !ok || info.Age > oldest.Age {
					oldest, ok = info, true
				}
			}
			return nil
		})
		if err != nil {
			return oldest, ok, fmt.Errorf("inspect queue %d: %w", l.q.index, err)
		}
	}
	return oldest, ok, nil
}

func (r *Request) inService() bool { return r.state == stateServed || r.state == stateCompleting }

func (r *Request) info(now int64) RequestInfo {
	return RequestInfo{
		Queue: r.queue.index, Tag: int(r.tag), Op: r.Op, Off: r.Off, Len: r.Len,
		Age:        time.Duration(now - r.began),
		TargetIO:   int(r.inflight),
		Completing: r.state == stateCompleting,
	}
}
