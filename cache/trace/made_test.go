package trace_test

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"

	"coppice/cache/trace"
	"coppice/image"
)

const (
	block = 4 << 10
	chunk = image.DefaultChunkSize
)

// made is a disk that is made up for a trace: it has data where the trace's disk has data, which compresses as well, and zeros elsewhere.
type made struct {
	size   int64
	stored int // percent
	seed   uint64
	held   map[int64]bool // units of trace.UnitBytes; nil: all of them
}

func madeFor(t *trace.Trace) *made {
	return &made{t.Size, t.Stored, 1, t.Held(trace.UnitBytes)}
}

// ReadAt fills p. Offset and length are multiples of 4 KiB, and lie within the disk.
func (m *made) ReadAt(p []byte, off int64) (int, error) {
	if off%block != 0 || len(p)%block != 0 || off+int64(len(p)) > m.size {
		return 0, fmt.Errorf("%d bytes at %d of a disk of %d", len(p), off, m.size)
	}
	clear(p)
	for i := 0; i < len(p); i += block {
		at := off + int64(i)
		if m.held != nil && !m.held[at/trace.UnitBytes] {
			continue
		}
		rng := rand.NewPCG(m.seed, uint64(at))
		for noise := p[i:][:block*m.stored/100]; len(noise) >= 8; noise = noise[8:] {
			binary.LittleEndian.PutUint64(noise, rng.Uint64())
		}
	}
	return len(p), nil
}

// near is a disk as an image that lies in memory: what is behind a cache whose hits are counted, and not timed. It is safe for concurrent use.
type near struct {
	disk  *made
	chunk int
	mu    sync.Mutex
	pages map[int64][]image.Digest // by first chunk
	bytes int64                    // that were read
}

func nearly(disk *made, chunk int) *near {
	return &near{disk: disk, chunk: chunk, pages: map[int64][]image.Digest{}}
}

func (n *near) Size() int64    { return n.disk.size }
func (n *near) ChunkSize() int { return n.chunk }

func (n *near) ContentRoot() image.Digest {
	return sha256.Sum256(fmt.Append(nil, "made ", n.disk.seed, n.disk.size, n.chunk))
}

func (n *near) Digests(_ context.Context, first int64, d []image.Digest) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	page := n.pages[first]
	if len(page) < len(d) {
		page = make([]image.Digest, len(d))
		p, zeros := make([]byte, n.chunk), make([]byte, n.chunk)
		for i := range d {
			off := (first + int64(i)) * int64(n.chunk)
			p = p[:min(int64(n.chunk), n.disk.size-off)]
			if _, err := n.disk.ReadAt(p, off); err != nil {
				return err
			}
			if string(p) != string(zeros[:len(p)]) {
				page[i] = sha256.Sum256(p)
			}
		}
		n.pages[first] = page
	}
	copy(d, page)
	return nil
}

func (n *near) Read(_ context.Context, p []byte, off int64) error {
	n.mu.Lock()
	n.bytes += int64(len(p))
	n.mu.Unlock()
	_, err := n.disk.ReadAt(p, off)
	return err
}

// shrunk is the beginning of a trace, on a disk that has the chunks that are read there, and after them some others with data.
func shrunk(t *trace.Trace, reads int) *trace.Trace {
	reads = min(reads, len(t.Reads))
	used := map[int64]int64{}
	for _, r := range t.Reads[:reads] {
		for i := r.Off / chunk; i*chunk < r.Off+r.Len; i++ {
			used[i] = 0
		}
	}
	order := slices.Sorted(maps.Keys(used))
	for at, i := range order {
		used[i] = int64(at) * chunk
	}
	n := int64(len(order)) * chunk
	out := &trace.Trace{About: t.About, Size: 4 * n, Stored: t.Stored, Prompt: t.Prompt}
	held := t.Held(trace.UnitBytes)
	for _, i := range order {
		for at := int64(0); at < chunk; at += trace.UnitBytes {
			if held[(i*chunk+at)/trace.UnitBytes] {
				out.Data = joined(out.Data, trace.Extent{Off: used[i] + at, Len: trace.UnitBytes})
			}
		}
	}
	out.Data = joined(out.Data, trace.Extent{Off: n, Len: 3 * n})
	for _, r := range t.Reads[:reads] {
		r.Off = used[r.Off/chunk] + r.Off%chunk
		out.Reads = append(out.Reads, r)
	}
	return out
}

// joined adds an extent behind others, to the last one where it follows that.
func joined(all []trace.Extent, e trace.Extent) []trace.Extent {
	if n := len(all); n > 0 && all[n-1].Off+all[n-1].Len == e.Off {
		all[n-1].Len += e.Len
		return all
	}
	return append(all, e)
}
