package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"runtime"
	"sync"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"coppice/internal/flight"
)

// cachedPages bounds the pages of the table that an open image keeps: at most 21 MiB, which cover 16 GiB of chunks.
const cachedPages = 256

// fetchers bounds the range requests that an image has under way at once.
const fetchers = 8

// Image is an image that is open for reading. It is immutable.
type Image struct {
	src      Source
	name     string
	manifest *manifest
	desc     ocispec.Descriptor
	config   *Config
	g        geometry
	zeros    [2]Digest         // of a whole chunk of zeros, and of the last one
	metadata map[Digest][]byte // manifest and config

	pages       *lru.Cache[pageKey, *page]
	pageFlights flight.Group[pageKey, *page]
	chunks      *lru.Cache[int64, []byte] // by index; nil unless asked for
	flights     flight.Group[int64, []byte]
	slots       chan struct{} // taken by range requests; nil where somebody else bounds them

	ctx    context.Context // ends when the image is closed
	cancel context.CancelFunc
	work   sync.WaitGroup

	stats stats
}

// Open reads the manifest that a name (a tag, or a digest) means in a source, and the config: nothing else is read before it is asked for.
// The source stays the caller's, and is closed after the image.
func Open(ctx context.Context, src Source, name string) (*Image, error) {
	m, desc, data, err := fetchManifest(ctx, src, name)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	im := &Image{src: src, name: name, manifest: m, desc: desc}
	if err := im.open(ctx, data); err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	return im, nil
}

// open reads the config of an image whose manifest is at hand, and makes it ready for reading.
func (im *Image) open(ctx context.Context, manifest []byte) (err error) {
	im.metadata = map[Digest][]byte{sha256.Sum256(manifest): manifest}
	if err := im.readConfig(ctx); err != nil {
		return err
	}
	if im.pages, err = lru.New[pageKey, *page](cachedPages); err != nil {
		return err
	}
	im.slots = make(chan struct{}, fetchers)
	im.ctx, im.cancel = context.WithCancel(context.Background())
	return nil
}

// Cache keeps about so many bytes of chunks that were read, for whoever reads them again in small pieces. It is called before the first read.
func (im *Image) Cache(bytes int64) {
	im.chunks, _ = lru.New[int64, []byte](int(max(1, bytes/int64(im.g.chunkSize)))) // fails for sizes below 1
}

func (im *Image) readConfig(ctx context.Context) error {
	data, err := im.fetchConfig(ctx)
	if err != nil {
		return err
	}
	c, err := decodeConfig(data)
	if err != nil {
		return im.corrupt("config", "", "%w", err)
	}
	im.config, im.g = c, c.geometry()
	im.zeros = zeroDigests(im.g)
	if c.Root != nil && c.Root.Offset > im.manifest.Table.Size-int64(c.Root.Length) {
		return im.corrupt("config", "", "the root page lies beyond the end of the table")
	}
	return nil
}

// fetchConfig reads the config blob, and compares its digest.
func (im *Image) fetchConfig(ctx context.Context) ([]byte, error) {
	desc := im.manifest.Config
	data := make([]byte, desc.Size) // at most maxConfig
	if err := im.src.ReadBlob(ctx, desc, data, 0); err != nil {
		return nil, fmt.Errorf("read config: %w", err)
	}
	got := Digest(sha256.Sum256(data))
	if got.oci() != desc.Digest {
		return nil, im.corrupt("config", "", "has digest %s, not %s", got, desc.Digest)
	}
	im.metadata[got] = data
	return data, nil
}

// zeroDigests are the digests that no entry may have, because zeros have none.
func zeroDigests(g geometry) [2]Digest {
	p := make([]byte, g.chunkSize)
	return [2]Digest{sha256.Sum256(p), sha256.Sum256(p[:g.chunkLen(g.chunks()-1)])}
}

// corrupt makes a [CorruptError] about a part of the image.
func (im *Image) corrupt(what, which, format string, args ...any) error {
	place := fmt.Sprintf("of %s from %s", im.name, im.src)
	if which != "" {
		place = which + " " + place
	}
	err := fmt.Errorf(format, args...)
	if errors.Is(err, ErrVersion) {
		return fmt.Errorf("%s %s: %w", what, place, err)
	}
	return &CorruptError{what, place, err.Error()}
}

// Size returns the length of the image in bytes, at least 1.
func (im *Image) Size() int64 { return im.g.size }

// ChunkSize returns the size of a chunk in bytes. The last one may be shorter.
func (im *Image) ChunkSize() int { return im.g.chunkSize }

// Chunks returns how many chunks there are.
func (im *Image) Chunks() int64 { return im.g.chunks() }

// ContentRoot returns what identifies the content.
func (im *Image) ContentRoot() Digest { return im.config.ContentRoot }

// Config returns what the config says. It is not to be changed.
func (im *Image) Config() *Config { return im.config }

// Manifest describes the manifest.
func (im *Image) Manifest() ocispec.Descriptor { return im.desc }

// Table describes the blob of the table, Packs those of the packs.
func (im *Image) Table() ocispec.Descriptor { return im.manifest.Table }

// Packs describes the blobs of the packs.
func (im *Image) Packs() []ocispec.Descriptor { return im.manifest.Packs }

// StoredBytes is the length of all blobs of the image, those shared with others included.
func (im *Image) StoredBytes() int64 {
	n := im.desc.Size
	for _, b := range im.manifest.blobs() {
		n += b.Size
	}
	return n
}

// Close ends what is under way, with [ErrClosed] for those who wait for it. No read may begin afterwards.
func (im *Image) Close() error {
	im.cancel()
	im.work.Wait()
	return nil
}

// decoder decompresses chunks: no frame makes more than a chunk.
var decoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(cap(unpacking)), zstd.WithDecoderMaxMemory(MaxChunkSize),
		zstd.WithDecoderMaxWindow(MaxChunkSize), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic(err) // the options above are wrong
	}
	return d
})

// unpacking is held by those who unpack a chunk: as many at a time as there are CPUs. More would not be done sooner, and would take the Go processors from those who serve requests, which
// need one for a moment: on a node with one CPU, what was in memory already was waited for while others were read ahead.
var unpacking = make(chan struct{}, runtime.NumCPU())

// unpack fills p with the content of a chunk from its stored bytes, and compares its digest.
func unpack(p, stored []byte, want Digest) error {
	unpacking <- struct{}{}
	defer func() { <-unpacking }()
	if len(stored) == len(p) {
		copy(p, stored)
	} else if got, err := decoder().DecodeAll(stored, p[:0:len(p)]); err != nil {
		return fmt.Errorf("decompress: %w", err)
	} else if len(got) != len(p) {
		return fmt.Errorf("decompresses to %d bytes, not %d", len(got), len(p))
	}
	if got := Digest(sha256.Sum256(p)); got != want {
		return fmt.Errorf("content has digest %s, not %s", got, want)
	}
	return nil
}
