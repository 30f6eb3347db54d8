package image

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Source is where images are read from: a directory, a web server, a registry. It is safe for concurrent use. What it answers is verified by
// those who ask.
type Source interface {
	// Manifest returns the manifest that a name means: a tag, or a digest. It fails with [ErrNotFound] where there is none.
	Manifest(ctx context.Context, name string) ([]byte, error)

	// ReadBlob fills p from byte off of a blob on. The range lies within the blob's size.
	ReadBlob(ctx context.Context, blob ocispec.Descriptor, p []byte, off int64) error

	// OpenBlob returns a whole blob, to be read to its end and closed.
	OpenBlob(ctx context.Context, blob ocispec.Descriptor) (io.ReadCloser, error)

	// Tags returns the names that Manifest takes, without digests, in order.
	Tags(ctx context.Context) ([]string, error)

	// String says in words where it is.
	String() string

	// Close gives up what the source holds. No call may be under way.
	Close() error
}

// Target is a source that images can be written to.
type Target interface {
	Source

	// HasBlob reports whether a blob is there.
	HasBlob(ctx context.Context, blob ocispec.Descriptor) (bool, error)

	// PutBlob stores a blob, which is not there. It fails with a [CorruptError] where r has other bytes than the descriptor says.
	PutBlob(ctx context.Context, blob ocispec.Descriptor, r io.Reader) error

	// PutManifest stores a manifest whose blobs are there, and lets a tag mean it.
	PutManifest(ctx context.Context, tag string, data []byte) error

	// Remove forgets a tag, and what only it used where the target can tell.
	Remove(ctx context.Context, tag string) error
}

// checkManifest compares a manifest with the digest that it was asked for by.
func checkManifest(data []byte, want Digest, name string, from fmt.Stringer) error {
	if got := Digest(sha256.Sum256(data)); got != want {
		return &CorruptError{"manifest", fmt.Sprintf("%s from %s", name, from), fmt.Sprintf("has digest %s, not %s", got, want)}
	}
	return nil
}

// fetchManifest reads and decodes what a name means, and returns what was read, too.
func fetchManifest(ctx context.Context, src Source, name string) (*manifest, ocispec.Descriptor, []byte, error) {
	data, err := src.Manifest(ctx, name)
	if err != nil {
		return nil, ocispec.Descriptor{}, nil, err
	}
	desc := descriptor(ocispec.MediaTypeImageManifest, data)
	place := fmt.Sprintf("%s of %s", name, src)
	if want, err := ParseDigest(name); err == nil && want.oci() != desc.Digest {
		return nil, desc, nil, &CorruptError{"manifest", place, fmt.Sprintf("has digest %s", desc.Digest)}
	}
	m, err := decodeManifest(data)
	if err != nil {
		return nil, desc, nil, fmt.Errorf("manifest %s: %w", place, err)
	}
	desc.ArtifactType = MediaTypeImage
	return m, desc, data, nil
}
