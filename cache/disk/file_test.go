package disk

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coppice/cache"
	"coppice/image"
	"coppice/union"
)

// openPath opens a cache that is not scrubbed: what its own reads come upon is what the tests count.
func openPath(t *testing.T, path string, size int64) *Disk {
	t.Helper()
	o := Options{SizeBytes: size, Log: quiet().Log, ReadTimeout: time.Hour, ScrubBytesPerSecond: -1, patient: true, retry: 10 * time.Millisecond}
	d, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func closeDisk(t *testing.T, d *Disk) {
	t.Helper()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Error("closed twice:", err)
	}
}

func putAll(d *Disk, n int) {
	for i := range n {
		d.Put(testChunk(i))
	}
}

func hits(t *testing.T, d *Disk, n int) (found int) {
	t.Helper()
	for i := range n {
		if has(t, d, i) {
			found++
		}
	}
	return found
}

// A file keeps what it has through a restart. Its space is taken when it is made, and the page cache holds none of it.
func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache")
	d := openPath(t, path, MinBytes)
	putAll(d, 50)
	closeDisk(t, d)
	st, err := os.Stat(path)
	if err != nil || st.Size() != MinBytes || st.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", st, err)
	}
	d = openPath(t, path, MinBytes)
	if n := hits(t, d, 50); n != 50 {
		t.Errorf("%d of 50 chunks are there after a restart", n)
	}
	if s := d.Stats(); s.Hits != 50 || s.BadSlots != 0 || s.Used != 50 || s.State != StateOn {
		t.Errorf("%+v", s)
	}
	probe, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Log("no O_DIRECT here:", err)
		return
	}
	defer probe.Close()
	flags, err := unix.FcntlInt(d.dev.Load().device.(*file).Fd(), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_DIRECT == 0 {
		t.Errorf("flags %#x: %v", flags, err)
	}
}

// A cache of another size is made anew, and a file that is too long is cut.
func TestResize(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache")
	for _, size := range []int64{MinBytes, 2 * MinBytes, MinBytes + 12345} {
		d := openPath(t, path, size)
		if hits(t, d, 5) != 0 {
			t.Error("chunks of a cache of another size")
		}
		putAll(d, 5)
		closeDisk(t, d)
		if st, err := os.Stat(path); err != nil || st.Size() != size {
			t.Errorf("%d bytes, asked for %d: %v", st.Size(), size, err)
		}
	}
	d := openPath(t, path, 0)
	if n := hits(t, d, 5); n != 5 {
		t.Errorf("%d of 5 chunks", n)
	}
}

// A region is used like a file, and nothing beside it changes.
func TestRegion(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store")
	const off, length = 8192, MinBytes
	before := make([]byte, off+length+8192)
	for i := range before {
		before[i] = 0xa5
	}
	if err := os.WriteFile(path, before, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := Region{Name: "store", File: f, Off: off, Length: length}
	for try := range 2 {
		d, err := OpenRegion(r, Options{Log: quiet().Log, ReadTimeout: time.Hour, patient: true})
		if err != nil {
			t.Fatal(err)
		}
		if n := hits(t, d, 50); n != 50*try {
			t.Errorf("%d of 50 chunks", n)
		}
		putAll(d, 50)
		closeDisk(t, d)
	}
	after, err := os.ReadFile(path)
	if err != nil || len(after) != len(before) {
		t.Fatalf("%d bytes: %v", len(after), err)
	}
	if string(after[:off]) != string(before[:off]) || string(after[off+length:]) != string(before[off+length:]) {
		t.Error("something beside the region was changed")
	}
	for _, at := range []int64{-1, length - 4095, length, 1 << 62} {
		if _, err := r.WriteAt(make([]byte, 4096), at); err == nil {
			t.Errorf("written at byte %d of a region of %d", at, length)
		}
	}
	r.Off = 100
	if _, err := OpenRegion(r, Options{}); err == nil {
		t.Error("a region at byte 100 was taken")
	}
}

// The smallest region that a leaf store reserves is enough, and the store and the cache do not harm each other.
func TestRegionOfAStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leaf")
	if _, err := union.Format(path, union.FormatOptions{SizeBytes: union.MinStoreBytes + union.MinCacheBytes, CacheBytes: union.MinCacheBytes}); err != nil {
		t.Fatal(err)
	}
	for try := range 2 {
		st, err := union.OpenStore(path, union.StoreOptions{NoLease: true})
		if err != nil {
			t.Fatal(err)
		}
		f, off, length := st.CacheRegion()
		d, err := OpenRegion(Region{Name: path, File: f, Off: off, Length: length}, Options{Log: quiet().Log, ReadTimeout: time.Hour, patient: true})
		if err != nil {
			t.Fatal(err)
		}
		if n := hits(t, d, 50); n != 50*try {
			t.Errorf("%d of 50 chunks", n)
		}
		putAll(d, 50)
		closeDisk(t, d)
		if err := st.Close(); err != nil {
			t.Fatal(err)
		}
		if rep, err := union.Check(path, union.CheckOptions{}); err != nil || len(rep.Problems) > 0 {
			t.Errorf("%v, %v", rep, err)
		}
	}
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

// A file that is cut away below the cache turns it off; when it is there again, at its path, it goes on.
func TestFileDisappears(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache")
	d := openPath(t, path, MinBytes)
	putAll(d, 50)
	closeDisk(t, d)
	copied, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	d = openPath(t, path, MinBytes)
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	if n := hits(t, d, 50); n != 0 {
		t.Errorf("%d chunks of an empty file", n)
	}
	expect(t, d, StateOff)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".new", copied, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the cache works again", func() bool { return d.Stats().State == StateOn })
	if n := hits(t, d, 50); n != 47 {
		t.Errorf("%d of 47 chunks that were not given up", n)
	}
	if _, err := Open(path, Options{}); !errors.Is(err, ErrInUse) {
		t.Errorf("the file that was opened again is not locked: %v", err)
	}
}

// Without room for the file there is no cache, and no file is left behind.
func TestNoRoomForTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache")
	if _, err := Open(path, Options{SizeBytes: 1 << 50}); err == nil {
		t.Fatal("a file of 1 PiB was made")
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// Everything at once, for the race detector: what is found is right.
func TestConcurrentUse(t *testing.T) {
	d := openPath(t, filepath.Join(t.TempDir(), "cache"), MinBytes)
	var all sync.WaitGroup
	for worker := range 4 {
		all.Go(func() {
			for i := range 300 {
				n := (i*7 + worker*13) % 60
				c, content := testChunk(n)
				switch i % 10 {
				case 0:
					d.Reject(c)
				case 1, 2, 3:
					d.Put(c, content)
				case 4:
					d.Stats()
				case 5:
					if i%100 == 5 {
						d.Drop()
					}
				default:
					has(t, d, n)
				}
			}
		})
	}
	all.Go(func() { d.scrubPass(context.Background(), func(int) bool { return true }) })
	all.Wait()
	closeDisk(t, d)
	checkTable(t, d.table)
}

// chunks is the origin of an image of whole chunks of 16 KiB.
type chunks int

func (o chunks) content(n int64) (cache.Chunk, []byte) { return chunkOf(int(n), 16<<10) }

func (o chunks) Size() int64               { return int64(o) << 14 }
func (o chunks) ChunkSize() int            { return 16 << 10 }
func (o chunks) ContentRoot() image.Digest { return image.Digest{1} }

func (o chunks) Digests(_ context.Context, first int64, d []image.Digest) error {
	for i := range d {
		c, _ := o.content(first + int64(i))
		d[i] = c.Key
	}
	return nil
}

func (o chunks) Read(_ context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		_, content := o.content(off >> 14)
		n := copy(p, content[off&(1<<14-1):])
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// A region is taken from the cache, and its file closed, while images are read through it, and no read fails or gets something else.
func TestRegionIsLostUnderReads(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store")
	if err := os.WriteFile(path, make([]byte, MinBytes), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := cache.New(cache.Options{MemoryBytes: cache.MinMemory, DiskTime: time.Hour, Log: quiet().Log})
	if err != nil {
		t.Fatal(err)
	}
	const o = chunks(64)
	root := c.Open(o)
	v := root.Reader()
	done := make(chan struct{})
	var readers sync.WaitGroup
	for i := range int64(4) {
		readers.Go(func() {
			p := make([]byte, o.ChunkSize())
			for n := i; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				_, want := o.content(n % int64(o))
				if err := v.Read(t.Context(), p, n%int64(o)<<14); err != nil || !bytes.Equal(p, want) {
					t.Errorf("chunk %d: other content, or %v", n%int64(o), err)
				}
				if err := c.Drop(false); err != nil {
					t.Error(err)
				}
			}
		})
	}
	hits := uint64(0)
	for range 5 {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		d, err := OpenRegion(Region{Name: "store", File: f, Length: MinBytes}, Options{Log: quiet().Log, ReadTimeout: time.Hour, patient: true})
		if err != nil {
			t.Fatal(err)
		}
		c.SetDisk(d)
		eventually(t, "the disk gives a chunk", func() bool { return c.Stats().Disk.Hits > hits })
		hits = c.Stats().Disk.Hits
		c.SetDisk(nil)
		if err := errors.Join(d.Close(), f.Close()); err != nil {
			t.Error(err)
		}
	}
	close(done)
	readers.Wait()
	root.Close()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}
