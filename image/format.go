package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Media types of the blobs of an image, format version 1. docs/image-format.md describes them.
const (
	MediaTypeImage  = "application/vnd.coppice.image.v1"
	MediaTypeConfig = "application/vnd.coppice.image.config.v1+json"
	MediaTypeTable  = "application/vnd.coppice.image.table.v1"
	MediaTypePack   = "application/vnd.coppice.image.pack.v1"

	anyVersionOfImage = "application/vnd.coppice.image."
)

// Bounds of what is read, and of what is made.
const (
	// DefaultChunkSize is the size of a chunk in bytes unless something else is asked for.
	DefaultChunkSize = 64 << 10

	// MaxChunkSize is the length of the largest chunks that there are.
	MaxChunkSize = 1 << 20

	minChunkSize = 4 << 10
	maxSize      = 1 << 50

	maxManifest = 4 << 20 // what registries take
	maxConfig   = 1 << 20 // bytes of JSON
	maxIndex    = 4 << 20 // index.json of a layout
	maxPacks    = 16 << 10
	maxPack     = 1 << 42
	maxLabels   = 1024
	maxBlobs    = 50_000 // descriptors in a list

	// packCount and minPack give the size of the packs: see packTarget.
	packCount = 4096
	minPack   = 64 << 20
)

var le = binary.LittleEndian

// Digest is a SHA-256. Its text is that of OCI: "sha256:" and hexadecimal.
type Digest [sha256.Size]byte

const digestPrefix = "sha256:"

// String returns the digest as OCI writes it.
func (d Digest) String() string { return digestPrefix + hex.EncodeToString(d[:]) }

// MarshalText returns what String returns.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what String wrote, in lower case and nothing else.
func (d *Digest) UnmarshalText(text []byte) error {
	v, err := ParseDigest(string(text))
	*d = v
	return err
}

// ParseDigest reads "sha256:" and 64 digits in lower-case hexadecimal.
func ParseDigest(text string) (Digest, error) {
	var d Digest
	digits, ok := strings.CutPrefix(text, digestPrefix)
	if !ok || len(digits) != 2*len(d) || strings.ToLower(digits) != digits {
		return d, fmt.Errorf("digest %.80q is not sha256: and %d digits in hexadecimal", text, 2*len(d))
	}
	if _, err := hex.Decode(d[:], []byte(digits)); err != nil {
		return Digest{}, fmt.Errorf("digest %.80q: %w", text, err)
	}
	return d, nil
}

func (d Digest) oci() digest.Digest { return digest.Digest(d.String()) }

// Config is what an image's config blob says.
type Config struct {
	SizeBytes   int64             `json:"size"`
	ChunkSize   int               `json:"chunk_size"`
	ContentRoot Digest            `json:"content_root"`
	Root        *PageRef          `json:"root_page,omitempty"` // nil where the whole image is zeros
	Parent      Digest            `json:"parent,omitzero"`     // content root of the version that this one was built over
	Labels      map[string]string `json:"labels,omitempty"`
	Created     time.Time         `json:"created,omitzero"`
}

// PageRef says where a page of the table is, and what it must be. A page has two parts, each with a digest of its own:
// what the content is, and where it lies.
type PageRef struct {
	Digest Digest `json:"digest"` // of the content part
	Places Digest `json:"places"` // of the places part
	Offset int64  `json:"offset"` // in the table blob
	Length int    `json:"length"` // bytes of both parts
}

const contentRootMagic = "coppice content root 1\n\x00"

// contentRoot is the SHA-256 of the following, little-endian:
//
//	 0 24  "coppice content root 1", a newline and a zero
//	24  8  size of the image in bytes
//	32  4  chunk size in bytes
//	36  4  level of the root page
//	40 32  digest of the content part of the root page; zero where the whole image is zeros
func contentRoot(g geometry, root *PageRef) Digest {
	var p [72]byte
	copy(p[:], contentRootMagic)
	le.PutUint64(p[24:], uint64(g.size))
	le.PutUint32(p[32:], uint32(g.chunkSize))
	le.PutUint32(p[36:], uint32(g.levels()-1))
	if root != nil {
		copy(p[40:], root.Digest[:])
	}
	return sha256.Sum256(p[:])
}

// geometry is what sizes and places of chunks follow from.
type geometry struct {
	size      int64
	chunkSize int
}

func (g geometry) validate() error {
	switch {
	case g.size < 1 || g.size > maxSize:
		return fmt.Errorf("a size of %d bytes is not between 1 and %d", g.size, int64(maxSize))
	case g.chunkSize < minChunkSize || g.chunkSize > MaxChunkSize || g.chunkSize&(g.chunkSize-1) != 0:
		return fmt.Errorf("a chunk size of %d bytes is not a power of two between %d and %d", g.chunkSize, minChunkSize, MaxChunkSize)
	}
	return nil
}

// chunks is how many there are; the last one may be short.
func (g geometry) chunks() int64 { return (g.size + int64(g.chunkSize) - 1) / int64(g.chunkSize) }

// chunkLen is the length of a chunk's content.
func (g geometry) chunkLen(index int64) int {
	return int(min(int64(g.chunkSize), g.size-index*int64(g.chunkSize)))
}

// levels is how many pages there are from the root page to a chunk.
func (g geometry) levels() int {
	n := 1
	for last := (g.chunks() - 1) >> fanShift; last > 0; last >>= fanShift {
		n++
	}
	return n
}

// entries is how many entries the page has that covers a chunk, at a level.
func (g geometry) entries(level int, index int64) int {
	shift := uint(level * fanShift)
	first := index >> (shift + fanShift) << fanShift
	all := (g.chunks()-1)>>shift + 1
	return int(min(fanOut, all-first))
}

// packTarget is the number of stored bytes at which a pack is closed: so large that there are some thousand packs
// at most, which keeps the manifest small.
func (g geometry) packTarget() int64 {
	target := int64(minPack)
	for g.size/target > packCount {
		target <<= 1
	}
	return target
}

func (c *Config) geometry() geometry { return geometry{c.SizeBytes, c.ChunkSize} }

// decodeConfig reads a config blob. Keys that it does not know are left to later versions.
func decodeConfig(data []byte) (*Config, error) {
	if len(data) > maxConfig {
		return nil, fmt.Errorf("%d bytes, at most %d are read", len(data), maxConfig)
	}
	var c Config
	if err := decodeJSON(data, &c); err != nil {
		return nil, err
	}
	g := c.geometry()
	if err := g.validate(); err != nil {
		return nil, err
	}
	if len(c.Labels) > maxLabels {
		return nil, fmt.Errorf("%d labels, at most %d are taken", len(c.Labels), maxLabels)
	}
	if c.Root != nil {
		if err := c.Root.validate(g.levels() - 1); err != nil {
			return nil, fmt.Errorf("root page: %w", err)
		}
	}
	if got := contentRoot(g, c.Root); got != c.ContentRoot {
		return nil, fmt.Errorf("content root %s, but size, chunk size and root page give %s", c.ContentRoot, got)
	}
	return &c, nil
}

func (c *Config) encode() ([]byte, error) {
	data, err := json.Marshal(c)
	if err == nil && len(data) > maxConfig {
		err = fmt.Errorf("config has %d bytes, at most %d are taken: leave labels away", len(data), maxConfig)
	}
	return data, err
}

// decodeJSON reads one value and nothing after it.
func decodeJSON(data []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("JSON: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("JSON: something follows the value")
	}
	return nil
}

// manifest is what a manifest blob says about an image.
type manifest struct {
	Config ocispec.Descriptor
	Table  ocispec.Descriptor
	Packs  []ocispec.Descriptor
}

// blob is what is read of a descriptor. Other keys cost nothing.
type blob struct {
	MediaType   string `json:"mediaType"`
	Digest      string `json:"digest"`
	Size        int64  `json:"size"`
	Annotations struct {
		RefName string `json:"org.opencontainers.image.ref.name"`
	} `json:"annotations"`
}

func (b blob) descriptor() ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: b.MediaType, Digest: digest.Digest(b.Digest), Size: b.Size}
}

// blobList is a list of descriptors that is given up when it gets too long, before it takes memory.
type blobList []blob

// UnmarshalJSON reads one descriptor after the other.
func (l *blobList) UnmarshalJSON(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	if t, err := dec.Token(); err != nil || t == nil {
		return err
	} else if t != json.Delim('[') {
		return errors.New("descriptors are not a list")
	}
	for dec.More() {
		if len(*l) == maxBlobs {
			return fmt.Errorf("more than %d descriptors", maxBlobs)
		}
		var b blob
		if err := dec.Decode(&b); err != nil {
			return err
		}
		*l = append(*l, b)
	}
	return nil
}

// decodeManifest fails with [ErrNotImage] for what is another kind of artifact, and [ErrVersion] for an image of another version.
func decodeManifest(data []byte) (*manifest, error) {
	if len(data) > maxManifest {
		return nil, fmt.Errorf("%d bytes, at most %d are read", len(data), maxManifest)
	}
	var m struct {
		SchemaVersion int      `json:"schemaVersion"`
		MediaType     string   `json:"mediaType"`
		ArtifactType  string   `json:"artifactType"`
		Config        blob     `json:"config"`
		Layers        blobList `json:"layers"`
	}
	if err := decodeJSON(data, &m); err != nil {
		return nil, err
	}
	switch {
	case m.ArtifactType != MediaTypeImage && strings.HasPrefix(m.ArtifactType, anyVersionOfImage):
		return nil, fmt.Errorf("artifact type %.80q, this program knows %s: %w", m.ArtifactType, MediaTypeImage, ErrVersion)
	case m.ArtifactType != MediaTypeImage:
		return nil, fmt.Errorf("artifact type %.80q: %w", m.ArtifactType, ErrNotImage)
	case m.SchemaVersion != 2 || m.MediaType != "" && m.MediaType != ocispec.MediaTypeImageManifest:
		return nil, fmt.Errorf("schema version %d, media type %.80q: not an OCI image manifest", m.SchemaVersion, m.MediaType)
	}
	return contentOf(m.Config, m.Layers)
}

// contentOf checks the blobs that a content consists of: config, table, packs.
func contentOf(config blob, layers blobList) (*manifest, error) {
	switch {
	case len(layers) == 0:
		return nil, errors.New("no table")
	case len(layers)-1 > maxPacks:
		return nil, fmt.Errorf("%d packs, at most %d are taken", len(layers)-1, maxPacks)
	}
	out := &manifest{Config: config.descriptor(), Table: layers[0].descriptor()}
	if err := checkBlob(out.Config, MediaTypeConfig, maxConfig); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if err := checkBlob(out.Table, MediaTypeTable, maxSize); err != nil {
		return nil, fmt.Errorf("table: %w", err)
	}
	for i, b := range layers[1:] {
		pack := b.descriptor()
		if err := checkBlob(pack, MediaTypePack, maxPack); err != nil {
			return nil, fmt.Errorf("pack %d: %w", i, err)
		}
		out.Packs = append(out.Packs, pack)
	}
	return out, nil
}

func checkBlob(d ocispec.Descriptor, mediaType string, most int64) error {
	if d.MediaType != mediaType {
		return fmt.Errorf("media type %.80q, not %s", d.MediaType, mediaType)
	}
	if _, err := ParseDigest(string(d.Digest)); err != nil {
		return err
	}
	if d.Size < 1 || d.Size > most {
		return fmt.Errorf("a size of %d bytes is not between 1 and %d", d.Size, most)
	}
	return nil
}

// blobs returns the descriptors of all blobs: config, table, packs.
func (m *manifest) blobs() []ocispec.Descriptor {
	return append([]ocispec.Descriptor{m.Config, m.Table}, m.Packs...)
}

func (m *manifest) encode() ([]byte, error) {
	data, err := json.Marshal(ocispec.Manifest{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    ocispec.MediaTypeImageManifest,
		ArtifactType: MediaTypeImage,
		Config:       m.Config,
		Layers:       append([]ocispec.Descriptor{m.Table}, m.Packs...),
	})
	if err == nil && len(data) > maxManifest {
		err = fmt.Errorf("manifest has %d bytes, registries take at most %d", len(data), maxManifest)
	}
	return data, err
}

// descriptor describes a blob that is at hand.
func descriptor(mediaType string, data []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: Digest(sha256.Sum256(data)).oci(), Size: int64(len(data))}
}
