package union

import (
	"sync"
	"sync/atomic"
)

// epochs keeps a slot from being used again while a request that found it in the map is still reading
// it: epoch-based reclamation (Fraser, "Practical lock-freedom", 2004, §5.2.3). A reader enters the present epoch;
// slots retired in epoch e are released when the epoch has become e+2, which it cannot while a
// reader of e is left.
type epochs struct {
	now     atomic.Uint64
	mu      sync.Mutex
	readers []*readers
	retired [4][]extent
	ending  [4][]func()
	pending atomic.Int64 // slots in retired
	release func(slot uint64, count uint32)
}

// readers counts, for one queue, the requests that entered each of the last epochs.
type readers struct{ active [4]atomic.Int32 }

func newEpochs(release func(slot uint64, count uint32)) *epochs {
	e := &epochs{release: release}
	e.now.Store(2)
	return e
}

func (e *epochs) join() *readers {
	r := new(readers)
	e.mu.Lock()
	e.readers = append(e.readers, r)
	e.mu.Unlock()
	return r
}

func (e *epochs) leave(r *readers) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i, x := range e.readers {
		if x == r {
			e.readers = append(e.readers[:i], e.readers[i+1:]...)
			return
		}
	}
}

// enter returns the epoch to exit. Looking at the epoch again after it was counted keeps an advance that
// happens in between from missing this reader.
func (e *epochs) enter(r *readers) uint64 {
	for {
		now := e.now.Load()
		r.active[now&3].Add(1)
		if e.now.Load() == now {
			return now
		}
		r.active[now&3].Add(-1)
	}
}

func (r *readers) exit(epoch uint64) { r.active[epoch&3].Add(-1) }

// busy tells whether a request is reading the store now.
func (e *epochs) busy() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, r := range e.readers {
		for i := range r.active {
			if r.active[i].Load() > 0 {
				return true
			}
		}
	}
	return false
}

// retire takes slots that no map holds any more and releases what readers can no longer see.
func (e *epochs) retire(slots []extent) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.now.Load() & 3
	e.retired[now] = append(e.retired[now], slots...)
	e.pending.Add(countSlots(slots))
	e.advance()
}

// later calls end when no reader of today is left. It must not call back.
func (e *epochs) later(end func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.now.Load() & 3
	e.ending[now] = append(e.ending[now], end)
	e.advance()
}

// collect releases what readers can no longer see and reports whether slots are left waiting.
func (e *epochs) collect() (waiting bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.advance()
	for i := range e.retired {
		waiting = waiting || len(e.retired[i]) > 0
	}
	return waiting
}

// advance moves two epochs on where no reader stands in the way.
func (e *epochs) advance() {
	for range 2 {
		now := e.now.Load()
		for _, r := range e.readers {
			if r.active[(now-1)&3].Load() != 0 && !seeded(bugEpochsIgnored) {
				return
			}
		}
		e.now.Store(now + 1)
		old := &e.retired[(now-1)&3]
		for _, x := range *old {
			e.release(x.Slot, x.Count)
			e.pending.Add(-int64(x.Count))
		}
		*old = (*old)[:0]
		ending := &e.ending[(now-1)&3]
		for _, end := range *ending {
			end()
		}
		*ending = nil
	}
}

func countSlots(exts []extent) (n int64) {
	for _, x := range exts {
		n += int64(x.Count)
	}
	return n
}
