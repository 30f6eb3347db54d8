package trace_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"coppice/cache"
	"coppice/cache/disk"
	"coppice/image"
)

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
	noise := &made{size: info.Size() &^ (1<<20 - 1), stored: 100, seed: 3}
	p := make([]byte, 1<<20)
	for off := int64(0); off < noise.size; off += int64(len(p)) {
		if _, err := noise.ReadAt(p, off); err != nil {
			t.Error(err)
		}
		if _, err := file.WriteAt(p, off); err != nil {
			t.Error(err)
		}
	}
}
