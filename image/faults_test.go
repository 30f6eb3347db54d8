package image

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"math/rand/v2"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var faults = flag.Int("faults", 3000, "single faults of sources that are tried")

// faulty is a source one of whose answers is wrong.
type faulty struct {
	*memStore
	victim int // which answer
	wrong  func(blob []byte, p []byte, off int64) error
	reads  int
}

func (s *faulty) ReadBlob(ctx context.Context, d ocispec.Descriptor, p []byte, off int64) error {
	err := s.memStore.ReadBlob(ctx, d, p, off)
	if s.reads++; err == nil && s.reads-1 == s.victim {
		err = s.wrong(s.blobs[string(d.Digest)], p, off)
	}
	return err
}

// A source that answers wrongly once, in whatever way, gives an error and no wrong byte.
func TestSingleFaults(t *testing.T) {
	content, other := testContent(31, 6<<20), testContent(32, 6<<20)
	s, stale := newMemStore(), newMemStore()
	cut(content, 4096, 300).store(t, s, "v1", nil)
	cut(other, 4096, 300).store(t, stale, "v1", nil)
	old, err := decodeManifest(stale.tags["v1"])
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(31, 31))
	kinds := map[string]func(blob, p []byte, off int64) error{
		"flip":  func(_, p []byte, _ int64) error { p[rng.IntN(len(p))] ^= 1 << rng.IntN(8); return nil },
		"zero":  func(_, p []byte, _ int64) error { clear(p); return nil },
		"short": func(_, p []byte, _ int64) error { clear(p[rng.IntN(len(p)):]); return nil },
		"stale": func(_, p []byte, off int64) error { // from the blob of another version
			b := stale.blobs[string(old.blobs()[rng.IntN(len(old.blobs()))].Digest)]
			copy(p, b[min(off, int64(len(b))):])
			return nil
		},
		"misdirected": func(blob, p []byte, _ int64) error {
			copy(p, blob[rng.IntN(len(blob)):])
			return nil
		},
		"error": func([]byte, []byte, int64) error { return io.ErrUnexpectedEOF },
	}
	names := []string{"flip", "zero", "short", "stale", "misdirected", "error"}
	if testing.Short() {
		*faults = min(*faults, 500)
	}
	noticed, harmless, missed := 0, 0, 0
	for range *faults {
		src := &faulty{memStore: s, victim: rng.IntN(4)} // config, two pages, a chunk
		src.wrong = kinds[names[rng.IntN(len(names))]]
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
		case err == nil && src.reads <= src.victim:
			missed++ // zeros: there was no such read
		case err == nil:
			harmless++ // the fault changed nothing, or not what a zstd frame means
		case !errors.Is(err, ErrCorrupt) && !errors.Is(err, io.ErrUnexpectedEOF):
			t.Fatalf("%v", err)
		default:
			noticed++
		}
	}
	t.Logf("%d faults: %d noticed, %d without effect, %d did not come to be", *faults, noticed, harmless, missed)
	if noticed < *faults/2 {
		t.Errorf("only %d noticed", noticed)
	}
}
