package cache

import (
	"context"
	"sync"
	"time"

	"coppice/image"
)

// mostFailures is how many small blobs are looked for in askedAgain that cannot be read, before others get none that is not cached: nobody makes a node ask an origin for one made-up name after the other.
const mostFailures = 16

// failures counts what went wrong lately. The zero value has none.
type failures struct {
	mu    sync.Mutex // guards what follows
	began time.Time
	n     int
}

func (f *failures) add() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := time.Now(); now.Sub(f.began) > askedAgain {
		f.began, f.n = now, 0
	}
	f.n++
}

func (f *failures) many() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.n >= mostFailures && time.Since(f.began) <= askedAgain
}

// What describes an index of an image is small, and yet many nodes that open it at once would each ask the origin for it. So it is read once for all nodes as chunks are: it is known by its SHA-256, and
// whoever has the image open can fetch it.

// smalls is an origin beside whose image there are small blobs, such as an [image.Set].
type smalls interface {
	// ReadSmall fills p with one, and has verified it.
	ReadSmall(ctx context.Context, digest image.Digest, manifest bool, p []byte) error
}

var _ smalls = (*image.Set)(nil)

// SmallIndex is beyond the index of any part of a table. A [Chunk] with this index is no part of the image but a blob of at most [image.MaxSmall] bytes beside it, with the next one a manifest.
const SmallIndex = TableIndex + TableIndex/2

// ReadSmall fills p with a small blob that is kept beside the image, from memory, from the disk, from peers and appliances, or from the origin.
func (r *Root) ReadSmall(ctx context.Context, digest image.Digest, manifest bool, p []byte) error {
	c := r.cache
	if c.memory.read(&digest, p, 0, true) {
		return nil
	}
	chunk := Chunk{Key: digest, Root: r.content, Index: SmallIndex, Len: len(p)}
	if manifest {
		chunk.Index++
	}
	c.curve.request(&chunk.Key, accessFill, max(int64(chunk.Len), r.chunkBytes()), 0)
	got, err := c.near.one(ctx, r, chunk)
	if err == nil {
		copy(p, got.content)
	}
	return err
}

func (c Chunk) isSmall() bool { return c.Index == SmallIndex || c.Index == SmallIndex+1 }

// hasSmall tells whether a chunk is a small blob that can be asked for beside this image, for others.
func (r *Root) hasSmall(chunk Chunk) bool {
	_, ok := r.origin.(smalls)
	return ok && chunk.isSmall() && chunk.Len <= image.MaxSmall && !r.cache.notSmall.many()
}

// readSmall lands a small blob.
func (c *Cache) readSmall(ctx context.Context, r *Root, t *ticket) {
	content := make([]byte, t.Len)
	if err := r.ended(r.origin.(smalls).ReadSmall(ctx, t.Key, t.Index > SmallIndex, content)); err != nil {
		c.notSmall.add()
		c.far.land(t, fetched{}, err)
		return
	}
	c.arrived(&c.far, t, fetched{content, FromOrigin})
}
