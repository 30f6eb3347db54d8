package cache_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"coppice/cache"
	"coppice/image"
)

var quiet = slog.New(slog.DiscardHandler)

// site is a web server with an image, which notes how many bytes of its table were asked for.
type site struct {
	content []byte
	ref     image.Ref
	table   atomic.Int64
}

// newSite serves an image whose table has three pages below another.
func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{content: make([]byte, 9<<20)}
	noise := rand.NewChaCha8([32]byte{9})
	for off := 0; off < len(s.content); off += 16 << 10 {
		_, _ = noise.Read(s.content[off:][:4096]) // never fails
	}
	dir := t.TempDir()
	l, err := image.CreateLayout(filepath.Join(dir, "images"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := image.Build(t.Context(), l, "a:1", bytes.NewReader(s.content), int64(len(s.content)), image.BuildOptions{ChunkSize: 4096}); err != nil {
		t.Fatal(err)
	}
	im, err := image.Open(t.Context(), l, "a:1")
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	table := im.Table().Digest.Encoded()
	files := http.FileServer(http.Dir(dir))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, table) {
			w = counted{w, &s.table}
		}
		files.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	if s.ref, err = image.ParseRef(server.URL + "/images:a:1"); err != nil {
		t.Fatal(err)
	}
	return s
}

// counted counts the bytes of an answer.
type counted struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c counted) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return c.ResponseWriter.Write(p)
}

// patientCache is a cache of 32 MiB that waits for whoever it asks.
func patientCache(t *testing.T, o cache.Options) *cache.Cache {
	t.Helper()
	o.MemoryBytes, o.PeersTime, o.ApplianceTime, o.Log = 32<<20, time.Hour, time.Hour, quiet
	c, err := cache.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// openOn opens an image through a cache.
func openOn(t *testing.T, c *cache.Cache, ref image.Ref) (*image.Set, *cache.Root) {
	t.Helper()
	set, err := image.OpenSet(t.Context(), []image.Ref{ref}, image.Digest{}, image.SetOptions{Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { set.Close() })
	r := c.Open(set)
	t.Cleanup(r.Close)
	return set, r
}

// boot reads a little of what each page of the table is about through a cache of its own, and returns that.
func (s *site) boot(t *testing.T, o cache.Options) *cache.Cache {
	t.Helper()
	c := patientCache(t, o)
	s.bootOn(t, c)
	return c
}

// bootOn opens the image, and does so through a cache.
func (s *site) bootOn(t *testing.T, c *cache.Cache) {
	t.Helper()
	_, r := openOn(t, c, s.ref)
	v, p := r.Reader(), make([]byte, 4096)
	for off := int64(0); off < int64(len(s.content)); off += 4 << 20 {
		if err := v.Read(t.Context(), p, off); err != nil || !bytes.Equal(p, s.content[off:][:len(p)]) {
			t.Fatalf("read: %v", err)
		}
	}
}

// neighbour is a node as a tier of another.
type neighbour struct {
	*cache.Cache
	spoil    bool
	mu       sync.Mutex // guards what follows
	rejected int
}

func (n *neighbour) Get(ctx context.Context, c cache.Chunk, p []byte) error {
	err := n.Serve(ctx, c, p)
	if n.spoil && c.Index >= cache.TableIndex && err == nil {
		p[0] ^= 1
	}
	return err
}

func (n *neighbour) Put(cache.Chunk, []byte) {}

func (n *neighbour) Reject(cache.Chunk) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rejected++
}

// The table of an image is read once for all nodes, but for the page on top of it.
func TestTableIsReadOnceForAll(t *testing.T) {
	s := newSite(t)
	first := s.boot(t, cache.Options{})
	alone := s.table.Swap(0)
	if s.bootOn(t, first); s.table.Load()*10 > alone {
		t.Errorf("%d bytes of the table were read when the image was opened again, %d the first time", s.table.Load(), alone)
	}
	s.table.Store(0)
	for name, o := range map[string]cache.Options{"peers": {Peers: &neighbour{Cache: first}}, "appliance": {Appliance: &neighbour{Cache: first}}} {
		s.boot(t, o)
		if n := s.table.Swap(0); n*10 > alone {
			t.Errorf("%s: %d bytes of the table were read, the first node read %d", name, n, alone)
		}
	}
	liar := &neighbour{Cache: first, spoil: true}
	s.boot(t, cache.Options{Peers: liar})
	if n := s.table.Swap(0); n != alone || liar.rejected == 0 {
		t.Errorf("%d bytes of the table were read past one who lies, %d alone, and %d answers were rejected", n, alone, liar.rejected)
	}
}

// Parts of a table are given only where they belong.
func TestPartsOfTablesThatAreNone(t *testing.T) {
	s := newSite(t)
	c := s.boot(t, cache.Options{})
	set, err := image.OpenSet(t.Context(), []image.Ref{s.ref}, image.Digest{}, image.SetOptions{Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	parts, err := set.TableParts(t.Context(), 1024)
	if err != nil || len(parts) != 2 {
		t.Fatalf("%v, %v", parts, err)
	}
	good := cache.Chunk{Key: parts[0].Digest, Root: set.ContentRoot(), Index: cache.TableIndex + 4, Len: parts[0].Len}
	if err := errors.Join(c.Drop(false), c.Serve(t.Context(), good, make([]byte, good.Len))); err != nil {
		t.Errorf("a part of a table: %v", err)
	}
	for what, change := range map[string]func(*cache.Chunk){
		"of another page":    func(c *cache.Chunk) { c.Index += 4 },
		"beyond the last":    func(c *cache.Chunk) { c.Index += 1 << 30 },
		"of another length":  func(c *cache.Chunk) { c.Len-- },
		"of another content": func(c *cache.Chunk) { c.Root[0] ^= 1 },
		"with no such name":  func(c *cache.Chunk) { c.Key[0] ^= 1 },
	} {
		bad := good
		change(&bad)
		if err := c.Drop(false); err != nil { // what is in memory is given to anybody who knows its name
			t.Fatal(err)
		}
		if err := c.Serve(t.Context(), bad, make([]byte, bad.Len)); err == nil {
			t.Errorf("a part %s was given", what)
		}
	}
}
