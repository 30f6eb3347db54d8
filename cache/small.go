package cache

import (
	"context"

	"coppice/image"
)

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

// hasSmall tells whether a chunk is a small blob that can be asked for beside this image.
func (r *Root) hasSmall(chunk Chunk) bool {
	_, ok := r.origin.(smalls)
	return ok && chunk.isSmall() && chunk.Len <= image.MaxSmall
}

// readSmall lands a small blob.
func (c *Cache) readSmall(ctx context.Context, r *Root, t *ticket) {
	content := make([]byte, t.Len)
	if err := r.ended(r.origin.(smalls).ReadSmall(ctx, t.Key, t.Index > SmallIndex, content)); err != nil {
		c.far.land(t, fetched{}, err)
		return
	}
	c.arrived(&c.far, t, fetched{content, FromOrigin})
}
