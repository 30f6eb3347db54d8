package cachepeers

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/maypok86/otter/v2"
	"golang.org/x/sys/unix"

	"coppice/cache"
	"coppice/image"
)

const (
	chunkBytes = 64 << 10
	chunks     = 1024
)

// disk is an image whose chunks all have the same bytes under different digests, which nobody compares.
type disk struct{}

func (disk) Size() int64               { return chunks * chunkBytes }
func (disk) ChunkSize() int            { return chunkBytes }
func (disk) ContentRoot() image.Digest { return image.Digest{1} }

func (disk) Digests(_ context.Context, first int64, d []image.Digest) error {
	for i := range d {
		d[i] = digest(first + int64(i))
	}
	return nil
}

func (disk) Read(_ context.Context, p []byte, _ int64) error {
	for i := range p {
		p[i] = 1
	}
	return nil
}

func digest(index int64) (d image.Digest) {
	rng := rand.NewPCG(1, uint64(index))
	for i := 0; i < len(d); i += 8 {
		binary.LittleEndian.PutUint64(d[i:], rng.Uint64())
	}
	return d
}

// reading reads len(p) bytes from byte off of a chunk on, which is cached.
type reading func(p []byte, chunk int64, off int) bool

func ours(b *testing.B) reading {
	c, err := cache.New(cache.Options{MemoryBytes: 2 * chunks * chunkBytes})
	if err != nil {
		b.Fatal(err)
	}
	r := c.Open(disk{})
	b.Cleanup(func() {
		r.Close()
		if err := c.Close(); err != nil {
			b.Error(err)
		}
	})
	v := r.Reader()
	if err := v.Read(context.Background(), make([]byte, chunks*chunkBytes), 0); err != nil {
		b.Fatal(err)
	}
	return func(p []byte, chunk int64, off int) bool { return v.TryRead(p, chunk*chunkBytes+int64(off)) }
}

// digests and contents are what the others are filled with.
func digests() (all [chunks]image.Digest) {
	for i := range all {
		all[i] = digest(int64(i))
	}
	return all
}

func content() []byte {
	p := make([]byte, chunkBytes)
	_ = disk{}.Read(context.Background(), p, 0)
	return p
}

func golangLRU(b *testing.B) reading {
	l, err := simplelru.NewLRU[image.Digest, []byte](2*chunks, nil)
	if err != nil {
		b.Fatal(err)
	}
	all := digests()
	for _, d := range all {
		l.Add(d, content())
	}
	var mu sync.Mutex
	return func(p []byte, chunk int64, off int) bool {
		mu.Lock()
		found, ok := l.Get(all[chunk])
		mu.Unlock()
		return ok && copy(p, found[off:]) == len(p)
	}
}

func otterCache(b *testing.B) reading {
	o, err := otter.New(&otter.Options[image.Digest, []byte]{MaximumSize: 2 * chunks})
	if err != nil {
		b.Fatal(err)
	}
	all := digests()
	for _, d := range all {
		o.Set(d, content())
	}
	return func(p []byte, chunk int64, off int) bool {
		found, ok := o.GetIfPresent(all[chunk])
		return ok && copy(p, found[off:]) == len(p)
	}
}

// cpuTime is what this process has taken of all CPUs. Unlike the clock, it does not count what others on the machine take.
func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkHit reads chunks at random that are all cached: 4 KiB at any place of them, or 64 bytes at the same place each time, so that hardly more is
// measured than how they are found. Run it with -cpu 1,2: a cache scales where two threads take as much CPU time for a hit as one.
func BenchmarkHit(b *testing.B) {
	caches := []struct {
		name string
		make func(*testing.B) reading
	}{{"coppice", ours}, {"golang-lru+mutex", golangLRU}, {"otter", otterCache}}
	for _, n := range []int{64, 4 << 10} {
		for _, c := range caches {
			b.Run(fmt.Sprintf("copy=%d/%s", n, c.name), func(b *testing.B) {
				read := c.make(b)
				b.ReportAllocs()
				b.ResetTimer()
				began := cpuTime(b)
				var seed atomic.Uint64
				b.RunParallel(func(pb *testing.PB) {
					rng := rand.New(rand.NewPCG(seed.Add(1), 1))
					p := make([]byte, n)
					for pb.Next() {
						at := rng.Uint32()
						chunk, off := int64(at%chunks), int(at>>16)/n*n
						if n < 4<<10 {
							off = int(chunk) * n
						}
						if !read(p, chunk, off) || p[0] != 1 {
							b.Error("no hit")
							return
						}
					}
				})
				b.ReportMetric(float64(cpuTime(b)-began)/float64(b.N), "cpu-ns/op")
			})
		}
	}
}
