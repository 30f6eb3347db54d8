package image

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// BuildOptions says how an image is built. The zero value is complete.
type BuildOptions struct {
	// ChunkSize is in bytes. 0 means that of Base, or else [DefaultChunkSize].
	ChunkSize int
	// Base is an earlier version: what it has is not stored again. It stays the caller's.
	Base *Image
	// Changed goes through the extents in which the source is not what Base has there, in order; behind the end of Base that is zeros. What no
	// extent touches is taken from Base's table, and neither is read. It is called for every pass over the source. nil means to read all of it.
	Changed func() iter.Seq2[Extent, error]
	// Labels and Created go to the config as they are.
	Labels  map[string]string
	Created time.Time
	// Workers is how many CPUs to use. 0 means all.
	Workers int
	// Progress is told how many bytes of the source are done, of how many.
	Progress func(done, total int64)

	packTarget int64 // bytes, 0 means what the format says
	remember   int   // chunks, 0 means rememberedChunks

	// What follows is for storing a version again.
	sparse    func(pack ocispec.Descriptor, live int64) bool // what is in use of such a pack of the base is stored again
	parentIs  *Digest                                        // instead of the base
	publishAs func(ctx context.Context, manifest []byte, contentRoot Digest) error
}

// BuildReport tells what a build did. Bytes of chunks are those of their content.
type BuildReport struct {
	Manifest    Digest  `json:"manifest"`
	ContentRoot Digest  `json:"content_root"`
	SizeBytes   int64   `json:"size_bytes"`
	ChunkSize   int     `json:"chunk_size"`
	Chunks      int64   `json:"chunks"`
	Zero        int64   `json:"zero_chunks"`
	Duplicate   int64   `json:"duplicate_chunks"` // of others of this image
	FromBase    int64   `json:"base_chunks"`      // that the base has
	Stored      int64   `json:"stored_chunks"`    // that are new
	StoredBytes int64   `json:"stored_bytes"`     // of new packs
	TableBytes  int64   `json:"table_bytes"`
	NewPacks    int     `json:"new_packs"`
	BasePacks   int     `json:"base_packs"`
	Repacked    int     `json:"repacked_base_packs"` // of which less than half is in use
	ReadBytes   int64   `json:"read_bytes"`          // of the source
	Resumed     int64   `json:"resumed_bytes"`       // of the source, that a build before had stored already
	TotalMS     float64 `json:"total_ms"`
}

// Build makes an image of a source of size bytes in a layout, under a name, which then means the new image. A source that
// knows its holes has a method NextData(off int64) int64, which returns where the next data begins, at off or after it.
//
// The same content, base and chunk size give the same table and packs, whatever the machine and the number of CPUs.
// A build that was interrupted, also by kill -9 or a power cut, leaves its full packs in the layout; called again for the same name,
// it reads the source again, from the beginning, and goes on behind those packs that still are what the source has.
// Memory is bounded: some 150 MiB at most, and a hundred more with a base. Packs of the base that the layout does not
// have are copied to it.
func Build(ctx context.Context, l *Layout, name string, in io.ReaderAt, size int64, o BuildOptions) (BuildReport, error) {
	report, err := build(ctx, l, name, in, size, o)
	if err != nil {
		return report, fmt.Errorf("build image %s: %w", name, err)
	}
	return report, nil
}

// builder is a build under way.
type builder struct {
	BuildOptions
	layout *Layout
	name   string
	g      geometry
	dir    string
	key    Digest

	scan    scanner
	read    atomic.Int64     // bytes of the source
	parent  map[Digest]place // the base's chunks, as far as they are remembered
	memory  *memory
	journal *journal
	packs   *packer
	live    []int64 // bytes in use of each of the base's packs
	report  BuildReport
}

func build(ctx context.Context, l *Layout, name string, in io.ReaderAt, size int64, o BuildOptions) (BuildReport, error) {
	began := time.Now()
	if err := checkName(name); err != nil {
		return BuildReport{}, err
	}
	b, err := newBuilder(l, name, in, size, o)
	if err != nil {
		return BuildReport{}, err
	}
	if err := b.prepare(ctx); err != nil {
		return b.report, err
	}
	release, err := l.hold()
	if err != nil {
		return b.report, err
	}
	defer release()
	unlock, err := b.enter()
	if err != nil {
		return b.report, err
	}
	defer unlock()
	if err := b.store(ctx); err != nil {
		return b.report, err
	}
	if err := b.publish(ctx); err != nil {
		return b.report, err
	}
	b.report.ReadBytes = b.read.Load()
	b.report.TotalMS = float64(time.Since(began)) / float64(time.Millisecond)
	return b.report, os.RemoveAll(b.dir)
}

func newBuilder(l *Layout, name string, in io.ReaderAt, size int64, o BuildOptions) (*builder, error) {
	switch {
	case o.Base != nil && o.ChunkSize == 0:
		o.ChunkSize = o.Base.ChunkSize()
	case o.Base == nil && o.Changed != nil:
		return nil, fmt.Errorf("what changed is told, and no base: %w", ErrBadOption)
	case o.ChunkSize == 0:
		o.ChunkSize = DefaultChunkSize
	case o.Base != nil && o.ChunkSize != o.Base.ChunkSize():
		return nil, fmt.Errorf("chunks of %d bytes, but the base has chunks of %d: %w", o.ChunkSize, o.Base.ChunkSize(), ErrBadOption)
	}
	b := &builder{BuildOptions: o, layout: l, name: name, g: geometry{size, o.ChunkSize}}
	if err := b.g.validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrBadOption)
	}
	if b.Workers == 0 {
		b.Workers = runtime.GOMAXPROCS(0)
	}
	if b.packTarget == 0 {
		b.packTarget = b.g.packTarget()
	}
	if b.remember == 0 {
		b.remember = rememberedChunks
	}
	if b.Progress == nil {
		b.Progress = func(int64, int64) {}
	}
	b.memory = newMemory(b.remember)
	b.scan = scanner{in: in, g: b.g, workers: b.Workers, base: b.Base, changed: b.Changed, read: &b.read}
	b.key = b.buildKey()
	b.dir = l.path(fmt.Sprintf("%s%x", buildAt, b.key[:8]))
	b.report = BuildReport{SizeBytes: size, ChunkSize: o.ChunkSize, Chunks: b.g.chunks()}
	return b, nil
}

// buildKey tells builds apart that may not go on with what the other left.
func (b *builder) buildKey() Digest {
	base := ""
	if b.Base != nil {
		base = string(b.Base.Manifest().Digest)
	}
	return sha256.Sum256(fmt.Appendf(nil, "1 %q %d %d %d %d %s", b.name, b.g.size, b.g.chunkSize, b.packTarget, b.remember, base))
}

// prepare reads the base's table.
func (b *builder) prepare(ctx context.Context) error {
	if b.Base == nil {
		return nil
	}
	b.live = make([]int64, len(b.Base.Packs()))
	b.parent = map[Digest]place{}
	err := b.Base.walk(ctx, func(_ int64, c chunkRef) error {
		if len(b.parent) == parentChunks {
			return errEnough
		}
		if _, ok := b.parent[c.digest]; !ok {
			b.parent[c.digest] = c.place
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return fmt.Errorf("read base: %w", err)
	}
	return nil
}

var errEnough = errors.New("enough")

// enter makes the build's directory and keeps others out.
func (b *builder) enter() (unlock func(), err error) {
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return nil, err
	}
	unlock, err = flock(filepath.Join(b.dir, "lock"), unix.LOCK_EX|unix.LOCK_NB)
	if err != nil {
		return nil, err
	}
	now := time.Now() // it is not given up
	if err := os.Chtimes(b.dir, now, now); err != nil {
		unlock()
		return nil, err
	}
	return unlock, nil
}

func (b *builder) journalPath() string { return filepath.Join(b.dir, "journal") }

// store reads the source and leaves packs and a journal that says what is where.
func (b *builder) store(ctx context.Context) (err error) {
	from, done, err := b.resume(ctx)
	if err != nil {
		return err
	}
	if b.packs, err = newPacker(b.dir, b.packTarget, done); err != nil {
		return err
	}
	at := int64(0)
	if len(done) > 0 {
		at = done[len(done)-1].end
	}
	if b.journal, err = newJournal(b.journalPath(), at, b.key); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.journal.close(), b.packs.abandon())
		}
	}()
	enc, err := newEncoder(b.Workers)
	if err != nil {
		return err
	}
	b.scan.work = func(ctx context.Context, batch *batch) error {
		return hashBatch(b.g, batch, func(index int64, content []byte, c *scanned) (err error) {
			if c.parent, err = b.inBase(ctx, index, c.digest); err == nil && c.parent == nil && !b.memory.has(c.digest) {
				c.stored, batch.packed = packChunk(enc, content, batch.packed)
			}
			return err
		})
	}
	err = b.scan.run(ctx, from, b.g.chunks(), func(batch *batch) error {
		for i := range batch.chunks {
			c := &batch.chunks[i]
			if c.zeros {
				continue
			}
			if c.parent == nil && c.stored == nil && !b.memory.has(c.digest) { // forgotten since the worker looked
				content := batch.raw[i*b.g.chunkSize : min((i+1)*b.g.chunkSize, len(batch.raw))]
				c.stored, batch.packed = packChunk(enc, content, batch.packed)
			}
			if err := b.keep(batch.first+int64(i), c); err != nil {
				return err
			}
		}
		b.progress(batch.first + int64(len(batch.chunks)))
		return nil
	})
	if err != nil {
		return err
	}
	if b.packs.f != nil {
		if err := b.finishPack(b.g.chunks()); err != nil {
			return err
		}
	}
	b.progress(b.g.chunks())
	return nil
}

func (b *builder) progress(chunks int64) {
	b.Progress(min(chunks*int64(b.g.chunkSize), b.g.size), b.g.size)
}

// inBase returns where the base has a chunk, at the same place or, as far as is remembered, at any other.
func (b *builder) inBase(ctx context.Context, index int64, d Digest) (*place, error) {
	if b.Base == nil {
		return nil, nil
	}
	if index < b.Base.Chunks() {
		c, held, err := b.Base.locate(ctx, index)
		if err != nil {
			return nil, fmt.Errorf("read base: %w", err)
		}
		if held && c.digest == d {
			return &c.place, nil
		}
	}
	if p, ok := b.parent[d]; ok {
		return &p, nil
	}
	return nil, nil
}

// keep sees to it that a chunk is stored, and writes down where.
func (b *builder) keep(index int64, c *scanned) error {
	e := entry{index, chunkRef{digest: c.digest}}
	p, known := b.memory.get(c.digest)
	switch {
	case known:
		e.place = p
	case c.parent != nil:
		e.place = *c.parent
		e.place.pack |= parentPack
	default:
		var err error
		if e.place, err = b.packs.append(c.stored); err != nil {
			return fmt.Errorf("write pack: %w", err)
		}
	}
	b.note(e, known)
	if err := b.journal.add(e); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	if b.packs.full() {
		return b.finishPack(index + 1)
	}
	return nil
}

// note counts a chunk and remembers where it is: all that a later chunk depends on.
func (b *builder) note(e entry, known bool) {
	if known {
		b.report.Duplicate++
		return
	}
	b.memory.add(e.digest, e.place)
	if e.place.pack&parentPack != 0 {
		b.live[e.place.pack&^parentPack] += int64(e.place.stored)
		b.report.FromBase++
		return
	}
	b.report.Stored++
}

func (b *builder) finishPack(next int64) error {
	m, err := b.packs.finish(next)
	if err == nil {
		err = b.journal.mark(m)
	}
	if err != nil {
		return fmt.Errorf("write pack: %w", err)
	}
	return nil
}

// errDiffers ends a resume where the source is no longer what it was.
var errDiffers = errors.New("differs")

// resume finds out which packs of an earlier build still are what the source has, and takes over what that one knew.
func (b *builder) resume(ctx context.Context) (next int64, done []packMark, err error) {
	r, err := openJournal(b.journalPath(), b.key)
	if err != nil || r == nil {
		return 0, nil, err
	}
	all, err := r.marks()
	r.close()
	if err != nil {
		return 0, nil, fmt.Errorf("read journal: %w", err)
	}
	for n, m := range all {
		if !present(b.layout, b.dir, n, m) || m.next > b.g.chunks() {
			all = all[:n]
			break
		}
	}
	if len(all) == 0 {
		return 0, nil, nil
	}
	same, err := b.compare(ctx, all[len(all)-1].next)
	if err != nil {
		return 0, nil, err
	}
	all = slices.DeleteFunc(all, func(m packMark) bool { return m.next > same })
	if len(all) == 0 {
		return 0, nil, nil
	}
	next = all[len(all)-1].next
	b.report.Resumed = min(next*int64(b.g.chunkSize), b.g.size)
	return next, all, b.replay(next)
}

// compare reads the source up to a chunk and returns how many of them the journal has as they are.
func (b *builder) compare(ctx context.Context, to int64) (same int64, err error) {
	r, err := openJournal(b.journalPath(), b.key)
	if err != nil || r == nil {
		return 0, err
	}
	defer r.close()
	e, entryErr := r.entry()
	check := b.scan
	check.work = func(_ context.Context, batch *batch) error { return hashBatch(b.g, batch, nil) }
	err = check.run(ctx, 0, to, func(batch *batch) error {
		for i, c := range batch.chunks {
			same = batch.first + int64(i)
			listed := entryErr == nil && e.index == same
			switch {
			case entryErr == nil && e.index < same: // where there is a hole now
				same = e.index
				return errDiffers
			case listed == c.zeros, listed && e.digest != c.digest:
				return errDiffers
			case listed:
				e, entryErr = r.entry()
			}
		}
		b.progress(batch.first + int64(len(batch.chunks)))
		return nil
	})
	switch {
	case errors.Is(err, errDiffers):
		return same, nil
	case err != nil:
		return 0, err
	case entryErr == nil && e.index < to:
		return e.index, nil
	}
	return to, nil
}

// replay takes over what the journal has of the chunks before next.
func (b *builder) replay(next int64) error {
	return b.entries(b.journalPath(), func(e entry) error {
		if e.index >= next {
			return errEnough
		}
		if pack := e.place.pack; pack&parentPack != 0 && int(pack&^parentPack) >= len(b.live) {
			return &CorruptError{"journal", b.journalPath(), "names a pack that is not there"}
		}
		_, known := b.memory.get(e.digest)
		b.note(e, known)
		return nil
	})
}

// entries calls f for what a journal has, until f returns errEnough.
func (b *builder) entries(path string, f func(entry) error) error {
	r, err := openJournal(path, b.key)
	if err != nil || r == nil {
		return err
	}
	defer r.close()
	for {
		e, err := r.entry()
		if err == nil {
			err = f(e)
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, errEnough):
			return nil
		case err != nil:
			return err
		}
	}
}

// publish makes table, config and manifest of the journal, moves everything to its place, and lets the name mean it.
func (b *builder) publish(ctx context.Context) error {
	err := b.journal.close()
	path := b.journalPath()
	if err == nil && b.Base != nil {
		path, err = b.repack(ctx)
	}
	if waitErr := b.packs.wait(); err == nil {
		err = waitErr
	}
	if err != nil {
		return fmt.Errorf("write packs: %w", err)
	}
	m := &manifest{}
	numbers := b.listPacks(m)
	if err := b.copyBasePacks(ctx, m); err != nil {
		return err
	}
	for n, mark := range b.packs.marks {
		if err := adoptPack(b.layout, b.dir, n, mark); err != nil {
			return fmt.Errorf("write packs: %w", err)
		}
	}
	root, err := b.writeTable(path, numbers, m)
	if err != nil {
		return err
	}
	return b.writeManifest(ctx, root, m)
}

// repack stores again what is in use of those of the base's packs of which less than half is. It returns the journal that says where
// everything is then.
func (b *builder) repack(ctx context.Context) (path string, err error) {
	sparse := make([]bool, len(b.live))
	for n, live := range b.live {
		if sparse[n] = live > 0 && b.isSparse(n, live); sparse[n] {
			b.report.Repacked++
		}
	}
	if b.report.Repacked == 0 {
		return b.journalPath(), nil
	}
	path = filepath.Join(b.dir, "repacked")
	j, err := newJournal(path, 0, b.key)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, j.close()) }()
	moved := newMemory(b.remember)
	move := func(e *entry) error {
		pack := e.place.pack &^ parentPack
		if e.place.pack&parentPack == 0 || !sparse[pack] {
			return nil
		}
		if p, ok := moved.get(e.digest); ok {
			e.place = p
			return nil
		}
		ref := e.chunkRef
		ref.place.pack = pack
		stored, err := b.Base.readStored(ctx, b.g.chunkLen(e.index), ref)
		if err != nil {
			return fmt.Errorf("read base: %w", err)
		}
		if e.place, err = b.packs.append(stored); err != nil {
			return err
		}
		moved.add(e.digest, e.place)
		if b.packs.full() {
			_, err = b.packs.finish(b.g.chunks())
		}
		return err
	}
	err = b.entries(b.journalPath(), func(e entry) error {
		if err := errors.Join(ctx.Err(), move(&e)); err != nil {
			return err
		}
		return j.add(e)
	})
	if err == nil && b.packs.f != nil {
		_, err = b.packs.finish(b.g.chunks())
	}
	for n := range sparse {
		if sparse[n] {
			b.live[n] = 0
		}
	}
	return path, err
}

// isSparse reports whether so little of a pack of the base is in use that this is stored again.
func (b *builder) isSparse(n int, live int64) bool {
	pack := b.Base.Packs()[n]
	if b.sparse != nil {
		return b.sparse(pack, live)
	}
	return live < pack.Size/2
}

// listPacks lists the base's packs that are in use, and then the new ones, and returns the numbers that the base's have now.
func (b *builder) listPacks(m *manifest) []uint32 {
	numbers := make([]uint32, len(b.live))
	for n, live := range b.live {
		if live > 0 {
			numbers[n] = uint32(len(m.Packs))
			m.Packs = append(m.Packs, b.Base.Packs()[n])
		}
	}
	b.report.BasePacks, b.report.NewPacks = len(m.Packs), len(b.packs.marks)
	for _, mark := range b.packs.marks {
		m.Packs = append(m.Packs, ocispec.Descriptor{MediaType: MediaTypePack, Digest: mark.digest.oci(), Size: mark.size})
		b.report.StoredBytes += mark.size
	}
	return numbers
}

func (b *builder) copyBasePacks(ctx context.Context, m *manifest) error {
	for _, pack := range m.Packs[:b.report.BasePacks] {
		if err := copyBlob(ctx, b.Base.src, b.layout, pack, nil); err != nil {
			return fmt.Errorf("copy packs of the base: %w", err)
		}
	}
	return nil
}

func (b *builder) writeTable(journal string, numbers []uint32, m *manifest) (*PageRef, error) {
	f, err := b.layout.createPartial()
	if err != nil {
		return nil, fmt.Errorf("write table: %w", err)
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	out := &hashWriter{w: w, h: sha256.New()}
	root, err := b.fillTable(out, journal, numbers)
	err = errors.Join(err, w.Flush(), f.Sync())
	m.Table = ocispec.Descriptor{MediaType: MediaTypeTable, Size: out.n}
	if err == nil {
		digest := out.digest()
		m.Table.Digest = digest.oci()
		err = b.layout.adopt(f.Name(), digest)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("write table: %w", err), os.Remove(f.Name()))
	}
	b.report.TableBytes = out.n
	return root, nil
}

func (b *builder) fillTable(w io.Writer, journal string, numbers []uint32) (*PageRef, error) {
	t, err := newTableWriter(w, b.g)
	if err != nil {
		return nil, err
	}
	held := int64(0)
	err = b.entries(journal, func(e entry) error {
		held++
		if e.place.pack&parentPack != 0 {
			e.place.pack = numbers[e.place.pack&^parentPack]
		} else {
			e.place.pack += uint32(b.report.BasePacks)
		}
		return t.add(e.index, e.chunkRef)
	})
	if err != nil {
		return nil, err
	}
	b.report.Zero = b.report.Chunks - held
	if sum := b.report.Stored + b.report.FromBase + b.report.Duplicate; sum != held {
		return nil, fmt.Errorf("the journal has %d chunks of %d", held, sum)
	}
	return t.finish()
}

func (b *builder) writeManifest(ctx context.Context, root *PageRef, m *manifest) error {
	c := &Config{
		SizeBytes: b.g.size, ChunkSize: b.g.chunkSize, ContentRoot: contentRoot(b.g, root), Root: root,
		Labels: b.Labels, Created: b.Created,
	}
	switch {
	case b.parentIs != nil:
		c.Parent = *b.parentIs
	case b.Base != nil:
		c.Parent = b.Base.ContentRoot()
	}
	data, err := c.encode()
	if err != nil {
		return err
	}
	m.Config = descriptor(MediaTypeConfig, data)
	if err := b.layout.PutBlob(ctx, m.Config, bytes.NewReader(data)); err != nil {
		return err
	}
	text, err := m.encode()
	if err != nil {
		return err
	}
	b.report.ContentRoot, b.report.Manifest = c.ContentRoot, sha256.Sum256(text)
	if b.publishAs != nil {
		return b.publishAs(ctx, text, c.ContentRoot)
	}
	return b.layout.PutManifest(ctx, b.name, text)
}
