package cache

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"coppice/image"
	"coppice/internal/flight"
)

// windowBytes is how much of a long read is in hand at a time.
const windowBytes = 4 << 20

// Root is an image that is read through the cache, by any number of devices. It is safe for concurrent use.
type Root struct {
	cache   *Cache
	origin  Origin
	content image.Digest
	size    int64
	shift   uint // of the size of a chunk
	chunks  int64

	pages       []atomic.Pointer[digestPage]
	pageFlights flight.Group[int64, *digestPage]

	ctx    context.Context // ends when the root is closed
	cancel context.CancelFunc

	mu      sync.Mutex // guards what follows
	closed  bool
	work    sync.WaitGroup // Add is called with mu held, before closed is set
	readers []*Reader
}

// Open registers an image. The origin stays the caller's, and is closed after the root.
func (c *Cache) Open(o Origin) *Root {
	r := &Root{cache: c, origin: o, content: o.ContentRoot(), size: o.Size(), shift: uint(bits.TrailingZeros(uint(o.ChunkSize())))}
	r.chunks = (r.size + r.chunkBytes() - 1) >> r.shift
	r.pages = make([]atomic.Pointer[digestPage], (r.chunks+pageChunks-1)>>pageShift)
	r.ctx, r.cancel = context.WithCancel(context.Background())
	c.memory.use(o.ChunkSize(), 1)
	c.charge(int64(len(r.pages)) * placeBytes)
	c.mu.Lock()
	c.roots[r.content] = append(c.roots[r.content], r)
	c.mu.Unlock()
	return r
}

// Close takes the image off the cache, which keeps its chunks. What is under way ends with [image.ErrClosed], and Close waits for that.
func (r *Root) Close() {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return
	}
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	r.work.Wait()
	c := r.cache
	c.digests.removeRoot(r)
	c.mu.Lock()
	c.gone = c.gone.plus(r.stats())
	c.roots[r.content] = slices.DeleteFunc(c.roots[r.content], func(other *Root) bool { return other == r })
	if len(c.roots[r.content]) == 0 {
		delete(c.roots, r.content)
	}
	c.mu.Unlock()
	c.memory.use(int(r.chunkBytes()), -1)
	c.charge(-int64(len(r.pages)) * placeBytes)
}

// spawn runs f in a goroutine that Close waits for, unless the root is closed.
func (r *Root) spawn(f func()) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	r.work.Go(f)
	return true
}

// ended says so where an error came of closing the root.
func (r *Root) ended(err error) error {
	if err != nil && r.ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return image.ErrClosed
	}
	return err
}

func (r *Root) chunkBytes() int64 { return 1 << r.shift }

// chunkLen returns the length of a chunk in bytes.
func (r *Root) chunkLen(index int64) int { return int(min(r.chunkBytes(), r.size-index<<r.shift)) }

func (r *Root) stats() (s ReaderStats) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, reader := range r.readers {
		s = s.plus(reader.Stats())
	}
	return s
}

// Reader is what one device reads of a root, with numbers of its own. It is safe for concurrent use.
type Reader struct {
	root  *Root
	parts [sources]struct{ chunks, bytes atomic.Uint64 }
	reads atomic.Uint64
	fails atomic.Uint64
	fetch histogram

	streams streams
}

// Reader returns a view of the root for one device.
func (r *Root) Reader() *Reader {
	v := &Reader{root: r}
	r.mu.Lock()
	r.readers = append(r.readers, v)
	r.mu.Unlock()
	return v
}

// Close ends the counting: what was read stays in the numbers of the cache.
func (v *Reader) Close() {
	r := v.root
	r.mu.Lock()
	known := slices.Contains(r.readers, v)
	r.readers = slices.DeleteFunc(r.readers, func(other *Reader) bool { return other == v })
	r.mu.Unlock()
	if known {
		c := r.cache
		c.mu.Lock()
		c.gone = c.gone.plus(v.Stats())
		c.mu.Unlock()
	}
}

// Stats returns the numbers so far.
func (v *Reader) Stats() ReaderStats {
	part := func(s Source) Part { return Part{v.parts[s].chunks.Load(), v.parts[s].bytes.Load()} }
	return ReaderStats{
		Memory: part(FromMemory), Disk: part(FromDisk), Peers: part(FromPeers), Appliance: part(FromAppliance), Origin: part(FromOrigin),
		Zeros: part(FromZeros), Reads: v.reads.Load(), Errors: v.fails.Load(), Fetch: v.fetch.stats(),
	}
}

// count returns the source, where anything came from it.
func (v *Reader) count(s Source, p Part) Sources {
	if p.Chunks == 0 {
		return 0
	}
	v.parts[s].chunks.Add(p.Chunks)
	v.parts[s].bytes.Add(p.Bytes)
	return 1 << s
}

// TryRead fills p from byte off on if memory has all of it, and reports whether it has. It does not allocate, and waits for nothing, so that it can be called
// where requests are served. After false, p holds anything.
func (v *Reader) TryRead(p []byte, off int64) bool {
	_, ok := v.TryReadFrom(p, off)
	return ok
}

// TryReadFrom is TryRead that tells where the bytes were.
func (v *Reader) TryReadFrom(p []byte, off int64) (Sources, bool) {
	r := v.root
	if off < 0 || int64(len(p)) > r.size-off {
		return 0, false
	}
	var memory, zeros Part
	for len(p) > 0 {
		index, skip := off>>r.shift, int(off&(1<<r.shift-1))
		n := min(len(p), 1<<r.shift-skip)
		d := r.digest(index)
		if d == nil {
			return 0, false
		}
		switch r.cache.have(d, p[:n], skip) {
		case FromMemory:
			memory = memory.plus(Part{1, uint64(n)})
		case FromZeros:
			zeros = zeros.plus(Part{1, uint64(n)})
		default:
			return 0, false
		}
		p, off = p[n:], off+int64(n)
	}
	return v.count(FromMemory, memory) | v.count(FromZeros, zeros), true
}

// Read fills p from byte off on. What memory does not have it takes from the other tiers, and then from the origin, for as long as that has patience. The
// range lies within the image. After an error, p holds anything.
func (v *Reader) Read(ctx context.Context, p []byte, off int64) error {
	_, err := v.ReadFrom(ctx, p, off)
	return err
}

// ReadFrom is Read that tells where the bytes came from.
func (v *Reader) ReadFrom(ctx context.Context, p []byte, off int64) (from Sources, err error) {
	r := v.root
	if err := r.check(p, off); err != nil {
		return 0, err
	}
	began := time.Now()
	v.reads.Add(1)
	stream := v.streams.note(off, int64(len(p)))
	err = v.windows(p, off, func(p []byte, off int64) error { return v.readWindow(ctx, stream, p, off, &from) })
	took := time.Since(began)
	v.fetch.add(took)
	r.cache.fetch.add(took)
	return from, err
}

// check fails for a range that the image does not have.
func (r *Root) check(p []byte, off int64) error {
	if off < 0 || int64(len(p)) > r.size-off {
		return fmt.Errorf("read %d bytes at %d: beyond the image of %d bytes", len(p), off, r.size)
	}
	return nil
}

// windows reads p in parts, of which all but the last end with a chunk, and counts a failure.
func (v *Reader) windows(p []byte, off int64, read func(p []byte, off int64) error) error {
	shift := v.root.shift
	for len(p) > 0 {
		n := int(min(int64(len(p)), (off+windowBytes)>>shift<<shift-off))
		if err := read(p[:n], off); err != nil {
			v.fails.Add(1)
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// want is what a read needs of one chunk.
type want struct {
	dst  []byte // where its bytes go, from byte skip of the chunk on
	skip int
}

// readWindow reads what is part of a stream of so many bytes, and adds to from where they came from.
func (v *Reader) readWindow(ctx context.Context, stream int64, p []byte, off int64, from *Sources) error {
	wants, chunks, err := v.missing(ctx, p, off, from)
	if err != nil || len(wants) == 0 {
		return err
	}
	c := v.root.cache
	t := c.near.begin(v.root, c.isScan(stream), chunks)
	defer t.end()
	for i := range t.all {
		c.curve.request(&chunks[i].Key, t.asked(i), v.root.chunkBytes(), stream)
	}
	for i, w := range wants {
		got, err := t.wait(ctx, i)
		if err != nil {
			return err
		}
		*from |= v.count(got.from, Part{1, uint64(copy(w.dst, got.content[w.skip:]))})
	}
	return nil
}

// missing reads what is in memory, adds to told where that was, and returns the rest.
func (v *Reader) missing(ctx context.Context, p []byte, off int64, told *Sources) (wants []want, chunks []Chunk, err error) {
	r := v.root
	for len(p) > 0 {
		index, skip := off>>r.shift, int(off&(1<<r.shift-1))
		n := min(len(p), 1<<r.shift-skip)
		d, err := r.digestOf(ctx, index)
		if err != nil {
			return nil, nil, err
		}
		if from := r.cache.have(&d, p[:n], skip); from == FromMemory || from == FromZeros {
			*told |= v.count(from, Part{1, uint64(n)})
		} else {
			wants = append(wants, want{p[:n], skip})
			chunks = append(chunks, Chunk{Key: d, Root: r.content, Index: index, Len: r.chunkLen(index)})
		}
		p, off = p[n:], off+int64(n)
	}
	return wants, chunks, nil
}
