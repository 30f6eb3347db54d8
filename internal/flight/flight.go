// Package flight lets concurrent callers that want the same thing wait for one of them to fetch it. A fetch that nobody waits for any more is
// called off, so that one that is stuck is in nobody's way.
package flight

import (
	"context"
	"sync"
	"sync/atomic"
)

// Group is the fetches that are under way, by what they fetch. The zero value is ready. It is safe for concurrent use.
type Group[K comparable, V any] struct {
	mu sync.Mutex // guards m, and waiting of each flight
	m  map[K]*Flight[V]
}

// Flight is one fetch. value and err are set when done is closed.
type Flight[V any] struct {
	ctx     context.Context
	cancel  context.CancelFunc
	waiting int

	done  chan struct{}
	value V
	err   error
}

// Claim returns the flight for a key, and whether the caller has to see to it. Every caller leaves the flight once. ctx is above that of a new flight.
func (g *Group[K, V]) Claim(ctx context.Context, key K) (*Flight[V], bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if fl, ok := g.m[key]; ok {
		fl.waiting++
		return fl, false
	}
	if g.m == nil {
		g.m = map[K]*Flight[V]{}
	}
	fl := &Flight[V]{waiting: 1, done: make(chan struct{})}
	fl.ctx, fl.cancel = context.WithCancel(ctx)
	g.m[key] = fl
	return fl, true
}

// Leave ends the waiting of one who claimed a flight. The last one calls it off, if it has not landed.
func (g *Group[K, V]) Leave(key K, fl *Flight[V]) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if fl.waiting--; fl.waiting == 0 {
		fl.cancel()
		g.forget(key, fl)
	}
}

// forget lets the next caller begin a new flight.
func (g *Group[K, V]) forget(key K, fl *Flight[V]) {
	if g.m[key] == fl {
		delete(g.m, key)
	}
}

// Land ends a flight that the caller has to see to.
func (g *Group[K, V]) Land(key K, fl *Flight[V], value V, err error) {
	fl.value, fl.err = value, err
	g.mu.Lock()
	g.forget(key, fl)
	g.mu.Unlock()
	close(fl.done)
}

// Context returns what the fetch goes by: it ends when the flight is called off.
func (fl *Flight[V]) Context() context.Context { return fl.ctx }

// Landed reports whether the flight is over, so that Wait does not wait.
func (fl *Flight[V]) Landed() bool {
	select {
	case <-fl.done:
		return true
	default:
		return false
	}
}

// Wait returns what the flight brought, or the error of the context.
func (fl *Flight[V]) Wait(ctx context.Context) (V, error) {
	if fl.Landed() {
		return fl.value, fl.err
	}
	select {
	case <-fl.done:
		return fl.value, fl.err
	case <-ctx.Done():
		var none V
		return none, ctx.Err()
	}
}

// Together returns the context of one fetch for several flights, which ends when all of them were called off.
func Together[V any](ctx context.Context, flights []*Flight[V]) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	var left atomic.Int64
	left.Store(int64(len(flights)))
	for _, fl := range flights {
		context.AfterFunc(fl.ctx, func() {
			if left.Add(-1) == 0 {
				cancel()
			}
		})
	}
	return ctx, cancel
}
