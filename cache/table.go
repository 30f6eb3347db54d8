package cache

import (
	"context"
	"slices"

	"coppice/image"
)

// The pages of an image's chunk table are much, next to what a boot reads: 48 KiB for each 64 MiB of the image. So they, too, are read once for all nodes. A page
// has two parts, each known by its SHA-256, which the page above has. To the tiers behind memory each is a chunk like any other, but for its index.

// tables is an origin with a chunk table of pages, such as an [image.Set].
type tables interface {
	// TableParts returns the two parts of the page with a chunk's entry, its digests and its places, if there is one.
	TableParts(ctx context.Context, index int64) ([]image.TablePart, error)
	// ReadTablePart fills p with one of them.
	ReadTablePart(ctx context.Context, index int64, part image.TablePart, p []byte) error
	// TakeTableParts takes a page's two parts, which are not read from the origin then.
	TakeTableParts(index int64, content, places []byte) error
}

var _ tables = (*image.Set)(nil)

// TableIndex is beyond the index of any chunk. What a [Chunk] names that has this or a higher index is a part of a page of an image's table: its digests at
// TableIndex + 4 × NUMBER, its places at 2 more, where NUMBER counts the pages, of 1,024 chunks each.
const TableIndex = 1 << 38

const (
	tableStride = 4
	tablePlaces = 2
)

// shareTable gives the origin a page of its table through the cache, which may have it from an earlier time when the image was open. What goes wrong only means
// that the page is read from the origin.
func (r *Root) shareTable(ctx context.Context, number int64) {
	c := r.cache
	o, ok := r.origin.(tables)
	if !ok {
		return
	}
	first := number << pageShift
	parts, err := o.TableParts(ctx, first)
	if err != nil || len(parts) != 2 {
		return
	}
	chunks := make([]Chunk, 2)
	for i, p := range parts {
		chunks[i] = Chunk{Key: p.Digest, Root: r.content, Index: TableIndex + number*tableStride + int64(i)*tablePlaces, Len: p.Len}
	}
	for i := range chunks {
		c.curve.request(&chunks[i].Key, accessFill, max(int64(chunks[i].Len), r.chunkBytes()), 0)
	}
	t := c.near.begin(r, false, chunks)
	defer t.end()
	content, err := t.wait(ctx, 0)
	if err != nil {
		return
	}
	places, err := t.wait(ctx, 1)
	if err != nil {
		return
	}
	if err := o.TakeTableParts(first, content.content, places.content); err != nil {
		c.o.Log.Debug("page of a chunk table not taken", "root", r.content, "page", number, "error", err)
	}
}

// firstOfTable returns the first chunk of the page that a part belongs to, and false where the chunk is none.
func (r *Root) firstOfTable(chunk Chunk) (int64, bool) {
	number := (chunk.Index - TableIndex) / tableStride
	return number << pageShift, chunk.Index >= TableIndex && number < int64(len(r.pages))
}

// hasTablePart tells whether a chunk is a part of a page of the table of this image.
func (r *Root) hasTablePart(ctx context.Context, chunk Chunk) bool {
	first, ok := r.firstOfTable(chunk)
	o, has := r.origin.(tables)
	if !ok || !has {
		return false
	}
	parts, err := o.TableParts(ctx, first)
	return err == nil && slices.Contains(parts, image.TablePart{Digest: chunk.Key, Len: chunk.Len})
}

// readTablePart lands a part of a page of the table.
func (c *Cache) readTablePart(ctx context.Context, r *Root, t *ticket) {
	content := make([]byte, t.Len)
	first, _ := r.firstOfTable(t.Chunk)
	err := r.ended(r.origin.(tables).ReadTablePart(ctx, first, image.TablePart{Digest: t.Key, Len: t.Len}, content))
	if err != nil {
		c.far.land(t, fetched{}, err)
		return
	}
	c.arrived(&c.far, t, fetched{content, FromOrigin})
}
