package cache_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"coppice/cache"
	"coppice/image"
)

// indexed is a web server with an image and its index, which notes what it was asked for.
type indexed struct {
	ref     image.Ref
	content []byte // of the index

	mu    sync.Mutex // guards what follows
	asked []string
}

func newIndexed(t *testing.T) *indexed {
	t.Helper()
	s := &indexed{content: make([]byte, 300_000)}
	_, _ = rand.NewChaCha8([32]byte{4}).Read(s.content) // never fails
	dir := t.TempDir()
	l, err := image.CreateLayout(filepath.Join(dir, "images"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := image.Build(t.Context(), l, "a:1", bytes.NewReader(s.content), 100_000, image.BuildOptions{}); err != nil {
		t.Fatal(err)
	}
	im, err := image.Open(t.Context(), l, "a:1")
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	file := image.IndexFile{Root: im.ContentRoot(), Content: bytes.NewReader(s.content), SizeBytes: int64(len(s.content))}
	if _, err := image.AttachIndex(t.Context(), im, l, file, image.IndexOptions{}); err != nil {
		t.Fatal(err)
	}
	files := http.FileServer(http.Dir(dir))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.asked = append(s.asked, r.URL.Path)
		s.mu.Unlock()
		files.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	if s.ref, err = image.ParseRef(server.URL + "/images:a:1"); err != nil {
		t.Fatal(err)
	}
	return s
}

// requests returns what was asked for since the last call: lists of what there is, and how many other things.
func (s *indexed) requests() (lists, blobs int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, path := range s.asked {
		if strings.HasSuffix(path, "index.json") {
			lists++
		} else {
			blobs++
		}
	}
	s.asked = nil
	return lists, blobs
}

// node opens the image on a node with a cache of its own, then looks for its index and opens that, and returns how often the server was asked for that.
func (s *indexed) node(t *testing.T, o cache.Options) (c *cache.Cache, r *cache.Root, lists, blobs int) {
	t.Helper()
	c = patientCache(t, o)
	set, r := openOn(t, c, s.ref)
	s.requests()
	found, err := set.FindIndex(t.Context(), r.ReadSmall, func(*image.Index) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	index, err := image.OpenSet(t.Context(), found.Refs, found.Statement.Index, image.SetOptions{Log: quiet, Known: found.Known})
	if err != nil {
		t.Fatal(err)
	}
	lists, blobs = s.requests()
	got := make([]byte, len(s.content))
	if err := errors.Join(index.Read(t.Context(), got, 0), index.Close()); err != nil || !bytes.Equal(got, s.content) {
		t.Errorf("the index: %v", err)
	}
	s.requests()
	return c, r, lists, blobs
}

// What describes an index is read once for all nodes; each asks the server itself only which index there is.
func TestDescriptionOfAnIndexIsReadOnceForAll(t *testing.T) {
	s := newIndexed(t)
	first, _, lists, alone := s.node(t, cache.Options{})
	if lists != 1 || alone != 3 {
		t.Errorf("the first node asked for %d lists, and %d other things: not for one, and manifest, statement and config", lists, alone)
	}
	for name, o := range map[string]cache.Options{"peers": {Peers: &neighbour{Cache: first}}, "appliance": {Appliance: &neighbour{Cache: first}}} {
		if _, _, lists, blobs := s.node(t, o); lists != 1 || blobs > 0 {
			t.Errorf("%s: asked for %d lists, and %d other things", name, lists, blobs)
		}
	}
	if err := first.Drop(false); err != nil { // a node fetches for others
		t.Fatal(err)
	}
	if _, _, lists, blobs := s.node(t, cache.Options{Appliance: &neighbour{Cache: first}}); lists != 1 || blobs != alone {
		t.Errorf("fetched by another node: asked for %d lists, and %d other things, not %d", lists, blobs, alone)
	}
	liar := &neighbour{Cache: first, spoil: true}
	if _, _, lists, blobs := s.node(t, cache.Options{Peers: liar}); lists != 1 || blobs != alone || liar.rejected != alone {
		t.Errorf("past one who lies: asked for %d lists, and %d other things, not %d; %d answers were rejected", lists, blobs, alone, liar.rejected)
	}
}

// Nothing is fetched for others but what has the name that they say, and is small.
func TestSmallBlobsThatAreNone(t *testing.T) {
	s := newIndexed(t)
	c, r, _, _ := s.node(t, cache.Options{})
	set, err := image.OpenSet(t.Context(), []image.Ref{s.ref}, image.Digest{}, image.SetOptions{Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	config := set.Replicas()[0].Manifest
	var size int
	for d, data := range set.Metadata() {
		if d == config {
			size = len(data)
		}
	}
	good := cache.Chunk{Key: config, Root: set.ContentRoot(), Index: cache.SmallIndex + 1, Len: size}
	if err := errors.Join(c.Drop(false), c.Serve(t.Context(), good, make([]byte, good.Len))); err != nil {
		t.Errorf("a manifest: %v", err)
	}
	for what, change := range map[string]func(*cache.Chunk){
		"beside another image": func(c *cache.Chunk) { c.Root[0] ^= 1 },
		"of another length":    func(c *cache.Chunk) { c.Len-- },
		"of another kind":      func(c *cache.Chunk) { c.Index++ },
		"with no such name":    func(c *cache.Chunk) { c.Key[0] ^= 1 },
		"that is large":        func(c *cache.Chunk) { c.Len = image.MaxSmall + 1 },
	} {
		bad := good
		change(&bad)
		if err := c.Drop(false); err != nil { // what is in memory is given to anybody who knows its name
			t.Fatal(err)
		}
		if err := c.Serve(t.Context(), bad, make([]byte, bad.Len)); err == nil {
			t.Errorf("a blob %s was given", what)
		}
	}
	if err := r.ReadSmall(t.Context(), image.Digest{1}, false, make([]byte, 10)); !errors.Is(err, image.ErrNotFound) {
		t.Errorf("a blob that is not there: %v", err)
	}
	s.requests()
	for i := range 100 {
		madeUp := cache.Chunk{Key: image.Digest{2, byte(i)}, Root: set.ContentRoot(), Index: cache.SmallIndex, Len: 10}
		if err := c.Serve(t.Context(), madeUp, make([]byte, 10)); err == nil {
			t.Error("a made-up blob was given")
		}
	}
	if _, blobs := s.requests(); blobs > 50 {
		t.Errorf("the server was asked for %d blobs that somebody made up", blobs)
	}
	if err := r.ReadSmall(t.Context(), good.Key, true, make([]byte, good.Len)); err != nil {
		t.Errorf("a manifest, for oneself: %v", err)
	}
}
