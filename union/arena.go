package union

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// arena holds the entry arrays of all sector maps of a store in large chunks outside the Go heap, whose size would
// otherwise let the garbage collector wait for as much again. Freed arrays are kept for the next of their class. Who looks into an array holds the
// lock of the map that it belongs to; alloc and free are safe for concurrent use.
type arena struct {
	chunks atomic.Pointer[[][]uint64]
	mapped *mappedChunks
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
	a := &arena{mapped: new(mappedChunks)}
	a.chunks.Store(new([][]uint64))
	runtime.AddCleanup(a, (*mappedChunks).unmap, a.mapped)
	return a
}

// mappedChunks are unmapped when the arena is garbage: who may look into it holds it.
type mappedChunks struct{ all [][]byte }

func (c *mappedChunks) add() []uint64 {
	mem, err := unix.Mmap(-1, 0, chunkWords*8, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil { // as the Go heap ends when it finds no memory
		panic(fmt.Sprintf("union: map %d bytes for the sector map: %v", chunkWords*8, err))
	}
	c.all = append(c.all, mem)
	return unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(mem))), chunkWords)
}

func (c *mappedChunks) unmap() {
	for _, mem := range c.all {
		_ = unix.Munmap(mem)
	}
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
	if h, ok := a.carve(class); ok {
		return h
	}
	chunks := *a.chunks.Load()
	if len(chunks) == 0 || a.next+n > chunkWords {
		a.retire()
		more := append(chunks[:len(chunks):len(chunks)], a.mapped.add())
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

// carve takes the array from the beginning of a larger free one, and gives the rest to the lists of smaller classes.
func (a *arena) carve(class int) (uint64, bool) {
	for from := class + 1; from <= denseClass; from++ {
		h := a.lists[from]
		if h == 0 {
			continue
		}
		a.lists[from] = a.at(h)[0]
		a.split(h+uint64(classWords(class)), classWords(from)-classWords(class))
		return h, true
	}
	return 0, false
}

// split makes free arrays of n words. What is too small for any is lost.
func (a *arena) split(handle uint64, n int) {
	for class := denseClass - 1; class >= 0; class-- {
		for ; n >= classWords(class); n -= classWords(class) {
			a.push(handle, class)
			handle += uint64(classWords(class))
		}
	}
}

// retire gives what is left of the last chunk to the lists of smaller classes.
func (a *arena) retire() {
	chunks := *a.chunks.Load()
	if len(chunks) == 0 {
		return
	}
	a.split(uint64(len(chunks)-1)<<chunkShift|uint64(a.next), chunkWords-a.next)
	a.next = chunkWords
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
