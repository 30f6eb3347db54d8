package union

import (
	"fmt"
	"io"
	"iter"
	"math"
	"sync"
)

// Content is what a device on a sealed layer reads, without a device. It may be read by any number of goroutines.
type Content struct {
	layer *Layer
	base  Base
	pin   Pin
	idle  sync.Pool // of *contentReader
}

// contentReader is what one goroutine needs to read.
type contentReader struct {
	read *storeReader
	c    *chunk
}

// Content returns the content of a layer that is open by [Store.OpenSealed]; base is the root that the layer stands on. It is good for as
// long as both are open.
func (l *Layer) Content(base Base) (*Content, error) {
	pin := l.Pin()
	if d := pin.Difference(rootPin(base)); d != "" && pin.Kind != PinNone {
		return nil, fmt.Errorf("read layer %q: %w: this one has %s", l.Name(), ErrOtherRoot, d)
	}
	return &Content{layer: l, base: base, pin: pin}, nil
}

// Size returns the size of the device in bytes.
func (c *Content) Size() int64 { return c.layer.SizeBytes() }

// Pin identifies the root that the layer stood on when the content was opened; it is zero where it needed none.
func (c *Content) Pin() Pin { return c.pin }

// Changed goes through what does not come from the root, as [Layer.Changed]. It ends with an error where the layer was made independent of the
// root meanwhile: then nothing comes from there.
func (c *Content) Changed() iter.Seq2[ChangedExtent, error] {
	return func(yield func(ChangedExtent, error) bool) {
		for x, err := range c.layer.Changed() {
			if !yield(x, err) || err != nil {
				return
			}
		}
		if c.layer.Pin() != c.pin {
			yield(ChangedExtent{}, c.detached())
		}
	}
}

// Prints goes through what does not come from the root, as [Layer.Prints], and ends with an error where [Content.Changed] does.
func (c *Content) Prints() iter.Seq2[BlockPrint, error] {
	return func(yield func(BlockPrint, error) bool) {
		for x, err := range c.layer.Prints() {
			if !yield(x, err) || err != nil {
				return
			}
		}
		if c.layer.Pin() != c.pin {
			yield(BlockPrint{}, c.detached())
		}
	}
}

func (c *Content) detached() error {
	return fmt.Errorf("layer %q was detached meanwhile: %w", c.layer.Name(), ErrOtherRoot)
}

// ReadAt reads from off on, which is a multiple of 4 KiB. Every block of the store is compared with its checksum.
func (c *Content) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 || off&(blockSize-1) != 0 {
		return 0, fmt.Errorf("read layer %q at byte %d: not a multiple of %d", c.layer.Name(), off, blockSize)
	}
	r, ok := c.idle.Get().(*contentReader)
	if !ok {
		r = &contentReader{c: newChunk()}
	}
	r.read = c.layer.store.newReader()
	defer func() {
		r.read.close()
		c.idle.Put(r)
	}()
	for n < len(p) && off < c.Size() {
		q := p[n:min(n+exportChunk, len(p))]
		q = q[:min(int64(len(q)), c.Size()-off)]
		if err := c.layer.readBlocks(r.read, c.base, q, off, r.c, nil); err != nil {
			return n, fmt.Errorf("read layer %q: %w", c.layer.Name(), err)
		}
		n, off = n+len(q), off+int64(len(q))
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// NextData returns where the next bytes may be that are not zeros, at off or after it; behind the last of them, that is beyond the end.
func (c *Content) NextData(off int64) int64 {
	return min(c.nextTouched(off), nextData(c.base, off))
}

// nextTouched returns where the next region is, from off on, that a layer holds anything of.
func (c *Content) nextTouched(off int64) int64 {
	for first := uint64(off) >> blockShift &^ (regionBlocks - 1); first < c.layer.blocks(); first += regionBlocks {
		if c.layer.touches(first >> regionShift) {
			return max(off, int64(first)<<blockShift)
		}
	}
	return math.MaxInt64
}
