package trace_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"coppice/cache"
	"coppice/cache/trace"
	"coppice/image"
	"coppice/image/faultproxy"
)

var quiet = slog.New(slog.DiscardHandler)

// origin is a web server with an image of a disk, and a delaying proxy in front of it, which counts.
type origin struct {
	*faultproxy.Proxy
	ref image.Ref
}

// buildImage makes an image of a disk in a layout below the test's directory, and returns the directory above that.
func buildImage(t *testing.T, disk *trace.Disk, chunkSize int) string {
	t.Helper()
	dir := t.TempDir()
	l, err := image.CreateLayout(filepath.Join(dir, "images"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := image.Build(t.Context(), l, "root:1", disk, disk.Bytes, image.BuildOptions{ChunkSize: chunkSize}); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// serveImage serves what buildImage made.
func serveImage(t *testing.T, dir string, network faultproxy.Fault) *origin {
	t.Helper()
	o := &origin{}
	server := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(server.Close)
	var err error
	if o.Proxy, err = faultproxy.Start("127.0.0.1:0", server.URL); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.Close() })
	o.Set(network)
	if o.ref, err = image.ParseRef(o.URL() + "/images:root:1"); err != nil {
		t.Fatal(err)
	}
	return o
}

// node is a cache with an image open.
type node struct {
	*cache.Cache
	root *cache.Root
}

func newCache(t *testing.T, o cache.Options) *cache.Cache {
	t.Helper()
	o.Log = quiet
	c, err := cache.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// newNode opens an image, where there is nothing else, and everything is closed when the test ends.
func newNode(t *testing.T, ref image.Ref, o cache.Options) *node {
	t.Helper()
	n := &node{Cache: newCache(t, o)}
	n.root = n.open(t, ref)
	return n
}

// open opens an image as replica set of its own.
func (n *node) open(t *testing.T, ref image.Ref) *cache.Root {
	t.Helper()
	set, err := openSet(ref)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { set.Close() })
	r := n.Open(set)
	t.Cleanup(r.Close)
	return r
}

func openSet(ref image.Ref) (*image.Set, error) {
	return image.OpenSet(context.Background(), []image.Ref{ref}, image.Digest{}, image.SetOptions{Log: quiet, Patience: 10 * time.Second})
}

// replay reads what a trace has read through a cache, and fails the test where that is not what the disk has.
func replay(t *testing.T, what string, r *cache.Reader, tr *trace.Trace, disk *trace.Disk, before func(i int)) trace.Tally {
	t.Helper()
	y := tr.Replay(func(p []byte, off int64) error {
		if r.TryRead(p, off) {
			return nil
		}
		return r.Read(context.Background(), p, off)
	}, disk, before)
	if err := y.Err(); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	return y
}

// hits tells how many parts of requests came from memory.
func hits(s cache.ReaderStats) share {
	all := s.Memory.Chunks + s.Disk.Chunks + s.Peers.Chunks + s.Appliance.Chunks + s.Origin.Chunks
	return share{s.Memory.Chunks, all}
}
