package prefetch

import (
	"math/bits"
	"sync/atomic"
)

// Recorder notes which chunks somebody asks for. Its methods may be called from any goroutine.
type Recorder struct {
	shift uint
	// seen has for some chunks that they have been noted, so that a chunk that is read bit by bit is noted once, as a rule.
	seen [recorderSeen]atomic.Int64
	// list has chunks as they were noted, each plus one; some are there more than once.
	list []atomic.Int64
	n    atomic.Int64 // noted, also beyond the list
}

const recorderSeen = 4096

// NewRecorder makes a recorder for a content in chunks of chunkSize bytes that notes up to most of them. It takes 8 bytes for each.
func NewRecorder(chunkSize, most int) *Recorder {
	return &Recorder{shift: uint(bits.TrailingZeros(uint(chunkSize))), list: make([]atomic.Int64, min(most, MaxChunks))}
}

// Note notes that n bytes from off on are asked for. It waits for nothing and allocates nothing.
func (r *Recorder) Note(off, n int64) {
	for chunk := off >> r.shift; chunk <= (off+n-1)>>r.shift; chunk++ {
		seen := &r.seen[uint64(chunk)%recorderSeen]
		if seen.Load() == chunk+1 || seen.Swap(chunk+1) == chunk+1 || r.Full() {
			continue
		}
		if i := r.n.Add(1) - 1; i < int64(len(r.list)) {
			r.list[i].Store(chunk + 1)
		}
	}
}

// Full tells whether nothing more is noted.
func (r *Recorder) Full() bool { return r.n.Load() >= int64(len(r.list)) }

// Chunks returns what was noted so far, each chunk once.
func (r *Recorder) Chunks() []int64 {
	list := r.list[:min(r.n.Load(), int64(len(r.list)))]
	known := make(map[int64]bool, len(list))
	chunks := make([]int64, 0, len(list))
	for i := range list {
		// 0 is one that is being noted just now.
		if chunk := list[i].Load() - 1; chunk >= 0 && !known[chunk] {
			known[chunk] = true
			chunks = append(chunks, chunk)
		}
	}
	return chunks
}
