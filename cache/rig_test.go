package cache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"coppice/image"
)

// fakeOrigin is an image whose content follows from its seed. It writes down what it is asked for.
type fakeOrigin struct {
	seed  uint64
	size  int64
	chunk int
	zeros func(index int64) bool // nil: none

	mu    sync.Mutex
	reads []readRange
	pages []int64 // first chunks of digests that were asked for
	err   error
	keys  map[int64]Key
	gate  chan struct{} // reads wait until it is closed, or their context ends; nil: they do not
}

type readRange struct {
	off int64
	len int
}

func (o *fakeOrigin) Size() int64    { return o.size }
func (o *fakeOrigin) ChunkSize() int { return o.chunk }

func (o *fakeOrigin) ContentRoot() image.Digest {
	return sha256.Sum256(fmt.Append(nil, "root ", o.seed, o.size, o.chunk))
}

func (o *fakeOrigin) chunkLen(index int64) int {
	return int(min(int64(o.chunk), o.size-index*int64(o.chunk)))
}

// content returns a chunk: its number and random bytes.
func (o *fakeOrigin) content(index int64) []byte {
	p := make([]byte, o.chunkLen(index))
	if o.zeros != nil && o.zeros(index) {
		return p
	}
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], o.seed)
	binary.LittleEndian.PutUint64(seed[8:], uint64(index))
	_, _ = rand.NewChaCha8(seed).Read(p)
	return p
}

// key returns the digest of a chunk.
func (o *fakeOrigin) key(index int64) Key {
	if o.zeros != nil && o.zeros(index) {
		return Key{}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	k, known := o.keys[index]
	if !known {
		if o.keys == nil {
			o.keys = map[int64]Key{}
		}
		k = sha256.Sum256(o.content(index))
		o.keys[index] = k
	}
	return k
}

// named returns a chunk as tiers are asked for it.
func (o *fakeOrigin) named(index int64) Chunk {
	return Chunk{Key: o.key(index), Root: o.ContentRoot(), Index: index, Len: o.chunkLen(index)}
}

func (o *fakeOrigin) Digests(ctx context.Context, first int64, d []image.Digest) error {
	o.mu.Lock()
	o.pages = append(o.pages, first)
	err := o.err
	o.mu.Unlock()
	for i := range d {
		d[i] = o.key(first + int64(i))
	}
	return errors.Join(err, ctx.Err())
}

func (o *fakeOrigin) Read(ctx context.Context, p []byte, off int64) error {
	o.mu.Lock()
	o.reads = append(o.reads, readRange{off, len(p)})
	gate, err := o.gate, o.err
	o.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	copy(p, o.bytes(off, len(p)))
	return err
}

// bytes is what a read returns.
func (o *fakeOrigin) bytes(off int64, n int) []byte {
	var all []byte
	index, skip := off/int64(o.chunk), int(off%int64(o.chunk))
	for len(all) < skip+n {
		all = append(all, o.content(index)...)
		index++
	}
	return all[skip : skip+n]
}

// asked returns what was read since it was called before.
func (o *fakeOrigin) asked() []readRange {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := o.reads
	o.reads = nil
	return all
}

func (o *fakeOrigin) set(f func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f()
}

// fakeTier keeps what it is offered.
type fakeTier struct {
	mu       sync.Mutex
	chunks   map[Key][]byte
	gets     int
	rejected []Key
	lie      bool          // what it gives is something else
	err      error         // what it answers
	hang     chan struct{} // Get waits for it, whatever its context says; nil: it does not
}

func newFakeTier() *fakeTier { return &fakeTier{chunks: map[Key][]byte{}} }

func (t *fakeTier) Get(_ context.Context, c Chunk, p []byte) error {
	t.mu.Lock()
	t.gets++
	content, ok := t.chunks[c.Key]
	lie, err, hang := t.lie, t.err, t.hang
	t.mu.Unlock()
	if hang != nil {
		<-hang
	}
	switch {
	case err != nil:
		return err
	case lie:
		clear(p)
		return nil
	case !ok:
		return ErrMiss
	}
	copy(p, content)
	return nil
}

// fakePeers are asked for what they hold, too.
type fakePeers struct{ *fakeTier }

func (t fakePeers) Held(ctx context.Context, c Chunk, p []byte) error { return t.Get(ctx, c, p) }

func (t *fakeTier) Put(c Chunk, content []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.chunks[c.Key] = bytes.Clone(content)
}

func (t *fakeTier) Reject(c Chunk) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rejected = append(t.rejected, c.Key)
}

func (t *fakeTier) set(f func(t *fakeTier)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f(t)
}

func (t *fakeTier) has(k Key) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.chunks[k] != nil
}

func (t *fakeTier) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.chunks)
}

// newCache makes a cache that ends with the test.
func newCache(t testing.TB, o Options) *Cache {
	t.Helper()
	c := newCacheFor(t, o)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// newCacheFor makes a cache that the caller closes.
func newCacheFor(t testing.TB, o Options) *Cache {
	t.Helper()
	if o.MemoryBytes == 0 {
		o.MemoryBytes = 16 << 20
	}
	for _, limit := range []*time.Duration{&o.DiskTime, &o.PeersTime, &o.ApplianceTime} {
		if *limit == 0 {
			*limit = time.Hour // the machine that a test runs on may be busy
		}
	}
	o.Log = slog.New(slog.DiscardHandler)
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// open opens an image until the test ends.
func open(t testing.TB, c *Cache, o Origin) *Root {
	t.Helper()
	r := c.Open(o)
	t.Cleanup(r.Close)
	return r
}

// within bounds what a test waits for.
func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// mustRead reads, and compares with what the origin has.
func mustRead(t testing.TB, v *Reader, o *fakeOrigin, off int64, n int) {
	t.Helper()
	p := make([]byte, n)
	if err := v.Read(within(t), p, off); err != nil {
		t.Fatalf("read %d bytes at %d: %v", n, off, err)
	}
	if !bytes.Equal(p, o.bytes(off, n)) {
		t.Fatalf("read %d bytes at %d: other content", n, off)
	}
}

// eventually waits until something holds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it never happened that %s", what)
		}
	}
}
