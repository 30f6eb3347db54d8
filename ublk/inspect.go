package ublk

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
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
	Waits      string        // what it waits for, where that is known, as by a [Leaver]
}

// String is for logs.
func (i RequestInfo) String() string {
	s := fmt.Sprintf("queue %d tag %d: %s of %d bytes at %d since %v", i.Queue, i.Tag, i.Op, i.Len, i.Off, i.Age.Round(time.Millisecond))
	if i.Waits != "" {
		s += ", waits for " + i.Waits
	}
	return fmt.Sprintf("%s (%d I/Os in flight)", s, i.TargetIO)
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

// Requests returns what Handlers have, beginning with what one has had for longest: what to look at when a device is stuck. It waits for
// the threads of the queues until ctx ends, and returns nothing of queues whose threads are gone.
func (a *Attachment) Requests(ctx context.Context) ([]RequestInfo, error) {
	now := int64(time.Since(a.epoch))
	var mu sync.Mutex // of the list: a thread may answer after ctx has ended
	var all []RequestInfo
	err := a.onThreads(ctx, func(l *lane) {
		mu.Lock()
		defer mu.Unlock()
		l.inService(now, func(info RequestInfo) { all = append(all, info) })
	})
	mu.Lock()
	defer mu.Unlock()
	list := slices.Clone(all)
	slices.SortFunc(list, func(a, b RequestInfo) int { return cmp.Compare(b.Age, a.Age) })
	if err != nil {
		return list, fmt.Errorf("inspect queues: %w", err)
	}
	return list, nil
}

// describe says what Handlers have, in a line.
func (a *Attachment) describe() string {
	const patience, most = time.Second, 4
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	list, err := a.Requests(ctx)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%d in service: %s", len(list), DescribeRequests(list, most))
}

// DescribeRequests says in a line what the first few of some requests are.
func DescribeRequests(list []RequestInfo, most int) string {
	var parts []string
	for _, r := range list[:min(most, len(list))] {
		parts = append(parts, r.String())
	}
	if len(list) > most {
		parts = append(parts, fmt.Sprintf("and %d more", len(list)-most))
	}
	return strings.Join(parts, "; ")
}

// Oldest returns the request that a Handler has had for longest: what to look at when a device is
// stuck. ok is false when there is none. It fails with ErrReactorsClosed.
func (a *Attachment) Oldest() (oldest RequestInfo, ok bool, err error) {
	now := int64(time.Since(a.epoch))
	for _, l := range a.lanes {
		err := l.re.call(func() error {
			l.inService(now, func(info RequestInfo) {
				if !ok || info.Age > oldest.Age {
					oldest, ok = info, true
				}
			})
			return nil
		})
		if err != nil {
			return oldest, ok, fmt.Errorf("inspect queue %d: %w", l.q.index, err)
		}
	}
	return oldest, ok, nil
}

// inService tells of each request that the Handler has had at now, a time since the attachment's epoch in nanoseconds. It runs on the queue's thread.
func (l *lane) inService(now int64, tell func(RequestInfo)) {
	for i := range l.q.reqs {
		if r := &l.q.reqs[i]; (r.state == stateServed || r.state == stateCompleting) && r.began <= now {
			tell(r.info(now))
		}
	}
}

func (r *Request) info(now int64) RequestInfo {
	return RequestInfo{
		Queue: r.queue.index, Tag: int(r.tag), Op: r.Op, Off: r.Off, Len: r.Len,
		Age:        time.Duration(now - r.began),
		TargetIO:   int(r.inflight),
		Completing: r.state == stateCompleting,
		Waits:      r.waits(),
	}
}

func (r *Request) waits() string {
	h, ok := r.queue.handler.(Leaver)
	switch {
	case r.state == stateCompleting:
		return "reads and writes that it has begun"
	case ok:
		return h.Waits(r)
	}
	return ""
}
