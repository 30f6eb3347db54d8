package union

import (
	"sync"
	"sync/atomic"
)

// arena holds the entry arrays of all sector maps of a store in large chunks without pointers, which the garbage
// collector does not look into. Freed arrays are kept for the next of their class. Who looks into an array holds the
// lock of the map that it belongs to; alloc and free are safe for concurrent use.
type arena struct {
	chunks atomic.Pointer[[][]uint64]
	words  atomic.Int64 // handed out

	mu    sync.Mutex
	next  int // first free word of the last chunk
	lists [denseClass + 1]uint64
}

const (
	chunkShift = 14
	chunkWords = 1 << chunkShift
)

func newArena() *arena {
	a := new(arena)
	a.chunks.Store(new([][]uint64))
	return a
}

func (a *arena) at(handle uint64) []uint64 {
	return (*a.chunks.Load())[handle>>chunkShift][handle&(chunkWords-1):]
}

// alloc returns the handle of an array of the class with undefined content. Handle 0 is never given
// out, so that a list can end with it.
func (a *arena) alloc(class int) uint64 {
	n := classWords(class)
	a.words.Add(int64(n))
	a.mu.Lock()
	defer a.mu.Unlock()
	if h := a.lists[class]; h != 0 {
		a.lists[class] = a.at(h)[0]
		return h
	}
	chunks := *a.chunks.Load()
	if len(chunks) == 0 || a.next+n > chunkWords {
		a.retire()
		more := append(chunks[:len(chunks):len(chunks)], make([]uint64, chunkWords))
		a.chunks.Store(&more)
		chunks = more
		a.next = 0
		if len(chunks) == 1 {
			a.next = 1
		}
	}
	h := uint64(len(chunks)-1)<<chunkShift | uint64(a.next)
	a.next += n
	return h
}

// retire gives what is left of the last chunk to the lists of smaller classes.
func (a *arena) retire() {
	chunks := *a.chunks.Load()
	if len(chunks) == 0 {
		return
	}
	for class := denseClass - 1; class >= 0; class-- {
		for a.next+classWords(class) <= chunkWords {
			a.push(uint64(len(chunks)-1)<<chunkShift|uint64(a.next), class)
			a.next += classWords(class)
		}
	}
}

func (a *arena) push(handle uint64, class int) {
	a.at(handle)[0] = a.lists[class]
	a.lists[class] = handle
}

func (a *arena) free(handle uint64, class int) {
	a.words.Add(-int64(classWords(class)))
	a.mu.Lock()
	a.push(handle, class)
	a.mu.Unlock()
}

// bytes is what the arena has taken from the system.
func (a *arena) bytes() int64 { return int64(len(*a.chunks.Load())) * chunkWords * 8 }
