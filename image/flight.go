package image

import (
	"context"
	"sync"
)

// flights lets concurrent callers that want the same thing wait for one of them to fetch it.
type flights[K comparable, V any] struct {
	mu sync.Mutex
	m  map[K]*flight[V]
}

// flight is one fetch. value and err are set when done is closed.
type flight[V any] struct {
	done  chan struct{}
	value V
	err   error
}

// claim returns the flight for a key, and whether the caller has to see to it.
func (f *flights[K, V]) claim(key K) (*flight[V], bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl, ok := f.m[key]; ok {
		return fl, false
	}
	if f.m == nil {
		f.m = map[K]*flight[V]{}
	}
	fl := &flight[V]{done: make(chan struct{})}
	f.m[key] = fl
	return fl, true
}

// land ends a flight that the caller claimed.
func (f *flights[K, V]) land(key K, fl *flight[V], value V, err error) {
	fl.value, fl.err = value, err
	f.mu.Lock()
	delete(f.m, key)
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
