package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// memStore is a [Source] in memory, which counts what is asked of it and may be made to lie.
type memStore struct {
	mu    sync.Mutex
	blobs map[string][]byte
	tags  map[string][]byte

	reads, bytes int
	spoil        func(blob string, off int64, p []byte)    // changes what ReadBlob answers
	hold         func(ctx context.Context, p []byte) error // before ReadBlob answers
}

func newMemStore() *memStore { return &memStore{blobs: map[string][]byte{}, tags: map[string][]byte{}} }

func (s *memStore) String() string { return "memory" }
func (s *memStore) Close() error   { return nil }

func (s *memStore) Manifest(_ context.Context, name string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if data, ok := s.tags[name]; ok {
		return data, nil
	}
	for _, data := range s.tags {
		if string(descriptor("", data).Digest) == name {
			return data, nil
		}
	}
	return nil, fmt.Errorf("manifest %s: %w", name, ErrNotFound)
}

func (s *memStore) blob(d ocispec.Descriptor) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b, ok := s.blobs[string(d.Digest)]; ok {
		return b, nil
	}
	return nil, fmt.Errorf("blob %s: %w", d.Digest, ErrNotFound)
}

func (s *memStore) ReadBlob(ctx context.Context, d ocispec.Descriptor, p []byte, off int64) error {
	b, err := s.blob(d)
	if err != nil {
		return err
	}
	if s.hold != nil {
		if err := s.hold(ctx, p); err != nil {
			return err
		}
	}
	if off < 0 || off+int64(len(p)) > d.Size {
		return fmt.Errorf("asked for bytes %d to %d of a blob of %d", off, off+int64(len(p)), d.Size)
	}
	if off+int64(len(p)) > int64(len(b)) {
		return io.ErrUnexpectedEOF
	}
	copy(p, b[off:])
	if s.spoil != nil {
		s.spoil(string(d.Digest), off, p)
	}
	s.mu.Lock()
	s.reads, s.bytes = s.reads+1, s.bytes+len(p)
	s.mu.Unlock()
	return nil
}

func (s *memStore) OpenBlob(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	b, err := s.blob(d)
	return io.NopCloser(bytes.NewReader(b)), err
}

func (s *memStore) Tags(context.Context) ([]string, error) {
	return slices.Sorted(maps.Keys(s.tags)), nil
}

func (s *memStore) put(mediaType string, data []byte) ocispec.Descriptor {
	d := descriptor(mediaType, data)
	s.blobs[string(d.Digest)] = data
	return d
}

// naivePages computes the content part's digest of each page by the text of the format, without the code of this package. It returns
// the digests of one level, given those of the level below; a zero digest is zeros.
func naivePages(level int, below []Digest) []Digest {
	var out []Digest
	for page := range slices.Chunk(below, 1024) {
		head := make([]byte, 144)
		copy(head, "CPPG\x01")
		head[5] = byte(level)
		var digests []byte
		for i, d := range page {
			if d != (Digest{}) {
				head[16+i/8] |= 1 << (i % 8)
				digests = append(digests, d[:]...)
			}
		}
		n := len(digests) / 32
		head[6], head[7] = byte(n), byte(n>>8)
		if n == 0 {
			out = append(out, Digest{})
			continue
		}
		out = append(out, sha256.Sum256(append(head, digests...)))
	}
	return out
}

// naiveRoot computes a content root by the text of the format.
func naiveRoot(content []byte, chunkSize int) Digest {
	var digests []Digest
	for c := range slices.Chunk(content, chunkSize) {
		d := Digest(sha256.Sum256(c))
		if len(bytes.Trim(c, "\x00")) == 0 {
			d = Digest{}
		}
		digests = append(digests, d)
	}
	level := 0
	for digests = naivePages(0, digests); len(digests) > 1; digests = naivePages(level, digests) {
		level++
	}
	p := make([]byte, 0, 72)
	p = append(p, "coppice content root 1\n\x00"...)
	p = le.AppendUint64(p, uint64(len(content)))
	p = le.AppendUint32(p, uint32(chunkSize))
	p = le.AppendUint32(p, uint32(level))
	return sha256.Sum256(append(p, digests[0][:]...))
}

// parts are the blobs of an image before they are put together.
type parts struct {
	g     geometry
	refs  map[int64]chunkRef
	packs [][]byte
}

var testEncoder = sync.OnceValue(func() *zstd.Encoder {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic(err)
	}
	return enc
})

// cut makes chunks and packs of content, a new pack after so many chunks.
func cut(content []byte, chunkSize, perPack int) *parts {
	p := &parts{g: geometry{int64(len(content)), chunkSize}, refs: map[int64]chunkRef{}}
	in := perPack
	for i := range p.g.chunks() {
		c := content[i*int64(chunkSize):][:p.g.chunkLen(i)]
		if len(bytes.Trim(c, "\x00")) == 0 {
			continue
		}
		stored := testEncoder().EncodeAll(c, nil)
		if len(stored) >= len(c) {
			stored = c
		}
		if in++; in > perPack {
			p.packs, in = append(p.packs, nil), 1
		}
		pack := &p.packs[len(p.packs)-1]
		p.refs[i] = chunkRef{sha256.Sum256(c), place{uint32(len(p.packs) - 1), uint32(len(stored)), int64(len(*pack))}}
		*pack = append(*pack, stored...)
	}
	return p
}

// table writes the table of the parts.
func (p *parts) table(t testing.TB) ([]byte, *PageRef) {
	t.Helper()
	var b bytes.Buffer
	w, err := newTableWriter(&b, p.g)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range slices.Sorted(maps.Keys(p.refs)) {
		if err := w.add(i, p.refs[i]); err != nil {
			t.Fatal(err)
		}
	}
	root, err := w.finish()
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), root
}

// store puts the image together under a tag, after change had its way with the manifest and config.
func (p *parts) store(t testing.TB, s *memStore, tag string, change func(*manifest, *Config)) {
	t.Helper()
	table, root := p.table(t)
	c := &Config{SizeBytes: p.g.size, ChunkSize: p.g.chunkSize, Root: root, ContentRoot: contentRoot(p.g, root)}
	m := &manifest{Table: s.put(MediaTypeTable, table)}
	for _, pack := range p.packs {
		m.Packs = append(m.Packs, s.put(MediaTypePack, pack))
	}
	if change != nil {
		change(m, c)
	}
	data, err := c.encode()
	if err != nil {
		t.Fatal(err)
	}
	if m.Config.Size == 0 {
		m.Config = s.put(MediaTypeConfig, data)
	}
	if s.tags[tag], err = m.encode(); err != nil {
		t.Fatal(err)
	}
}

// testContent is random, compressible and zero chunks in turn.
func testContent(seed uint64, size int) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	p := make([]byte, size)
	for i := 0; i < size; i += 4096 {
		block := p[i:min(i+4096, size)]
		mask := uint64(0x0303030303030303) // compressible
		switch rng.IntN(4) {
		case 0:
			continue
		case 1:
			mask = math.MaxUint64
		}
		for ; len(block) >= 8; block = block[8:] {
			le.PutUint64(block, rng.Uint64()&mask)
		}
		for j := range block {
			block[j] = 'a'
		}
	}
	return p
}

// openTest opens what a tag means, and closes it when the test ends.
func openTest(t testing.TB, s Source, tag string) *Image {
	t.Helper()
	im, err := Open(context.Background(), s, tag)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { im.Close() })
	return im
}

// readAll returns the whole content.
func readAll(t testing.TB, im *Image) []byte {
	t.Helper()
	p := make([]byte, im.Size())
	if err := im.Read(context.Background(), p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

// limit fails where f allocates more than n bytes.
func limit(t testing.TB, n uint64, f func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > n {
		t.Errorf("%d bytes allocated, at most %d are fit", used, n)
	}
}
