package cache

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	lru "github.com/hashicorp/golang-lru/v2"

	"coppice/image"
)

// Policies are compared by traces over an image with small chunks, as only the number of chunks matters. A request is a range of chunks and how often each is
// touched, since a guest reads a chunk in pieces.
const (
	traceChunk = 4 * kib
	traceRoot  = 32 << 10 // chunks of the image: 2 GiB, were they 64 KiB
	traceCache = 14       // segments: 3,584 chunks, 11 % of the image
)

type request struct {
	index   int64
	chunks  int
	touches int
}

// bootTrace is made up to look like what a boot reads: files, most of them small and a few large, somewhere on the disk, each once, in requests that grow as
// readahead does; and between them metadata, some blocks of which are read again and again. set is about how many chunks it touches.
func bootTrace(rng *rand.Rand, set int) (all []request) {
	metadata := make([]int64, set/16)
	for i := range metadata {
		metadata[i] = rng.Int64N(traceRoot)
	}
	zipf := rand.NewZipf(rng, 1.2, 4, uint64(len(metadata)-1))
	for seen := len(metadata); seen < set; {
		length := 1 + rng.IntN(6)
		if rng.IntN(20) == 0 {
			length = 20 + rng.IntN(60)
		}
		at := rng.Int64N(traceRoot - int64(length))
		for n := 1; length > 0; n = min(2*n, 2) {
			n = min(n, length)
			all = append(all, request{at, n, 1 + rng.IntN(4)})
			if rng.IntN(3) == 0 {
				all = append(all, request{metadata[zipf.Uint64()], 1, 1})
			}
			at, length, seen = at+int64(n), length-n, seen+n
		}
	}
	return all
}

// scanTrace reads so many chunks in order, in requests of two chunks, or each in pieces.
func scanTrace(from int64, chunks, touches int) (all []request) {
	for i := 0; i < chunks; i += 2 {
		all = append(all, request{(from + int64(i)) % (traceRoot - 1), 2, touches})
	}
	return all
}

// player plays a trace against a cache, and returns the share of chunks that were there when they were first touched by a request.
type player func([]request) float64

// keysOrigin is an image whose chunks say their number, and whose digests were never computed.
type keysOrigin struct{ fakeOrigin }

func (o *keysOrigin) Digests(_ context.Context, first int64, d []image.Digest) error {
	for i := range d {
		d[i] = o.key(first + int64(i))
	}
	return nil
}

func (o *keysOrigin) key(index int64) (d image.Digest) {
	rng := rand.NewPCG(o.seed+1, uint64(index))
	for i := 0; i < len(d); i += 8 {
		binary.LittleEndian.PutUint64(d[i:], rng.Uint64())
	}
	return d
}

func (o *keysOrigin) Read(ctx context.Context, p []byte, off int64) error {
	o.fill(p, off)
	return ctx.Err()
}

// fill writes where the bytes are into each eighth of them.
func (o *keysOrigin) fill(p []byte, off int64) {
	for i := 0; i+8 <= len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], o.word(off+int64(i)))
	}
}

func (o *keysOrigin) word(off int64) uint64 { return uint64(off)*0x9e3779b97f4a7c15 + o.seed }

// playOurs plays through a Reader.
func playOurs(t testing.TB, p Policy) player {
	c := newCache(t, Options{Policy: p, MemoryBytes: 2 * traceCache << 20})
	c.digests.setMost(traceRoot / pageChunks) // small chunks have many digests
	o := &keysOrigin{fakeOrigin{size: traceRoot * traceChunk, chunk: traceChunk}}
	r := open(t, c, o)
	for index := int64(0); index < r.chunks; index += pageChunks {
		if _, err := r.digestOf(context.Background(), index); err != nil {
			t.Fatal(err)
		}
	}
	class := &class{slotBytes: traceChunk} // as many chunks as the others have
	if err := c.memory.setLimit(traceCache*class.segmentCost() + 2*indexBytes(bucketsFor(traceSlots))); err != nil {
		t.Fatal(err)
	}
	v := r.Reader()
	buf := make([]byte, 2*traceChunk)
	return func(all []request) float64 {
		hits, total := 0, 0
		for _, r := range all {
			for touch := range r.touches {
				if touch == 0 {
					total += r.chunks
					for i := range int64(r.chunks) {
						if v.TryRead(buf[:1], (r.index+i)*traceChunk) {
							hits++
						}
					}
				}
				p, off := buf[:r.chunks*traceChunk], r.index*traceChunk
				if v.TryRead(p, off) {
					continue
				}
				if err := v.Read(context.Background(), p, off); err != nil {
					t.Fatal(err)
				}
			}
		}
		return float64(hits) / float64(total)
	}
}

// playKeys plays against an index of keys alone, of a library.
func playKeys(get func(int64) bool, add func(int64)) player {
	return func(all []request) float64 {
		hits, total := 0, 0
		for _, r := range all {
			for touch := range r.touches {
				for i := range int64(r.chunks) {
					there := get(r.index + i)
					if !there {
						add(r.index + i)
					}
					if touch == 0 {
						total++
						if there {
							hits++
						}
					}
				}
			}
		}
		return float64(hits) / float64(total)
	}
}

// players are ours and those of golang-lru.
func players(t testing.TB) map[string]func() player {
	all := map[string]func() player{}
	for _, p := range Policies() {
		all[string(p)] = func() player { return playOurs(t, p) }
	}
	all["golang-lru LRU"] = func() player {
		l, err := lru.New[int64, struct{}](traceSlots)
		if err != nil {
			t.Fatal(err)
		}
		return playKeys(func(k int64) bool { _, ok := l.Get(k); return ok }, func(k int64) { l.Add(k, struct{}{}) })
	}
	all["golang-lru 2Q"] = func() player {
		l, err := lru.New2Q[int64, struct{}](traceSlots)
		if err != nil {
			t.Fatal(err)
		}
		return playKeys(func(k int64) bool { _, ok := l.Get(k); return ok }, func(k int64) { l.Add(k, struct{}{}) })
	}
	return all
}

// traceSlots is how many chunks the caches of players hold.
const traceSlots = traceCache * segmentBytes / traceChunk

// fileScan reads all files of the image once, in no order: sequential reads that are too short to be known as a scan.
func fileScan(rng *rand.Rand, chunks int) (all []request) {
	for seen := 0; seen < chunks; {
		length := 2 * (1 + rng.IntN(20))
		all = append(all, scanTrace(rng.Int64N(traceRoot-40), length, 1)...)
		seen += length
	}
	return all
}

// A full scan of four times the cache leaves what a boot read, even if that was read just once, and in pieces or not.
func TestScanLeavesABoot(t *testing.T) {
	for _, touches := range []int{1, 4} {
		boot := bootTrace(rand.New(rand.NewPCG(3, 4)), traceSlots*3/4)
		left := map[Policy]float64{}
		for _, p := range []Policy{S3FIFO, LRU} {
			play := playOurs(t, p)
			play(boot)
			play(scanTrace(1000, 4*traceSlots, touches))
			left[p] = play(boot)
		}
		t.Logf("hits of a boot after a scan in %d pieces a chunk: %.1f %%, with LRU %.1f %%", touches, 100*left[S3FIFO], 100*left[LRU])
		if left[S3FIFO] < 0.95 {
			t.Errorf("%.1f %% are fewer than 95 %%", 100*left[S3FIFO])
		}
		if left[LRU] > 0.5 {
			t.Errorf("LRU keeps %.1f %%: the scan is none", 100*left[LRU])
		}
	}
}

// BenchmarkPolicies prints the share of hits, in percent, that a boot has the second time, and after a scan of four times the cache.
func BenchmarkPolicies(b *testing.B) {
	rng := rand.New(rand.NewPCG(3, 4))
	files := fileScan(rng, 4*traceSlots)
	for _, percent := range []int{50, 75, 90} {
		boot := bootTrace(rng, traceSlots*percent/100)
		for _, name := range []string{"s3fifo", "clock", "lru", "golang-lru LRU", "golang-lru 2Q"} {
			b.Run(fmt.Sprintf("boot=%d%%/%s", percent, name), func(b *testing.B) {
				for b.Loop() {
					play := players(b)[name]()
					play(boot)
					b.ReportMetric(100*play(boot), "%second")
					play(scanTrace(1000, 4*traceSlots, 1))
					b.ReportMetric(100*play(boot), "%twice+scan")
					play = players(b)[name]()
					play(boot)
					play(scanTrace(1000, 4*traceSlots, 4))
					b.ReportMetric(100*play(boot), "%once+scan")
					play = players(b)[name]()
					play(boot)
					play(boot)
					play(files)
					b.ReportMetric(100*play(boot), "%twice+files")
				}
			})
		}
	}
}
