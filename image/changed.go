package image

import (
	"context"
	"fmt"
	"iter"
)

// Extent is a range of a source, in bytes, in which it is not what its base has there.
type Extent struct {
	Off, Len int64
	Zero     bool // it is all zeros
}

// runKind is how the chunks of a run are found.
type runKind int

const (
	runRead  runKind = iota // by reading the source
	runBase                 // by the base's table: source and base have the same there
	runZeros                // they are zeros
)

// changes cuts a source into runs of chunks that are found in one way. One goroutine uses it, in order.
type changes struct {
	g    geometry
	base geometry
	next func() (Extent, error, bool)
	stop func()

	x    Extent // the next that ends behind what was asked for last
	more bool   // there is x
	end  int64  // of the last one
}

// newChanges begins to go through what all has. Where that is nil, everything is read.
func newChanges(all func() iter.Seq2[Extent, error], g geometry, base *Image) *changes {
	if all == nil {
		return nil
	}
	c := &changes{g: g, base: base.g, more: true}
	c.next, c.stop = iter.Pull2(all())
	return c
}

// run returns where the run that begins with a chunk ends, at to or before, and how it is found.
func (c *changes) run(first, to int64) (end int64, kind runKind, err error) {
	size := int64(c.g.chunkSize)
	if err := c.advance(first * size); err != nil {
		return 0, 0, err
	}
	if c.more && c.x.Off < (first+1)*size {
		return c.touched(first, to)
	}
	if end = to; c.more {
		end = min(to, c.x.Off/size)
	}
	whole := min(c.base.size, c.g.size) / size // chunks of the base that are as long in the source
	if c.base.size == c.g.size {
		whole = c.g.chunks()
	}
	switch {
	case first < whole:
		return min(end, whole), runBase, nil
	case first < c.base.chunks(): // which the base has in part
		return first + 1, runRead, nil
	}
	return end, runZeros, nil
}

// touched is run for a chunk that the next extent reaches into.
func (c *changes) touched(first, to int64) (int64, runKind, error) {
	size := int64(c.g.chunkSize)
	xEnd := c.x.Off + c.x.Len
	if c.x.Zero && c.x.Off <= first*size {
		end := xEnd / size
		if xEnd == c.g.size {
			end = c.g.chunks()
		}
		if end > first {
			return min(end, to), runZeros, nil
		}
	}
	if c.x.Zero {
		return first + 1, runRead, nil
	}
	return min((xEnd+size-1)/size, to), runRead, nil
}

// advance leaves behind the extents that end at off or before.
func (c *changes) advance(off int64) error {
	for c.more && c.x.Off+c.x.Len <= off {
		x, err, more := c.next()
		if err != nil {
			return fmt.Errorf("find out what changed: %w", err)
		}
		if more && (x.Off < c.end || x.Len <= 0 || x.Len > c.g.size-x.Off) {
			return fmt.Errorf("what changed is told out of order: %d bytes at %d, after byte %d: %w", x.Len, x.Off, c.end, ErrBadOption)
		}
		c.x, c.more, c.end = x, more, x.Off+x.Len
	}
	return nil
}

// skipZeros returns the first chunk from first on that the base does not have as zeros, at most end.
func (s *scanner) skipZeros(ctx context.Context, first, end int64) (int64, error) {
	size := int64(s.g.chunkSize)
	next, err := s.base.NextData(ctx, first*size)
	if err != nil {
		return 0, fmt.Errorf("read base: %w", err)
	}
	return min(next/size, end), nil
}

// takeFromBase fills a batch with what the base's table says.
func (s *scanner) takeFromBase(ctx context.Context, b *batch) error {
	for index := b.first; index < b.first+b.fromBase; index++ {
		ref, held, err := s.base.locate(ctx, index)
		if err != nil {
			return fmt.Errorf("read base: %w", err)
		}
		c := scanned{zeros: !held}
		if held {
			c.digest, c.parent = ref.digest, &ref.place
		}
		b.chunks = append(b.chunks, c)
	}
	return nil
}
