package disk

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"coppice/cache"
)

// BenchmarkGet reads chunks of 64 KiB from a file, with nothing beside it and while as much is written as the cache takes.
func BenchmarkGet(b *testing.B) {
	const size, length = 256 << 20, 64 << 10
	const chunks = size / length / 2
	d, err := Open(filepath.Join(b.TempDir(), "cache"), Options{SizeBytes: size, Log: quiet().Log, QueueBytes: size})
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	known := make([]cache.Chunk, chunks)
	for i := range known {
		c, content := chunkOf(i, length)
		known[i] = c
		d.Put(c, content)
	}
	for d.Stats().QueuedBytes > 0 {
		time.Sleep(time.Millisecond)
	}
	for _, writing := range []bool{false, true} {
		b.Run(map[bool]string{false: "alone", true: "while-writing"}[writing], func(b *testing.B) {
			stop, done := make(chan struct{}), make(chan struct{})
			before := d.Stats().WrittenBytes
			go func() {
				defer close(done)
				if writing {
					putUntil(stop, d, length)
				}
			}()
			benchmarkGets(b, d, known, length)
			close(stop)
			<-done
			b.ReportMetric(float64(d.Stats().WrittenBytes-before)/b.Elapsed().Seconds()/1e6, "MB-written/s")
		})
	}
}

// putUntil keeps the queue filled with chunks that the cache does not have.
func putUntil(stop chan struct{}, d *Disk, length int) {
	content := make([]byte, length)
	for n := uint64(0); ; n++ {
		select {
		case <-stop:
			return
		default:
		}
		var c cache.Chunk
		binary.LittleEndian.PutUint64(c.Key[:], n*0x9e3779b97f4a7c15)
		binary.LittleEndian.PutUint64(c.Key[8:], n+1)
		d.Put(c, content)
		if d.Stats().QueuedBytes > 4<<20 {
			time.Sleep(time.Millisecond)
		}
	}
}

func benchmarkGets(b *testing.B, d *Disk, known []cache.Chunk, length int) {
	rng := rand.New(rand.NewPCG(1, 1))
	p := make([]byte, length)
	var took []time.Duration
	for b.Loop() {
		c := known[rng.IntN(len(known))]
		began := time.Now()
		if err := d.Get(context.Background(), c, p); err == nil {
			took = append(took, time.Since(began))
		}
	}
	if len(took) == 0 {
		b.Fatal("nothing was found")
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
	b.ReportMetric(float64(len(took))/float64(b.N)*100, "%hits")
}

// BenchmarkOpen opens a full cache of 100 GiB of chunks of 64 KiB, in a sparse file.
func BenchmarkOpen(b *testing.B) {
	path := filepath.Join(b.TempDir(), "cache")
	const size = 100 << 30
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		b.Fatal(err)
	}
	f.Close()
	o := Options{Log: quiet().Log, ScrubBytesPerSecond: -1}
	d, err := Open(path, o)
	if err != nil {
		b.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	const most = size / (64 << 10) * 99 / 100
	for d.table.used < most {
		d.table.insert(d.table.take(16), diskEntry{rng.Uint32() & (d.g.Buckets - 1), rng.Uint32(), 1, metaUsed | 65535})
	}
	for b.Loop() {
		if err := d.Close(); err != nil {
			b.Fatal(err)
		}
		if d, err = Open(path, o); err != nil {
			b.Fatal(err)
		}
		if d.table.used != most {
			b.Fatalf("%d entries, not %d", d.table.used, most)
		}
	}
	b.ReportMetric(float64(d.Stats().MemoryBytes)/1e6, "MB-memory")
	d.Close()
}
