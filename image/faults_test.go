package image

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var faults = flag.Int("faults", 3000, "single faults of sources that are tried")

// faulty is a source one of whose answers is wrong.
type faulty struct {
	*memStore
	victim int // which answer
	wrong  func(blob []byte, p []byte, off int64) error
	mu     sync.Mutex // guards reads, and the randomness of wrong
	reads  int
}

func (s *faulty) ReadBlob(ctx context.Context, d ocispec.Descriptor, p []byte, off int64) error {
	err := s.memStore.ReadBlob(ctx, d, p, off)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reads++; err == nil && s.reads-1 == s.victim {
		err = s.wrong(s.blobs[string(d.Digest)], p, off)
	}
	return err
}

func (s *faulty) asked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reads
}

// faultKinds are the ways in which an answer is wrong. stale has another version of the image.
func faultKinds(t testing.TB, stale *memStore, rng *rand.Rand) []func(blob, p []byte, off int64) error {
	t.Helper()
	var old *manifest
	for _, data := range stale.tags {
		var err error
		if old, err = decodeManifest(data); err != nil {
			t.Fatal(err)
		}
	}
	return []func(blob, p []byte, off int64) error{
		func(_, p []byte, _ int64) error { p[rng.IntN(len(p))] ^= 1 << rng.IntN(8); return nil },
		func(_, p []byte, _ int64) error { clear(p); return nil },
		func(_, p []byte, _ int64) error { clear(p[rng.IntN(len(p)):]); return nil },
		func(_, p []byte, off int64) error { // from the blob of another version
			b := stale.blobs[string(old.blobs()[rng.IntN(len(old.blobs()))].Digest)]
			copy(p, b[min(off, int64(len(b))):])
			return nil
		},
		func(blob, p []byte, _ int64) error { // misdirected
			copy(p, blob[rng.IntN(len(blob)):])
			return nil
		},
		func([]byte, []byte, int64) error { return io.ErrUnexpectedEOF },
	}
}

// faultCount is how many faults are tried.
func faultCount() int {
	if testing.Short() {
		return min(*faults, 500)
	}
	return *faults
}

// A source that answers wrongly once, in whatever way, gives an error and no wrong byte.
func TestSingleFaults(t *testing.T) {
	content, other := testContent(31, 6<<20), testContent(32, 6<<20)
	s, stale := newMemStore(), newMemStore()
	cut(content, 4096, 300).store(t, s, "v1", nil)
	cut(other, 4096, 300).store(t, stale, "v1", nil)
	rng := rand.New(rand.NewPCG(31, 31))
	kinds := faultKinds(t, stale, rng)
	noticed, harmless, missed := 0, 0, 0
	for range faultCount() {
		src := &faulty{memStore: s, victim: rng.IntN(4)} // config, two pages, a chunk
		src.wrong = kinds[rng.IntN(len(kinds))]
		off := rng.Int64N(int64(len(content)) - 4096)
		p := make([]byte, 1+rng.IntN(4096))
		im, err := Open(context.Background(), src, "v1")
		if err == nil {
			err = im.Read(context.Background(), p, off)
			im.Close()
		}
		switch {
		case err == nil && !bytes.Equal(p, content[off:off+int64(len(p))]):
			t.Fatalf("wrong bytes at %d", off)
		case err == nil && src.asked() <= src.victim:
			missed++ // zeros: there was no such read
		case err == nil:
			harmless++ // the fault changed nothing, or not what a zstd frame means
		case !errors.Is(err, ErrCorrupt) && !errors.Is(err, io.ErrUnexpectedEOF):
			t.Fatalf("%v", err)
		default:
			noticed++
		}
	}
	t.Logf("%d faults: %d noticed, %d without effect, %d did not come to be", faultCount(), noticed, harmless, missed)
	if noticed < faultCount()/2 {
		t.Errorf("only %d noticed", noticed)
	}
}

// A replica that answers wrongly once, in whatever way, is found out, and what the set gives is right all the same.
func TestSingleFaultsOfAReplica(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, "/bad", "/good")
		b.put(t, "/stale", testContent(32, 1<<20), 20)
		rng := newRand()
		kinds := faultKinds(t, b.stores["/stale"], rng)
		noticed, without := 0, 0
		for range faultCount() {
			src := &faulty{memStore: b.stores["/bad"], victim: rng.IntN(4), wrong: kinds[rng.IntN(len(kinds))]}
			b.replace("/bad", src)
			s, err := b.tryOpen(t, Digest{}, "/bad", "/good")
			if err != nil {
				t.Fatal(err)
			}
			for range 20 {
				if b.read(t, s, rng); src.asked() > src.victim {
					break
				}
			}
			synctest.Wait() // an answer that came too late to be of use is looked at too
			if st := status(t, s, "/bad"); st.Failures > 0 || st.State != StateReady {
				noticed++
			} else {
				without++
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("%d faults: %d noticed, %d without effect or not come to be; no wrong byte and no error", faultCount(), noticed, without)
		if noticed < faultCount()/2 {
			t.Errorf("only %d noticed", noticed)
		}
	})
}
