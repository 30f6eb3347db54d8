package image

import (
	"context"
	"fmt"
)

// walk calls f for every chunk that is not zeros, in order. Subtrees of zeros cost nothing.
func (im *Image) walk(ctx context.Context, f func(index int64, c chunkRef) error) error {
	for index := int64(0); index < im.g.chunks(); {
		if err := ctx.Err(); err != nil {
			return err
		}
		p, err := im.leafPage(ctx, index)
		if err != nil {
			return err
		}
		if p == nil {
			if index, err = im.nextLeaf(ctx, index); err != nil {
				return err
			}
			continue
		}
		first := index &^ (fanOut - 1)
		for i := p.next(0); i < fanOut; i = p.next(i + 1) {
			k, _ := p.find(i)
			c := p.chunk(k)
			if err := im.checkChunk(first+int64(i), &c); err != nil {
				return err
			}
			if err := f(first+int64(i), c); err != nil {
				return err
			}
		}
		index = first + fanOut
	}
	return nil
}

// NextData returns where the next chunk begins that is not zeros, at off or after it, or where the one that off is in goes on; beyond the
// last one it returns the size.
func (im *Image) NextData(ctx context.Context, off int64) (int64, error) {
	size := int64(im.g.chunkSize)
	for index := max(off, 0) / size; index < im.g.chunks(); {
		p, err := im.leafPage(ctx, index)
		if err != nil {
			return 0, err
		}
		if p == nil {
			if index, err = im.nextLeaf(ctx, index); err != nil {
				return 0, err
			}
			continue
		}
		if i := p.next(int(index & (fanOut - 1))); i < fanOut {
			return max(off, (index&^(fanOut-1)+int64(i))*size), nil
		}
		index = index&^(fanOut-1) + fanOut
	}
	return max(off, im.g.size), nil
}

// nextLeaf returns the first chunk behind a subtree of zeros that covers a chunk.
func (im *Image) nextLeaf(ctx context.Context, index int64) (int64, error) {
	if im.config.Root == nil {
		return im.g.chunks(), nil
	}
	ref := *im.config.Root
	for level := im.g.levels() - 1; level > 0; level-- {
		p, err := im.page(ctx, ref, level, index)
		if err != nil {
			return 0, err
		}
		shift := level * fanShift
		i := int(index >> shift & (fanOut - 1))
		k, held := p.find(i)
		if !held {
			first := index >> (shift + fanShift) << fanShift
			return (first + int64(p.next(i))) << shift, nil
		}
		if ref, err = im.childRef(p, k, index); err != nil {
			return 0, err
		}
	}
	return index, nil
}

// childRef returns the reference to a page that another one holds.
func (im *Image) childRef(p *page, k int, index int64) (PageRef, error) {
	ref, err := p.child(k)
	if err == nil && ref.Offset > im.manifest.Table.Size-int64(ref.Length) {
		err = fmt.Errorf("lies beyond the end of the table of %d bytes", im.manifest.Table.Size)
	}
	if err != nil {
		return ref, im.corrupt("table page", fmt.Sprintf("of level %d over chunk %d", p.level-1, index), "%w", err)
	}
	return ref, nil
}

// readStored returns the stored bytes of a chunk with n bytes of content, which is verified.
func (im *Image) readStored(ctx context.Context, n int, c chunkRef) ([]byte, error) {
	stored := make([]byte, c.place.stored)
	err := im.request(ctx, func() error { return im.src.ReadBlob(ctx, im.manifest.Packs[c.place.pack], stored, c.place.offset) })
	if err != nil {
		return nil, err
	}
	if err := unpack(make([]byte, n), stored, c.digest); err != nil {
		return nil, im.corrupt("chunk", c.digest.String(), "%w", err)
	}
	return stored, nil
}
