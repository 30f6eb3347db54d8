package image

import (
	"context"
	"sync"
	"sync/atomic"
)

// flights lets concurrent callers that want the same thing wait for one of them to fetch it. A fetch that nobody waits for any more is called
// off, so that one that is stuck is in nobody's way.
type flights[K comparable, V any] struct {
	mu sync.Mutex // guards m, and waiting of each flight
	m  map[K]*flight[V]
}

// flight is one fetch. value and err are set when done is closed.
type flight[V any] struct {
	ctx     context.Context // of the fetch: ends when the flight is called off
	cancel  context.CancelFunc
	waiting int

	done  chan struct{}
	value V
	err   error
}

// claim returns the flight for a key, and whether the caller has to see to it. Every caller leaves the flight once. ctx is above that of a new flight.
func (f *flights[K, V]) claim(ctx context.Context, key K) (*flight[V], bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl, ok := f.m[key]; ok {
		fl.waiting++
		return fl, false
	}
	if f.m == nil {
		f.m = map[K]*flight[V]{}
	}
	fl := &flight[V]{waiting: 1, done: make(chan struct{})}
	fl.ctx, fl.cancel = context.WithCancel(ctx)
	f.m[key] = fl
	return fl, true
}

// leave ends the waiting of one who claimed a flight. The last one calls it off, if it has not landed.
func (f *flights[K, V]) leave(key K, fl *flight[V]) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl.waiting--; fl.waiting == 0 {
		fl.cancel()
		f.forget(key, fl)
	}
}

// forget lets the next caller begin a new flight.
func (f *flights[K, V]) forget(key K, fl *flight[V]) {
	if f.m[key] == fl {
		delete(f.m, key)
	}
}

// land ends a flight that the caller has to see to.
func (f *flights[K, V]) land(key K, fl *flight[V], value V, err error) {
	fl.value, fl.err = value, err
	f.mu.Lock()
	f.forget(key, fl)
	f.mu.Unlock()
	close(fl.done)
}

// wait returns what the flight brought, or the error of the context.
func (fl *flight[V]) wait(ctx context.Context) (V, error) {
	select {
	case <-fl.done:
		return fl.value, fl.err
	default:
	}
	select {
	case <-fl.done:
		return fl.value, fl.err
	case <-ctx.Done():
		var none V
		return none, ctx.Err()
	}
}

// together returns the context of a fetch for several wants, which ends when all of their flights were called off.
func together(ctx context.Context, wants []want) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	var left atomic.Int64
	left.Store(int64(len(wants)))
	for _, w := range wants {
		context.AfterFunc(w.fl.ctx, func() {
			if left.Add(-1) == 0 {
				cancel()
			}
		})
	}
	return ctx, cancel
}
