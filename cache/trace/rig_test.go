package trace_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"coppice/cache"
	"coppice/cache/trace"
	"coppice/image"
	"coppice/image/faultproxy"
)

var quiet = slog.New(slog.DiscardHandler)

// Networks, as the delaying proxy makes them.
var (
	lan = faultproxy.Fault{Delay: 200 * time.Microsecond}
	wan = faultproxy.Fault{Delay: 20 * time.Millisecond, Link: 100_000_000 / 8}
)

// origin is a web server with an image of a disk, and a delaying proxy in front of it, which counts.
type origin struct {
	*faultproxy.Proxy
	sent atomic.Int64 // bytes of answers, without headers
	ref  image.Ref
}

// buildImage makes an image of a disk in a layout below the test's directory, and returns the directory above that.
func buildImage(t *testing.T, disk *made, chunkSize int) string {
	t.Helper()
	dir := t.TempDir()
	l, err := image.CreateLayout(filepath.Join(dir, "images"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := image.Build(t.Context(), l, "root:1", disk, disk.size, image.BuildOptions{ChunkSize: chunkSize}); err != nil {
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
	files := http.FileServer(http.Dir(dir))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		files.ServeHTTP(counted{w, &o.sent}, r)
	}))
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

// counted counts the bytes of an answer.
type counted struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c counted) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n.Add(int64(n))
	return n, err
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

// tally is what came of a replay. Its durations are in nanoseconds in JSON.
type tally struct {
	Sum     time.Duration `json:"sum"`     // of all reads
	Longest time.Duration `json:"longest"` // read
	Errors  int           `json:"errors"`
	Wrong   int           `json:"wrong"` // reads with other bytes than the disk has
	First   string        `json:"first"` // what went wrong first
}

// replay reads what a trace has read, one after the other, as fast as it goes, and compares it with the disk. before is called with the number of each read;
// nil is nobody.
func replay(r *cache.Reader, t *trace.Trace, disk *made, before func(i int)) (y tally) {
	ctx := context.Background()
	var got, want []byte
	for i, read := range t.Reads {
		if before != nil {
			before(i)
		}
		got, want = slices.Grow(got[:0], int(read.Len))[:read.Len], slices.Grow(want[:0], int(read.Len))[:read.Len]
		began := time.Now()
		var err error
		if !r.TryRead(got, read.Off) {
			err = r.Read(ctx, got, read.Off)
		}
		took := time.Since(began)
		y.Sum += took
		y.Longest = max(y.Longest, took)
		if err == nil {
			_, err = disk.ReadAt(want, read.Off)
		}
		switch {
		case err != nil:
			y.Errors++
		case !bytes.Equal(got, want):
			y.Wrong++
			err = fmt.Errorf("%d bytes at %d are wrong", read.Len, read.Off)
		}
		if err != nil && y.First == "" {
			y.First = err.Error()
		}
	}
	return y
}

// good fails a test where a replay was not what it should be.
func (y tally) good(t *testing.T, what string) {
	t.Helper()
	if y.Errors > 0 || y.Wrong > 0 {
		t.Errorf("%s: %d errors, %d wrong reads: %s", what, y.Errors, y.Wrong, y.First)
	}
}

// hits tells how many parts of requests came from memory.
func hits(s cache.ReaderStats) share {
	all := s.Memory.Chunks + s.Disk.Chunks + s.Peers.Chunks + s.Appliance.Chunks + s.Origin.Chunks
	return share{s.Memory.Chunks, all}
}
