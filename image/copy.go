package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// copiers is how many blobs are copied at a time.
const copiers = 4

// CopyOptions says how an image is copied. The zero value is complete.
type CopyOptions struct {
	// Repair reads the blobs that are there already, and copies those that are damaged. It is for layouts only.
	Repair bool
	// Progress is told how many bytes are done, of how many.
	Progress func(done, total int64)
	// Pace is called when n bytes have been read from the source, by several goroutines, and may hold up the copy before it reads more. Its error ends the copy.
	Pace func(ctx context.Context, n int) error
}

// CopyReport tells what a copy did. Blobs are those of the image, and of its index where it has one.
type CopyReport struct {
	Manifest    Digest   `json:"manifest"`
	ContentRoot Digest   `json:"content_root"`
	SizeBytes   int64    `json:"size_bytes"`
	Blobs       int      `json:"blobs"`
	CopiedBytes int64    `json:"copied_bytes"` // of blobs that were not there
	SharedBytes int64    `json:"shared_bytes"` // of blobs that were
	Repaired    int      `json:"repaired"`     // blobs
	Damaged     []string `json:"damaged,omitempty"`
}

// Copy carries an image, its signatures, its trace and its index to a target, where a tag means it then. Blobs that are there already are not copied; those that
// are, are compared with their digests. A copy that was interrupted goes on with the first blob that is missing when it is called again.
//
// A trace or an index that is damaged is left behind, and Damaged of the report says what is wrong with it: the image is whole without.
func Copy(ctx context.Context, im *Image, dst Target, tag string, o CopyOptions) (CopyReport, error) {
	report := CopyReport{ContentRoot: im.ContentRoot(), SizeBytes: im.Size()}
	if err := report.run(ctx, im, dst, tag, o); err != nil {
		return report, fmt.Errorf("copy image %s from %s to %s: %w", im.name, im.src, dst, err)
	}
	return report, nil
}

func (r *CopyReport) run(ctx context.Context, im *Image, dst Target, tag string, o CopyOptions) (err error) {
	if _, ok := dst.(*Layout); o.Repair && !ok {
		return fmt.Errorf("only blobs in a directory can be repaired: %w", ErrBadOption)
	}
	if keeper, ok := dst.(interface{ hold() (func(), error) }); ok {
		release, err := keeper.hold()
		if err != nil {
			return err
		}
		defer release()
	}
	data, err := im.src.Manifest(ctx, string(im.desc.Digest))
	if err != nil {
		return err
	}
	if got := descriptor(ocispec.MediaTypeImageManifest, data); got.Digest != im.desc.Digest {
		return &CorruptError{"manifest", im.name, fmt.Sprintf("has digest %s, not %s", got.Digest, im.desc.Digest)}
	}
	index, err := im.indexLayersOf(ctx)
	if err := r.leave("index", err); err != nil {
		return err
	}
	c := copier{src: im.src, dst: dst, o: o, total: sum(uniqueBlobs(im.manifest.blobs()))}
	if index != nil {
		c.total += sum(uniqueBlobs(index.blobs()))
	}
	defer c.report(r)
	if err := c.copy(ctx, im.manifest.blobs()); err != nil {
		return err
	}
	if err := dst.PutManifest(ctx, tag, data); err != nil {
		return err
	}
	if err := copySignatures(ctx, im, dst); err != nil {
		return err
	}
	if err := r.leave("trace", copyTrace(ctx, im, dst, im.desc)); err != nil {
		return err
	}
	if index != nil {
		if err = c.copy(ctx, index.blobs()); err == nil {
			err = index.put(ctx, dst, im.desc)
		}
		if err := r.leave("index", err); err != nil {
			return err
		}
	}
	r.Manifest, err = ParseDigest(string(im.desc.Digest))
	return err
}

// leave takes down what is left behind because it is damaged. It returns other errors.
func (r *CopyReport) leave(what string, err error) error {
	if err == nil || errors.Is(err, ErrNotAttached) {
		return nil
	}
	if !isDamaged(err) {
		return fmt.Errorf("copy %s: %w", what, err)
	}
	r.Damaged = append(r.Damaged, fmt.Sprintf("%s: %v", what, err))
	return nil
}

// copier copies the blobs of one image and of what is about it.
type copier struct {
	src   Source
	dst   Target
	o     CopyOptions
	total int64 // bytes to copy

	blobs          int
	copied, shared atomic.Int64
	repaired       atomic.Int64
	mu             sync.Mutex // guards done, and calls of progress
	done           int64
}

func (c *copier) report(r *CopyReport) {
	r.Blobs, r.CopiedBytes, r.SharedBytes, r.Repaired = c.blobs, c.copied.Load(), c.shared.Load(), int(c.repaired.Load())
}

func (c *copier) count(n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done += n; c.o.Progress != nil {
		c.o.Progress(c.done, c.total)
	}
}

// copy copies blobs that are not there, or not whole where that is looked at.
func (c *copier) copy(ctx context.Context, blobs []ocispec.Descriptor) error {
	blobs = uniqueBlobs(blobs)
	c.blobs += len(blobs)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(copiers)
	for _, b := range blobs {
		group.Go(func() error { return c.copyOne(ctx, b) })
	}
	return group.Wait()
}

func (c *copier) copyOne(ctx context.Context, b ocispec.Descriptor) error {
	there, err := c.dst.HasBlob(ctx, b)
	if l, ok := c.dst.(*Layout); ok && there && c.o.Repair {
		if there, err = l.isWhole(ctx, b); err == nil && !there {
			c.repaired.Add(1)
		}
	}
	if there {
		c.shared.Add(b.Size)
		c.count(b.Size)
	}
	if there || err != nil {
		return err
	}
	c.copied.Add(b.Size)
	return putBlob(ctx, c.src, c.dst, b, func(n int64) error {
		c.count(n)
		if c.o.Pace == nil {
			return nil
		}
		return c.o.Pace(ctx, int(n))
	})
}

func uniqueBlobs(all []ocispec.Descriptor) []ocispec.Descriptor {
	seen := map[string]bool{}
	var out []ocispec.Descriptor
	for _, b := range all {
		if !seen[string(b.Digest)] {
			seen[string(b.Digest)] = true
			out = append(out, b)
		}
	}
	return out
}

// copyBlob copies a blob unless it is there.
func copyBlob(ctx context.Context, src Source, dst Target, blob ocispec.Descriptor, count func(int64) error) error {
	if there, err := dst.HasBlob(ctx, blob); there || err != nil {
		return err
	}
	return putBlob(ctx, src, dst, blob, count)
}

func putBlob(ctx context.Context, src Source, dst Target, blob ocispec.Descriptor, count func(int64) error) error {
	r, err := src.OpenBlob(ctx, blob)
	if err != nil {
		return err
	}
	defer r.Close()
	return dst.PutBlob(ctx, blob, &countingReader{r, count})
}

// countingReader tells how much was read, and ends with what it is told then.
type countingReader struct {
	r     io.Reader
	count func(int64) error
}

func (r *countingReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if r.count != nil {
		if stop := r.count(int64(n)); stop != nil {
			return n, stop
		}
	}
	return n, err
}
