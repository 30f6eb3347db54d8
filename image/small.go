package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// MaxSmall is the length in bytes of the largest blob that is small: what describes an image or an index, and not what is in it.
const MaxSmall = 64 << 10

// Small fills p, which is as long as the blob and at most [MaxSmall], with a manifest or another blob by its digest, and has verified it. Where that comes from is its business. It is how what describes an index is
// read once for many nodes.
type Small func(ctx context.Context, digest Digest, manifest bool, p []byte) error

// ReadSmall is a [Small] that asks the replicas that are open, each once, and takes no time but theirs.
func (s *Set) ReadSmall(ctx context.Context, digest Digest, manifest bool, p []byte) error {
	err := fmt.Errorf("small blob %s: %w", digest, ErrNoReplica)
	var errs []error
	for _, r := range s.openReplicas() {
		if err != nil && ctx.Err() == nil {
			if err = readSmall(ctx, r.member.im.src, digest, manifest, p); err != nil {
				errs = append(errs, fmt.Errorf("replica %s: small blob %s: %w", r.ref, digest, err))
			}
		}
		s.leaveMember(r.member)
	}
	if err != nil && len(errs) > 0 {
		return errors.Join(errs...)
	}
	return err
}

func readSmall(ctx context.Context, src Source, digest Digest, manifest bool, p []byte) error {
	if manifest {
		data, err := src.Manifest(ctx, digest.String())
		if err != nil {
			return err
		}
		if len(data) != len(p) {
			return fmt.Errorf("has %d bytes, not %d: %w", len(data), len(p), ErrNotFound)
		}
		copy(p, data)
	} else if err := src.ReadBlob(ctx, ocispec.Descriptor{Digest: digest.oci(), Size: int64(len(p))}, p, 0); err != nil {
		return err
	}
	if got := Digest(sha256.Sum256(p)); got != digest {
		return &CorruptError{"blob", fmt.Sprintf("%s from %s", digest, src), fmt.Sprintf("has digest %s", got)}
	}
	return nil
}

// resolver is a source in which what a tag means is known before the manifest is read.
type resolver interface {
	// resolve returns digest and size of the manifest that a tag means.
	resolve(ctx context.Context, tag string) (Digest, int64, error)
}

// nearby is a source whose small blobs come from elsewhere, where they are there, and which keeps what was read. It is used by one goroutine.
type nearby struct {
	Source
	small Small // nil: nobody else has any
	read  map[Digest][]byte
}

// near returns a small blob from elsewhere, or nil.
func (n nearby) near(ctx context.Context, digest Digest, manifest bool, size int64) []byte {
	if n.small == nil || size < 1 || size > MaxSmall {
		return nil
	}
	p := make([]byte, size)
	if n.small(ctx, digest, manifest, p) != nil || sha256.Sum256(p) != digest {
		return nil // the source itself tells what is wrong
	}
	n.read[digest] = p
	return p
}

// Manifest returns the manifest that a tag means. What it means the source is asked, and for the manifest where nobody else has it.
func (n nearby) Manifest(ctx context.Context, tag string) ([]byte, error) {
	src := n.Source
	if m, ok := src.(measured); ok {
		src = m.Source
	}
	if r, ok := src.(resolver); ok && n.small != nil {
		digest, size, err := r.resolve(ctx, tag)
		if err != nil {
			return nil, err
		}
		if data := n.near(ctx, digest, true, size); data != nil {
			return data, nil
		}
		tag = digest.String()
	}
	data, err := n.Source.Manifest(ctx, tag)
	if err == nil {
		n.read[sha256.Sum256(data)] = data
	}
	return data, err
}

// ReadBlob fills p from byte off of a blob on.
func (n nearby) ReadBlob(ctx context.Context, blob ocispec.Descriptor, p []byte, off int64) error {
	whole := off == 0 && int64(len(p)) == blob.Size
	digest, err := ParseDigest(string(blob.Digest))
	if err == nil && whole {
		if data := n.near(ctx, digest, false, blob.Size); data != nil {
			copy(p, data)
			return nil
		}
	}
	readErr := n.Source.ReadBlob(ctx, blob, p, off)
	if err == nil && whole && readErr == nil && len(p) <= MaxSmall && sha256.Sum256(p) == digest {
		n.read[digest] = append([]byte(nil), p...)
	}
	return readErr
}
