package node

import (
	"sync"

	"coppice/union"
)

// rawRoots opens raw roots. To find out what one is takes a read of some MiB, which all devices that are taken up at the same time have in common.
type rawRoots struct {
	mu     sync.Mutex                            // guards what follows
	shared map[string]func() (*union.Raw, error) // by path; nil: each is looked at anew
}

func (a *rawRoots) open(path string) (*union.Raw, error) {
	a.mu.Lock()
	if a.shared == nil {
		a.mu.Unlock()
		return union.OpenRaw(path)
	}
	first := a.shared[path]
	if first == nil {
		first = sync.OnceValues(func() (*union.Raw, error) { return union.OpenRaw(path) })
		a.shared[path] = first
	}
	a.mu.Unlock()
	raw, err := first()
	if err != nil {
		return nil, err
	}
	return raw.Again()
}

// share makes open look at each root once, until the returned function is called. Nothing is being opened then.
func (a *rawRoots) share() (end func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.shared = make(map[string]func() (*union.Raw, error))
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		for _, first := range a.shared {
			if raw, err := first(); err == nil {
				_ = raw.Close() // it was read only
			}
		}
		a.shared = nil
	}
}
