package trace_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"sync"

	"coppice/cache/trace"
	"coppice/image"
)

const (
	block = 4 << 10
	chunk = image.DefaultChunkSize
)

// near is a disk as an image that lies in memory: what is behind a cache whose hits are counted, and not timed. It is safe for concurrent use.
type near struct {
	disk  *trace.Disk
	chunk int
	mu    sync.Mutex
	pages map[int64][]image.Digest // by first chunk
	bytes int64                    // that were read
}

func nearly(disk *trace.Disk, chunk int) *near {
	return &near{disk: disk, chunk: chunk, pages: map[int64][]image.Digest{}}
}

func (n *near) Size() int64    { return n.disk.Bytes }
func (n *near) ChunkSize() int { return n.chunk }

func (n *near) ContentRoot() image.Digest {
	return sha256.Sum256(fmt.Append(nil, "made ", n.disk.Seed, n.disk.Bytes, n.chunk))
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
			p = p[:min(int64(n.chunk), n.disk.Bytes-off)]
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
