package cache

import (
	"context"
	"errors"

	"coppice/image"
)

// Key is the SHA-256 of a chunk's content.
type Key = image.Digest

// ErrMiss is what a tier answers that does not have a chunk.
var ErrMiss = errors.New("not cached")

// Chunk names a chunk, and says where it can be fetched by whoever has the image open.
type Chunk struct {
	Key   Key
	Root  image.Digest // content root of an image that it is part of
	Index int64        // its number there, in chunks
	Len   int          // its length in bytes
}

// Tier is a place between memory and the origin of an image. It is safe for concurrent use.
type Tier interface {
	// Get fills p, which is as long as the chunk, or fails: with [ErrMiss] where the tier works and does not have it. It ends soon after ctx
	// does. What it gives need not be right: the caller verifies it.
	Get(ctx context.Context, c Chunk, p []byte) error

	// Put offers a verified chunk. It does not wait for I/O, and keeps nothing of content when it returns: what there is no room for
	// just now is not taken.
	Put(c Chunk, content []byte)

	// Reject tells that what Get gave for a chunk was not that.
	Reject(c Chunk)
}

// Holder is a [Tier] of others who may fetch what they are asked for. Who goes to the origin itself, for all of them, asks what they have first.
type Holder interface {
	// Held does what Get does, of what the others have without a fetch.
	Held(ctx context.Context, c Chunk, p []byte) error
}

// Hearer is a [Tier] of others, or what has one, that wants to know who has which image open: whoever asks for a chunk to be fetched has.
type Hearer interface {
	Heard(url string, root image.Digest)
}

// Origin is an image as it is read where no tier has a chunk, such as an [image.Set]. It is safe for concurrent use.
type Origin interface {
	// Size returns the length of the image in bytes, at least 1.
	Size() int64
	// ChunkSize returns the length of all chunks but the last in bytes, a power of two.
	ChunkSize() int
	// ContentRoot returns what identifies the content.
	ContentRoot() image.Digest
	// Digests fills d with the digests of the chunks from index first on, which exist. That of a chunk of zeros is the zero Digest.
	Digests(ctx context.Context, first int64, d []image.Digest) error
	// Read fills p from byte off on with verified bytes. It waits for as long as the origin has patience.
	Read(ctx context.Context, p []byte, off int64) error
}
