package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Whatever is read, from wherever on, is what went in, and the content root is the one that the text of the format gives.
func TestReadsAreRight(t *testing.T) {
	for _, c := range []struct{ size, chunk, perPack int }{
		{1, 4096, 1}, {4096, 4096, 1}, {4097, 4096, 3}, {1 << 20, 4096, 7}, {3<<20 + 513, 64 << 10, 5},
		{1024*4096 + 1, 4096, 100}, {1024 * 4096, 4096, 2000}, {9<<20 - 1, 4096, 3000},
	} {
		content := testContent(uint64(c.size), c.size)
		content[0] = 1
		s := newMemStore()
		cut(content, c.chunk, c.perPack).store(t, s, "v1", nil)
		im := openTest(t, s, "v1")
		if want := naiveRoot(content, c.chunk); im.ContentRoot() != want {
			t.Errorf("%+v: content root %s, not %s", c, im.ContentRoot(), want)
		}
		if !bytes.Equal(readAll(t, im), content) {
			t.Errorf("%+v: other content", c)
		}
		rng := rand.New(rand.NewPCG(7, 7))
		for range 200 {
			off := rng.IntN(c.size)
			p := make([]byte, 1+rng.IntN(3*c.chunk))
			n, err := im.ReadAt(p, int64(off))
			if want := min(len(p), c.size-off); n != want || (n < len(p)) != errors.Is(err, io.EOF) || n == len(p) && err != nil {
				t.Fatalf("%+v: read %d at %d: %d, %v", c, len(p), off, n, err)
			}
			if !bytes.Equal(p[:n], content[off:off+n]) {
				t.Fatalf("%+v: read %d at %d: other bytes", c, len(p), off)
			}
		}
	}
}

func TestReadsBeyondTheEnd(t *testing.T) {
	s := newMemStore()
	cut(testContent(1, 10000), 4096, 1).store(t, s, "v1", nil)
	im := openTest(t, s, "v1")
	p := make([]byte, 100)
	if _, err := im.ReadAt(p, 10000); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
	for _, off := range []int64{-1, 10001, 1 << 62} {
		if _, err := im.ReadAt(p, off); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("at %d: %v", off, err)
		}
	}
	if err := im.Read(context.Background(), p, 9950); err == nil {
		t.Error("a range over the end is read")
	}
	for _, i := range []int64{-1, 3} {
		if _, err := im.ReadChunk(context.Background(), p, i); err == nil {
			t.Errorf("chunk %d is read", i)
		}
		if _, _, err := im.Chunk(context.Background(), i); err == nil {
			t.Errorf("chunk %d has a digest", i)
		}
	}
	if _, err := im.ReadChunk(context.Background(), p, 0); err == nil {
		t.Error("a chunk is read into too little")
	}
}

// An image of zeros has neither packs nor pages, and reading it asks for nothing.
func TestZerosCostNothing(t *testing.T) {
	s := newMemStore()
	p := &parts{g: geometry{10 << 40, DefaultChunkSize}}
	p.store(t, s, "v1", nil)
	im := openTest(t, s, "v1")
	s.reads = 0
	b := bytes.Repeat([]byte{1}, 100000)
	if err := im.Read(context.Background(), b, 5<<40); err != nil || len(bytes.Trim(b, "\x00")) > 0 {
		t.Errorf("%v, or not zeros", err)
	}
	if s.reads > 0 || im.Table().Size != int64(len(tableMagic)) {
		t.Errorf("%d reads, table of %d bytes", s.reads, im.Table().Size)
	}
	if _, zeros, err := im.Chunk(context.Background(), 0); !zeros || err != nil {
		t.Errorf("chunk 0: zeros %v, %v", zeros, err)
	}
}

// Chunks that lie next to each other come in one request, and what is far apart in several.
func TestNeighboursComeTogether(t *testing.T) {
	content := bytes.Repeat([]byte{1}, 64*4096)
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range content {
		content[i] = byte(rng.Uint32())
	}
	s := newMemStore()
	cut(content, 4096, 32).store(t, s, "v1", nil)
	im := openTest(t, s, "v1")
	p := make([]byte, 4096)
	if _, err := im.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	s.reads = 0
	readAll(t, im)
	if s.reads != 2 {
		t.Errorf("%d requests for two packs", s.reads)
	}
	s.reads = 0
	if _, err := im.ReadAt(make([]byte, 10*4096), 5*4096); err != nil || s.reads != 1 {
		t.Errorf("%d requests for ten neighbours, %v", s.reads, err)
	}
}

// Concurrent reads of the same thing ask for it once, page and chunk alike.
func TestMissesAreFetchedOnce(t *testing.T) {
	decoder() // which belong to no bubble
	testEncoder()
	synctest.Test(t, func(t *testing.T) {
		s := newMemStore()
		cut(bytes.Repeat([]byte("x"), 1<<20), 64<<10, 100).store(t, s, "v1", nil)
		im := openTest(t, s, "v1")
		s.reads = 0
		enough := make(chan struct{})
		s.hold = func(context.Context, []byte) error { <-enough; return nil }
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if _, err := im.ReadChunk(context.Background(), make([]byte, 64<<10), 3); err != nil {
					t.Error(err)
				}
			})
		}
		for range 2 { // the page, and then the chunk
			synctest.Wait()
			enough <- struct{}{}
		}
		wg.Wait()
		if s.reads != 2 {
			t.Errorf("%d reads for one page and one chunk", s.reads)
		}
	})
}

// What is cached is not asked for again, and is right.
func TestCache(t *testing.T) {
	content := testContent(15, 1<<20)
	s := newMemStore()
	cut(content, 64<<10, 100).store(t, s, "v1", nil)
	im := openTest(t, s, "v1")
	im.Cache(4 * 64 << 10)
	p := make([]byte, 4096)
	read := func(off int64) (requests int) {
		t.Helper()
		s.reads = 0
		if err := im.Read(context.Background(), p, off); err != nil || !bytes.Equal(p, content[off:off+4096]) {
			t.Fatalf("at %d: %v, or other bytes", off, err)
		}
		return s.reads
	}
	read(0)
	for off := int64(0); off < 64<<10; off += 4096 {
		if n := read(off); n > 0 {
			t.Errorf("%d requests at %d", n, off)
		}
	}
	for off := int64(64 << 10); off < 1<<20; off += 64 << 10 {
		if n := read(off); n != 1 {
			t.Errorf("%d requests at %d", n, off)
		}
	}
	if n := read(0); n != 1 {
		t.Errorf("%d requests for what no longer fits", n)
	}
}

func TestNextData(t *testing.T) {
	content := make([]byte, 9<<20+5)
	for _, off := range []int{5000, 6 << 20, 9<<20 + 3} {
		content[off] = 1
	}
	s := newMemStore()
	cut(content, 4096, 100).store(t, s, "v1", nil)
	im := openTest(t, s, "v1")
	for off, want := range map[int64]int64{
		0: 4096, 4096: 4096, 5001: 5001, 8192: 6 << 20, 6<<20 + 4095: 6<<20 + 4095, 6<<20 + 4096: 9 << 20, 9<<20 + 4: 9<<20 + 4, 9<<20 + 5: 9<<20 + 5,
	} {
		if got, err := im.NextData(context.Background(), off); got != want || err != nil {
			t.Errorf("from %d: %d, not %d, %v", off, got, want, err)
		}
	}
}

// Whose context ends stops waiting, while others get what they wait for.
func TestACallerGivesUp(t *testing.T) {
	s := newMemStore()
	cut([]byte("content"), 4096, 1).store(t, s, "v1", nil)
	im := openTest(t, s, "v1")
	enough := make(chan struct{})
	s.hold = func(context.Context, []byte) error { <-enough; return nil }
	ctx, cancel := context.WithCancel(context.Background())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { first <- im.Read(ctx, make([]byte, 7), 0) }()
	go func() { second <- im.Read(context.Background(), make([]byte, 7), 0) }()
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	close(enough)
	if err := <-second; err != nil {
		t.Error(err)
	}
}

// Close ends requests that would wait for ever.
func TestCloseEndsWaiting(t *testing.T) {
	s := newMemStore()
	cut([]byte("content"), 4096, 1).store(t, s, "v1", nil)
	im := openTest(t, s, "v1")
	began := make(chan struct{})
	s.hold = func(ctx context.Context, _ []byte) error {
		close(began)
		<-ctx.Done()
		return ctx.Err()
	}
	result := make(chan error, 1)
	go func() { result <- im.Read(context.Background(), make([]byte, 7), 0) }()
	<-began
	im.Close()
	if err := <-result; !errors.Is(err, ErrClosed) {
		t.Errorf("%v", err)
	}
}

// An error is not remembered.
func TestAnErrorIsNotRemembered(t *testing.T) {
	s := newMemStore()
	cut([]byte("content"), 4096, 1).store(t, s, "v1", nil)
	im := openTest(t, s, "v1")
	bad := errors.New("cable cut")
	s.hold = func(context.Context, []byte) error { return bad }
	p := make([]byte, 7)
	if err := im.Read(context.Background(), p, 0); !errors.Is(err, bad) {
		t.Errorf("%v", err)
	}
	s.hold = nil
	if err := im.Read(context.Background(), p, 0); err != nil || string(p) != "content" {
		t.Errorf("%q, %v", p, err)
	}
}

// The first byte of a 10 TiB image, and of a full one of 10 GiB, takes at most 8 requests, manifest and config
// included, and 2 MiB.
func TestFirstByteIsCheap(t *testing.T) {
	chunk := bytes.Repeat([]byte("full"), DefaultChunkSize/4)
	one := cut(chunk, DefaultChunkSize, 1)
	for name, p := range map[string]*parts{
		"10 TiB sparse": {g: geometry{10 << 40, DefaultChunkSize}, refs: map[int64]chunkRef{}},
		"10 GiB full":   {g: geometry{10 << 30, DefaultChunkSize}, refs: map[int64]chunkRef{}},
	} {
		p.packs = one.packs
		step := int64(1)
		if name == "10 TiB sparse" {
			step = p.g.chunks() / 100_000
		}
		for i := int64(0); i < p.g.chunks(); i += step {
			p.refs[i] = one.refs[0]
		}
		s := newMemStore()
		p.store(t, s, "v1", func(m *manifest, _ *Config) {
			for i := range uint64(160) { // as many packs as a full image has
				m.Packs = append(m.Packs, s.put(MediaTypePack, testContent(i, 16)))
			}
		})
		s.reads, s.bytes = 0, 0
		im := openTest(t, s, "v1")
		b := make([]byte, 1)
		if _, err := im.ReadAt(b, 0); err != nil || b[0] != 'f' {
			t.Errorf("%s: %q, %v", name, b, err)
		}
		requests, fetched := s.reads+1, s.bytes+len(s.tags["v1"])
		t.Logf("%s: first byte after %d requests and %d bytes, the table has %d", name, requests, fetched, im.Table().Size)
		if requests > 8 || fetched > 2<<20 {
			t.Errorf("%s: first byte after %d requests and %d bytes", name, requests, fetched)
		}
	}
}

// No more chunks are unpacked at a time than there are CPUs.
func TestUnpackingLeavesProcessors(t *testing.T) {
	content := testContent(1, 4096)
	for range cap(unpacking) {
		unpacking <- struct{}{}
	}
	done := make(chan error)
	go func() { done <- unpack(make([]byte, len(content)), content, sha256.Sum256(content)) }()
	select {
	case err := <-done:
		t.Errorf("unpacked beside %d others: %v", cap(unpacking), err)
		done = nil
	case <-time.After(10 * time.Millisecond):
	}
	for range cap(unpacking) {
		<-unpacking
	}
	if done != nil {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
