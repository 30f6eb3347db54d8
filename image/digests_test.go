package image

import (
	"context"
	"crypto/sha256"
	"testing"
)

// Digests come in ranges that may begin anywhere and span pages of the table, one of which is all zeros and missing.
func TestDigestsOfRanges(t *testing.T) {
	content := testContent(5, 3*1024*4096+77)
	clear(content[1024*4096 : 2048*4096])
	s := newMemStore()
	cut(content, 4096, 500).store(t, s, "v1", nil)
	im := openTest(t, s, "v1")
	want := make([]Digest, im.Chunks())
	zeros := 0
	for i := range want {
		p := content[i*4096 : min((i+1)*4096, len(content))]
		if want[i] = sha256.Sum256(p); want[i] == im.zeros[0] || want[i] == im.zeros[1] {
			want[i] = Digest{}
			zeros++
		}
	}
	if zeros < 1024 {
		t.Fatalf("%d chunks are zeros", zeros)
	}
	for _, r := range []span{{0, 1}, {0, im.Chunks()}, {1000, 2100}, {1023, 1025}, {1100, 1200}, {2047, 3073}, {3072, 3073}, {5, 5}} {
		got, err := im.digests(context.Background(), r.from, int(r.to-r.from))
		if err != nil {
			t.Fatal(err)
		}
		for i, d := range got {
			if d != want[int(r.from)+i] {
				t.Fatalf("chunks %v: digest of chunk %d is %s", r, int(r.from)+i, d)
			}
		}
	}
}

func TestDigestsOfASet(t *testing.T) {
	b := newBench(t, "/a", "/b")
	s := b.open(t, "/a", "/b")
	got := make([]Digest, s.Chunks()-3)
	if err := s.Digests(context.Background(), 3, got); err != nil {
		t.Fatal(err)
	}
	for i, d := range got {
		if want, _, err := s.Chunk(context.Background(), int64(3+i)); err != nil || d != want {
			t.Fatalf("chunk %d: %s, not %s, %v", 3+i, d, want, err)
		}
	}
	for _, first := range []int64{-1, 4, s.Chunks(), 1 << 62} {
		if err := s.Digests(context.Background(), first, got); err == nil {
			t.Errorf("digests of %d chunks from %d on", len(got), first)
		}
	}
}
