package image

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
)

// TablePart is one of the two parts of a page of a chunk table, which may come from anywhere: its digest says what it is.
type TablePart struct {
	Digest Digest
	Len    int // bytes, at least 16
}

// parts returns what a page of level 0 consists of: its digests, and its places.
func (r *PageRef) parts() []TablePart {
	n := (r.Length - digestsAt) / (digestSize + chunkPlace)
	return []TablePart{{r.Digest, contentLen(n)}, {r.Places, n * chunkPlace}}
}

// TableParts returns the parts of the page of the chunk table that has a chunk's entry: its digests, and its places as one of the replicas has them. There are
// none where all entries are zeros. Pages above it are read where they are missing.
func (s *Set) TableParts(ctx context.Context, index int64) ([]TablePart, error) {
	if index < 0 || index >= s.g.chunks() {
		return nil, fmt.Errorf("table of chunk %d: the image has %d", index, s.g.chunks())
	}
	return answer(ctx, s, index, func(ctx context.Context, im *Image) ([]TablePart, error) {
		ref, ok, err := im.leafRef(index, im.reading(ctx, index))
		if err != nil || !ok {
			return nil, err
		}
		return ref.parts(), nil
	})
}

// ReadTablePart fills p, which is as long as the part, with a part of the page that has a chunk's entry. It reads the page from a replica that has it, unless
// it is there already, and fails with [ErrNotFound] where the replica that was asked has another one.
func (s *Set) ReadTablePart(ctx context.Context, index int64, part TablePart, p []byte) error {
	content, err := answer(ctx, s, index, func(ctx context.Context, im *Image) ([]byte, error) {
		ref, ok, err := im.leafRef(index, im.reading(ctx, index))
		at := slices.Index(ref.parts(), part)
		if err != nil || !ok || at < 0 {
			return nil, err
		}
		leaf, err := im.page(ctx, ref, 0, index)
		if err != nil {
			return nil, err
		}
		n := contentLen(leaf.n)
		return [][]byte{leaf.raw[:n], leaf.raw[n:]}[at], nil
	})
	if err == nil && content == nil {
		err = ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("part %s of the table of chunk %d: %w", part.Digest, index, err)
	}
	copy(p, content)
	return nil
}

// TakeTableParts takes both parts of the page that has a chunk's entry, so that it is not read from a replica that has the same. They are verified. Nothing
// is read: where the pages above are missing, they are not taken.
func (s *Set) TakeTableParts(index int64, content, places []byte) error {
	digest, where := Digest(sha256.Sum256(content)), Digest(sha256.Sum256(places))
	for _, im := range s.Images() {
		ref, ok, err := im.leafRef(index, im.knowing(index))
		if err != nil || !ok || ref.Digest != digest || ref.Places != where {
			continue
		}
		key := pageKey{ref, 0, im.g.entries(0, index)}
		p, err := decodePage(slices.Concat(content, places), key.level, key.limit)
		if err != nil {
			return im.corrupt("table page", fmt.Sprintf("over chunk %d", index), "%w", err)
		}
		im.pages.Add(key, p)
	}
	return nil
}

// reading gets pages over a chunk from the source where they are missing, knowing only those that are not.
func (im *Image) reading(ctx context.Context, index int64) func(PageRef, int) (*page, error) {
	return func(ref PageRef, level int) (*page, error) { return im.page(ctx, ref, level, index) }
}

func (im *Image) knowing(index int64) func(PageRef, int) (*page, error) {
	return func(ref PageRef, level int) (*page, error) {
		p, ok := im.pages.Get(pageKey{ref, level, im.g.entries(level, index)})
		if !ok {
			return nil, ErrNotFound
		}
		return p, nil
	}
}
