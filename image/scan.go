package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
)

const (
	batchBytes = 1 << 20

	// rememberedChunks bounds each of the two generations of chunks that a build remembers as stored: together some 130 MiB of memory.
	rememberedChunks = 512 << 10
	// parentChunks bounds the parent's chunks that are found wherever they are. Those at the same place in both are found always.
	parentChunks = 1 << 20
)

// scanned is what a worker found out about a chunk.
type scanned struct {
	zeros  bool
	digest Digest
	parent *place // where the parent has it
	stored []byte // as it goes to a pack; nil where it is known to be stored already
}

// batch is some neighbouring chunks on their way from the source to the pack.
type batch struct {
	first  int64
	raw    []byte // of the buffer, what belongs to this batch
	chunks []scanned
	buf    []byte
	packed []byte
	err    error
	done   chan struct{}

	fromBase int64 // so many chunks are the base's, and nothing is read
}

// scanner reads a source from a chunk on to another one, with several workers, and hands its chunks on in their order. Batches of only
// zeros may be left out.
type scanner struct {
	in      io.ReaderAt
	g       geometry
	workers int
	work    func(context.Context, *batch) error // may be called by several goroutines

	base    *Image                          // with changed
	changed func() iter.Seq2[Extent, error] // where the source may differ from base; nil: anywhere
	read    *atomic.Int64                   // bytes of the source
}

// run calls consume for each batch, in order, in the caller's goroutine.
func (s *scanner) run(ctx context.Context, from, to int64, consume func(*batch) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	batches := 2 * s.workers
	free, ordered, todo := make(chan *batch, batches), make(chan *batch, batches), make(chan *batch)
	for range batches {
		free <- &batch{}
	}
	var group errgroup.Group
	group.Go(func() error {
		defer close(todo)
		defer close(ordered)
		return s.cut(ctx, from, to, free, func(b *batch) {
			ordered <- b // which has room for all there are
			todo <- b
		})
	})
	for range s.workers {
		group.Go(func() error {
			for b := range todo {
				if b.err = ctx.Err(); b.err == nil {
					b.err = s.fill(ctx, b)
				}
				close(b.done)
			}
			return nil
		})
	}
	var err error
	for b := range ordered {
		<-b.done
		if err == nil {
			err = b.err
		}
		if err == nil {
			err = consume(b)
		}
		if err != nil {
			cancel()
		}
		free <- b
	}
	if cutErr := group.Wait(); err == nil {
		err = cutErr
	}
	return err
}

// cut makes batches and skips what the source knows to be a hole.
func (s *scanner) cut(ctx context.Context, from, to int64, free <-chan *batch, emit func(*batch)) error {
	size := int64(s.g.chunkSize)
	per := max(1, batchBytes/size)
	changes := newChanges(s.changed, s.g, s.base)
	if changes != nil {
		defer changes.stop()
	}
	for first := from; first < to; {
		end, kind, err := s.nextRun(ctx, changes, &first, to)
		if err != nil {
			return err
		}
		if first == end {
			continue
		}
		var b *batch
		select {
		case b = <-free:
		case <-ctx.Done():
			return ctx.Err()
		}
		if kind == runBase {
			n := min(fanOut, end-first)
			*b = batch{first: first, fromBase: n, buf: b.buf, packed: b.packed[:0], chunks: b.chunks[:0], done: make(chan struct{})}
			emit(b)
			first += n
			continue
		}
		n := min(per, end-first)
		if b.buf == nil {
			b.buf = make([]byte, per*size)
		}
		*b = batch{first: first, raw: b.buf[:min(n*size, s.g.size-first*size)], buf: b.buf, packed: b.packed[:0],
			chunks: b.chunks[:0], done: make(chan struct{})}
		emit(b)
		first += n
	}
	return nil
}

// nextRun skips holes from first on, and returns where the run of chunks that follows ends, and how it is found.
func (s *scanner) nextRun(ctx context.Context, c *changes, first *int64, to int64) (end int64, kind runKind, err error) {
	if c == nil {
		if sparse, ok := s.in.(interface{ NextData(off int64) int64 }); ok {
			size := int64(s.g.chunkSize)
			*first = max(*first, min(sparse.NextData(*first*size)/size, to))
		}
		return to, runRead, nil
	}
	end, kind, err = c.run(*first, to)
	switch {
	case err == nil && kind == runBase:
		*first, err = s.skipZeros(ctx, *first, end)
	case kind == runZeros:
		*first = end
	}
	return end, kind, err
}

// fill finds out what is in a batch.
func (s *scanner) fill(ctx context.Context, b *batch) error {
	if b.fromBase > 0 {
		return s.takeFromBase(ctx, b)
	}
	if err := s.load(b); err != nil {
		return err
	}
	return s.work(ctx, b)
}

// load reads a batch from the source.
func (s *scanner) load(b *batch) error {
	off := b.first * int64(s.g.chunkSize)
	n, err := s.in.ReadAt(b.raw, off)
	s.read.Add(int64(n))
	switch {
	case n == len(b.raw):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return fmt.Errorf("read source: ends at byte %d, but had %d bytes before: %w", off+int64(n), s.g.size, ErrChanged)
	}
	return fmt.Errorf("read source at byte %d: %w", off+int64(n), err)
}

// zeroChunk is what zeros are compared with.
var zeroChunk = make([]byte, MaxChunkSize)

func isZero(p []byte) bool { return bytes.Equal(p, zeroChunk[:len(p)]) }

// hashBatch finds zeros and digests, and calls then, where there is one, for each chunk that is not zeros.
func hashBatch(g geometry, b *batch, then func(index int64, content []byte, c *scanned) error) error {
	for off := 0; off < len(b.raw); off += g.chunkSize {
		content := b.raw[off:min(off+g.chunkSize, len(b.raw))]
		c := scanned{zeros: isZero(content)}
		if !c.zeros {
			c.digest = sha256.Sum256(content)
			if then != nil {
				if err := then(b.first+int64(off/g.chunkSize), content, &c); err != nil {
					return err
				}
			}
		}
		b.chunks = append(b.chunks, c)
	}
	return nil
}

// newEncoder returns what compresses chunks. What it makes of a chunk depends on nothing else.
func newEncoder(workers int) (*zstd.Encoder, error) {
	return zstd.NewWriter(nil, zstd.WithEncoderConcurrency(workers), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false),
		zstd.WithSingleSegment(true), zstd.WithZeroFrames(true))
}

// packChunk returns what is stored of a chunk: a frame appended to buf, or the content itself.
func packChunk(enc *zstd.Encoder, content, buf []byte) (stored, rest []byte) {
	out := enc.EncodeAll(content, buf)
	frame := out[len(buf):]
	if len(frame) > len(content)-len(content)/16 {
		return content, buf
	}
	return frame, out
}

// memory remembers where chunks are stored: the most recent ones, in two generations. What it has forgotten depends on
// nothing but what it was told, so that a build over again does the same. One goroutine changes it, many may look.
type memory struct {
	mu       sync.RWMutex
	now, old map[Digest]place
	limit    int
}

func newMemory(limit int) *memory { return &memory{now: map[Digest]place{}, limit: limit} }

// has looks without effect.
func (m *memory) has(d Digest) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	_, ok := m.now[d]
	if !ok {
		_, ok = m.old[d]
	}
	return ok
}

// get looks, and keeps what it finds for longer.
func (m *memory) get(d Digest) (place, bool) {
	if p, ok := m.now[d]; ok {
		return p, true
	}
	p, ok := m.old[d]
	if ok {
		m.add(d, p)
	}
	return p, ok
}

func (m *memory) add(d Digest, p place) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.now) >= m.limit {
		m.old, m.now = m.now, make(map[Digest]place, m.limit)
	}
	m.now[d] = p
}
