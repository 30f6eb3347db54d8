package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"path/filepath"
	"sync"

	"golang.org/x/sync/errgroup"

	"coppice/union"
)

const (
	// maxContentRead bounds one read of a layer's content.
	maxContentRead = 1 << 20
	maxContents    = 16
	// Bounds of a question for many ranges.
	maxContentRanges = 1024
	maxRangesBytes   = 4 << 20
	// rangesAtOnce is how many of them are read at a time.
	rangesAtOnce = 8
)

// ContentRequest asks for the content of a sealed layer.
type ContentRequest struct {
	Store string `json:"store"` // absolute path
	Layer string `json:"layer"`
	Root  string `json:"root,omitempty"` // that the layer stands on; "" for one that a device has
}

// OpenedContent describes a content that the daemon has open.
type OpenedContent struct {
	Token     string    `json:"token"`
	SizeBytes int64     `json:"size_bytes"`
	Root      string    `json:"root"` // reference of the root, "" where the layer needs none
	Pin       union.Pin `json:"pin"`
}

// ContentRange is a part of a content: Len bytes from Off on, a multiple of 4 KiB.
type ContentRange struct {
	Off int64 `json:"off"`
	Len int64 `json:"len"`
}

// RangesRequest asks for many parts of a content, which come one after the other.
type RangesRequest struct {
	Ranges []ContentRange `json:"ranges"`
}

// NextContent says where the next data of a content may be; negative for nowhere.
type NextContent struct {
	Next int64 `json:"next"`
}

// LayerContent is what a device on a sealed layer reads. It may be read by any number of goroutines.
type LayerContent interface {
	io.ReaderAt // from a multiple of 4 KiB on
	Size() int64
	// ReadRanges fills p with all ranges, one after the other, which takes a question to the daemon for some MiB of them instead of one for each.
	ReadRanges(p []byte, ranges []ContentRange) error
	// NextData returns where the next bytes may be that are not zeros, at off or after it.
	NextData(off int64) int64
	// Changed goes through what does not come from the root.
	Changed() iter.Seq2[union.ChangedExtent, error]
	// Prints goes through it by block, with what tells later whether the block is still the same: see [union.Layer.Prints].
	Prints() iter.Seq2[union.BlockPrint, error]
	// Pin identifies the root that the layer stands on, Root refers to it.
	Pin() union.Pin
	Root() string
}

// content is an open [union.Content] and what it reads.
type content struct {
	*union.Content
	layer *union.Layer
	base  union.Base // to be closed with it; nil for none
	root  string

	mu sync.RWMutex // held for reading while it is read, and for writing when it has been closed
}

// ReadRanges reads several at a time: each may be in another place of a disk.
func (c *content) ReadRanges(p []byte, ranges []ContentRange) error {
	var group errgroup.Group
	group.SetLimit(rangesAtOnce)
	for _, r := range ranges {
		part := p[:r.Len]
		p = p[r.Len:]
		group.Go(func() error {
			_, err := c.ReadAt(part, r.Off)
			return err
		})
	}
	return group.Wait()
}

// Root returns the reference of the root.
func (c *content) Root() string { return c.root }

// openContent opens a sealed layer over the root that find gives, nil for none.
func openContent(st *union.Store, layer string, find func(union.Pin) (union.Base, string, error)) (*content, error) {
	l, err := st.OpenSealed(layer)
	if err != nil {
		return nil, err
	}
	c := &content{layer: l}
	if pin := l.Pin(); pin.Kind != union.PinNone {
		c.base, c.root, err = find(pin)
	}
	if err == nil {
		c.Content, err = l.Content(c.base)
	}
	if err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

// close waits for those who read, and closes what was read.
func (c *content) close() error {
	c.mu.Lock()
	c.layer.CloseSealed()
	if c.base == nil {
		return nil
	}
	return c.base.Close()
}

// contents has what clients have open.
type contents struct {
	mu   sync.Mutex
	open map[string]*content
}

// enter gives a content its token.
func (t *contents) enter(c *content) (token string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.open) >= maxContents {
		return "", fail(CodeBusy, "wait until others have ended", "%d contents of layers are being read", len(t.open))
	}
	if t.open == nil {
		t.open = make(map[string]*content)
	}
	token = fmt.Sprintf("%016x%016x", rand.Uint64(), rand.Uint64())
	t.open[token] = c
	return token, nil
}

func (t *contents) leave(token string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, token)
}

// use returns what a token means, and keeps it open until done is called.
func (t *contents) use(token string) (c *content, done func(), err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c, ok := t.open[token]
	if !ok || !c.mu.TryRLock() { // which fails when it is being closed
		return nil, nil, fail(CodeNotFound, "start again", "that content is not open any more")
	}
	return c, c.mu.RUnlock, nil
}

// OpenContent opens the content of a sealed layer, tells it to opened, and keeps it open until ctx ends, or the daemon.
func (d *Daemon) OpenContent(ctx context.Context, r ContentRequest, opened func(OpenedContent) error) (err error) {
	if err := r.check(); err != nil {
		return err
	}
	if err := d.begin(ctx); err != nil {
		return err
	}
	defer d.ops.Done()
	st, err := d.stores.acquire(ctx, r.Store, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stores.release(st)) }()
	c, err := openContent(st.Store, r.Layer, func(pin union.Pin) (union.Base, string, error) {
		setDefault(&r.Root, d.rootWith(pin))
		if r.Root == "" {
			return nil, "", rootNeeded(r.Layer, "a root that no device has")
		}
		base, err := d.roots.openFor(r.Root, pin)
		return base, r.Root, err
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	return d.lendContent(ctx, c, opened)
}

// lendContent tells the token of a content to opened, and lets clients read it until ctx ends, or the daemon.
func (d *Daemon) lendContent(ctx context.Context, c *content, opened func(OpenedContent) error) error {
	token, err := d.contents.enter(c)
	if err != nil {
		return err
	}
	defer d.contents.leave(token)
	if err := opened(OpenedContent{Token: token, SizeBytes: c.Size(), Root: c.root, Pin: c.Pin()}); err != nil {
		return clientGone(err)
	}
	select {
	case <-ctx.Done():
		return nil // the client is done
	case <-d.quit.Done():
		return fail(CodeStopping, "start again when it has been started again", "the daemon is stopping")
	}
}

func (r ContentRequest) check() error {
	if !filepath.IsAbs(r.Store) {
		return fail(CodeBadRequest, "give an absolute path", "leaf store %q is not an absolute path", r.Store)
	}
	if err := union.ValidLayerName(r.Layer); err != nil {
		return fail(CodeBadRequest, "`coppice store info STORE` lists the layers", "%w", err)
	}
	if r.Root == "" {
		return nil
	}
	_, err := checkRoot(r.Root)
	return err
}

func rootNeeded(layer, what string) error {
	return fail(CodeBadRequest, "give it: --root REF", "layer %s stands on %s", layer, what)
}

// ReadContent fills p with what a content has from off on, all of it.
func (d *Daemon) ReadContent(token string, p []byte, off int64) error {
	c, done, err := d.contents.use(token)
	if err != nil {
		return err
	}
	defer done()
	if off < 0 || int64(len(p)) > c.Size()-off {
		return fail(CodeBadRequest, "", "%d bytes at %d, of a content of %d", len(p), off, c.Size())
	}
	_, err = c.ReadAt(p, off)
	return err
}

// ReadContentRanges returns what a content has in some ranges.
func (d *Daemon) ReadContentRanges(token string, r RangesRequest) ([]byte, error) {
	c, done, err := d.contents.use(token)
	if err != nil {
		return nil, err
	}
	defer done()
	if len(r.Ranges) > maxContentRanges {
		return nil, fail(CodeBadRequest, "", "%d ranges: up to %d are read at a time", len(r.Ranges), maxContentRanges)
	}
	bytes := int64(0)
	for _, x := range r.Ranges {
		if x.Off < 0 || x.Len < 1 || x.Len > c.Size()-x.Off {
			return nil, fail(CodeBadRequest, "", "%d bytes at %d, of a content of %d", x.Len, x.Off, c.Size())
		}
		if bytes += x.Len; bytes > maxRangesBytes {
			return nil, fail(CodeBadRequest, "", "ranges of over %d bytes", maxRangesBytes)
		}
	}
	p := make([]byte, bytes)
	return p, c.ReadRanges(p, r.Ranges)
}

// NextContent tells where the next data of a content is.
func (d *Daemon) NextContent(token string, off int64) (NextContent, error) {
	c, done, err := d.contents.use(token)
	if err != nil {
		return NextContent{}, err
	}
	defer done()
	if off < 0 || off >= c.Size() {
		return NextContent{-1}, nil
	}
	if next := c.NextData(off); next < c.Size() {
		return NextContent{next}, nil
	}
	return NextContent{-1}, nil
}

// ChangedContent reports what of a content does not come from its root.
func (d *Daemon) ChangedContent(token string, emit func(ChangedPart) error) error {
	c, done, err := d.contents.use(token)
	if err != nil {
		return err
	}
	defer done()
	var part ChangedPart
	total := &ChangedTotal{}
	for x, err := range c.Changed() {
		if err != nil {
			return err
		}
		total.add(x)
		if part.Extents = append(part.Extents, x); len(part.Extents) == changedPart {
			if err := emit(part); err != nil {
				return clientGone(err)
			}
			part.Extents = nil
		}
	}
	part.Total = total
	return emit(part)
}

// PrintsPart is one line of the answer about the blocks of a content: for each 16 bytes, little-endian, the number of the block and its print. The last one is
// empty.
type PrintsPart struct {
	Blocks []byte `json:"blocks"`
}

const printBytes = 16

// PrintsContent reports the prints of what of a content does not come from its root.
func (d *Daemon) PrintsContent(token string, emit func(PrintsPart) error) error {
	c, done, err := d.contents.use(token)
	if err != nil {
		return err
	}
	defer done()
	const atOnce = 4096
	part := PrintsPart{Blocks: make([]byte, 0, atOnce*printBytes)}
	for x, err := range c.Prints() {
		if err != nil {
			return err
		}
		part.Blocks = binary.LittleEndian.AppendUint64(part.Blocks, x.Block)
		part.Blocks = binary.LittleEndian.AppendUint64(part.Blocks, x.Print)
		if len(part.Blocks) == cap(part.Blocks) {
			if err := emit(part); err != nil {
				return clientGone(err)
			}
			part.Blocks = part.Blocks[:0]
		}
	}
	if len(part.Blocks) > 0 {
		if err := emit(part); err != nil {
			return clientGone(err)
		}
	}
	return emit(PrintsPart{})
}

// withContentOffline is for a machine where no daemon has runDir.
func withContentOffline(runDir string, cfg ImageConfig, r ContentRequest, do func(LayerContent) error) error {
	if err := r.check(); err != nil {
		return err
	}
	return withStoreOffline(runDir, r.Store, nil, func(st *union.Store) (err error) {
		c, err := openContent(st, r.Layer, func(pin union.Pin) (union.Base, string, error) {
			if r.Root == "" {
				return nil, "", rootNeeded(r.Layer, "a root")
			}
			base, err := (&roots{cfg: cfg}).openFor(r.Root, pin)
			return base, r.Root, err
		})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, c.close()) }()
		return do(c)
	})
}
