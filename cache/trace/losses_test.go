package trace_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"coppice/cache"
	"coppice/cache/disk"
	"coppice/cache/peer"
	"coppice/cache/trace"
	"coppice/image"
	"coppice/image/faultproxy"
)

// serveNode serves a node's cache without TLS through a proxy, so that it can be made silent.
func serveNode(t *testing.T, n *node) *faultproxy.Proxy {
	t.Helper()
	s, err := peer.Listen("127.0.0.1:0", peer.NewHandler(n, peer.HandlerOptions{Log: quiet}), peer.ServerOptions{Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	p, err := faultproxy.Start("127.0.0.1:0", "http://"+s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// dial returns a client of nodes that are served without TLS.
func dial(t *testing.T, all bool, urls ...string) *peer.Client {
	t.Helper()
	c, err := peer.New(urls, peer.Options{Insecure: true, All: all, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// spoilt is a fault of the server of a tier.
func spoilt(p *faultproxy.Proxy, f faultproxy.Fault) func() { return func() { p.Set(f) } }

// lossKinds are the tiers that are lost, and how.
var lossKinds = []loss{
	{"cache file, cut to nothing", func(t *testing.T, f *figures, warm *node) (cache.Options, func()) {
		path, d := filledDisk(t, f)
		return cache.Options{Disk: d}, func() {
			if err := os.Truncate(path, 0); err != nil {
				t.Error(err)
			}
		}
	}},
	{"cache file, overwritten", func(t *testing.T, f *figures, warm *node) (cache.Options, func()) {
		path, d := filledDisk(t, f)
		return cache.Options{Disk: d}, func() { scribble(t, path) }
	}},
	{"one of two peers, gone", func(t *testing.T, f *figures, warm *node) (cache.Options, func()) {
		a, b := serveNode(t, warm), serveNode(t, warm)
		return cache.Options{Peers: dial(t, false, a.URL(), b.URL())}, spoilt(a, faultproxy.Fault{Reset: true})
	}},
	{"the only peer, gone", func(t *testing.T, f *figures, warm *node) (cache.Options, func()) {
		p := serveNode(t, warm)
		return cache.Options{Peers: dial(t, false, p.URL())}, spoilt(p, faultproxy.Fault{Reset: true})
	}},
	{"the only peer, silent", func(t *testing.T, f *figures, warm *node) (cache.Options, func()) {
		p := serveNode(t, warm)
		return cache.Options{Peers: dial(t, false, p.URL())}, spoilt(p, faultproxy.Fault{Blackhole: true})
	}},
	{"the only peer, lying", func(t *testing.T, f *figures, warm *node) (cache.Options, func()) {
		p := serveNode(t, warm)
		return cache.Options{Peers: dial(t, false, p.URL())}, spoilt(p, faultproxy.Fault{Flip: true})
	}},
	{"appliance, gone", func(t *testing.T, f *figures, warm *node) (cache.Options, func()) {
		p := serveNode(t, warm)
		return cache.Options{Appliance: dial(t, true, p.URL())}, spoilt(p, faultproxy.Fault{Reset: true})
	}},
	{"appliance, silent", func(t *testing.T, f *figures, warm *node) (cache.Options, func()) {
		p := serveNode(t, warm)
		return cache.Options{Appliance: dial(t, true, p.URL())}, spoilt(p, faultproxy.Fault{Blackhole: true})
	}},
}

// filledDisk returns a disk tier that has every chunk of the boot.
func filledDisk(t *testing.T, f *figures) (string, *disk.Disk) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cache")
	chunks := f.boot().Chunks(chunk)
	d, err := disk.Open(path, disk.Options{SizeBytes: max(disk.MinBytes, int64(len(chunks))*chunk*3/2), QueueBytes: int64(len(chunks)+1) * chunk, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() }) // its file is gone
	n := nearly(f.disk, chunk)
	p, digests := make([]byte, chunk), make([]image.Digest, 1)
	for _, i := range chunks {
		err := errors.Join(n.Digests(context.Background(), i, digests), n.Read(context.Background(), p, i*chunk))
		if err != nil {
			t.Fatal(err)
		}
		d.Put(cache.Chunk{Key: digests[0], Index: i, Len: chunk}, p)
	}
	return path, d
}

// scribble overwrites a file with what is no cache.
func scribble(t *testing.T, path string) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Error(err)
		return
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		t.Error(err)
		return
	}
	noise := &trace.Disk{Bytes: info.Size() &^ (1<<20 - 1), Stored: 100, Seed: 3}
	p := make([]byte, 1<<20)
	for off := int64(0); off < noise.Bytes; off += int64(len(p)) {
		if _, err := noise.ReadAt(p, off); err != nil {
			t.Error(err)
		}
		if _, err := file.WriteAt(p, off); err != nil {
			t.Error(err)
		}
	}
}
