package image

import (
	"context"
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

// CopyReport tells what a copy did.
type CopyReport struct {
	Manifest    Digest `json:"manifest"`
	ContentRoot Digest `json:"content_root"`
	SizeBytes   int64  `json:"size_bytes"`
	Blobs       int    `json:"blobs"`
	CopiedBytes int64  `json:"copied_bytes"` // of blobs that were not there
	SharedBytes int64  `json:"shared_bytes"` // of blobs that were
	Repaired    int    `json:"repaired"`     // blobs
}

// Copy carries an image, its signatures and its trace to a target, where a tag means it then. Blobs that are there already are not copied; those that
// are, are compared with their digests. A copy that was interrupted goes on with the first blob that is missing when it is called again.
func Copy(ctx context.Context, im *Image, dst Target, tag string, o CopyOptions) (CopyReport, error) {
	report := CopyReport{Manifest: Digest{}, ContentRoot: im.ContentRoot(), SizeBytes: im.Size()}
	fail := func(err error) (CopyReport, error) {
		return report, fmt.Errorf("copy image %s from %s to %s: %w", im.name, im.src, dst, err)
	}
	if _, ok := dst.(*Layout); o.Repair && !ok {
		return fail(fmt.Errorf("only blobs in a directory can be repaired: %w", ErrBadOption))
	}
	if keeper, ok := dst.(interface{ hold() (func(), error) }); ok {
		release, err := keeper.hold()
		if err != nil {
			return fail(err)
		}
		defer release()
	}
	data, err := im.src.Manifest(ctx, string(im.desc.Digest))
	if err != nil {
		return fail(err)
	}
	if got := descriptor(ocispec.MediaTypeImageManifest, data); got.Digest != im.desc.Digest {
		return fail(&CorruptError{"manifest", im.name, fmt.Sprintf("has digest %s, not %s", got.Digest, im.desc.Digest)})
	}
	if err := report.copyBlobs(ctx, im, dst, o); err != nil {
		return fail(err)
	}
	if err := dst.PutManifest(ctx, tag, data); err != nil {
		return fail(err)
	}
	if err := copySignatures(ctx, im, dst); err != nil {
		return fail(err)
	}
	if err := copyTrace(ctx, im, dst, im.desc); err != nil {
		return fail(err)
	}
	report.Manifest, err = ParseDigest(string(im.desc.Digest))
	return report, err
}

func (r *CopyReport) copyBlobs(ctx context.Context, im *Image, dst Target, o CopyOptions) error {
	blobs := uniqueBlobs(im.manifest.blobs())
	total := sum(blobs)
	var copied, repaired atomic.Int64
	var mu sync.Mutex // guards done, and calls of progress
	done := int64(0)
	count := func(n int64) {
		mu.Lock()
		defer mu.Unlock()
		if done += n; o.Progress != nil {
			o.Progress(done, total)
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(copiers)
	for _, b := range blobs {
		group.Go(func() error {
			there, err := dst.HasBlob(ctx, b)
			if l, ok := dst.(*Layout); ok && there && o.Repair {
				if there, err = l.isWhole(ctx, b); err == nil && !there {
					repaired.Add(1)
				}
			}
			if there {
				count(b.Size)
			}
			if there || err != nil {
				return err
			}
			copied.Add(b.Size)
			return putBlob(ctx, im.src, dst, b, func(n int64) error {
				count(n)
				if o.Pace == nil {
					return nil
				}
				return o.Pace(ctx, int(n))
			})
		})
	}
	err := group.Wait()
	r.Blobs, r.CopiedBytes, r.SharedBytes = len(blobs), copied.Load(), total-copied.Load()
	r.Repaired = int(repaired.Load())
	return err
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
