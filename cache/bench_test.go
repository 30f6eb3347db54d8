package cache

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
)

// BenchmarkHit is a read from memory as the thread of a queue does it: 64 bytes, which is hardly more than to find, pin and count, and 4 KiB. bench/cachepeers
// has the same beside other caches.
func BenchmarkHit(b *testing.B) {
	const chunks, chunk = 1024, 64 << 10
	for _, n := range []int{64, 4 << 10} {
		b.Run(fmt.Sprintf("copy=%d", n), func(b *testing.B) {
			c, err := New(Options{MemoryBytes: 2 * chunks * chunk})
			if err != nil {
				b.Fatal(err)
			}
			r := c.Open(&fakeOrigin{seed: 1, size: chunks * chunk, chunk: chunk})
			b.Cleanup(func() {
				r.Close()
				if err := c.Close(); err != nil {
					b.Error(err)
				}
			})
			v := r.Reader()
			if err := v.Read(context.Background(), make([]byte, chunks*chunk), 0); err != nil {
				b.Fatal(err)
			}
			rng := rand.New(rand.NewPCG(1, 1))
			places := make([]int64, 1<<12)
			for i := range places {
				places[i] = rng.Int64N(chunks)*chunk + rng.Int64N(chunk/4096)*4096
			}
			p := make([]byte, n)
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				if !v.TryRead(p, places[i%len(places)]) {
					b.Fatal("no hit")
				}
			}
		})
	}
}
