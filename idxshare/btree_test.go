package idxshare

import (
	"context"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
)

// The largest id up to any is what SQLite says it is.
func TestUpTo(t *testing.T) {
	rng := rand.New(rand.NewPCG(23, 0))
	path := filepath.Join(t.TempDir(), "index")
	w, err := Create(path, Header{Source: "x", Size: 1 << 40})
	mustDo(t, err)
	mustDo(t, w.AddVolume(Volume{ID: 0, Length: 1 << 40, BlockSize: 4096, Mapped: true}))
	var starts []int64
	for at := int64(70); len(starts) < 20000; at += 1 + rng.Int64N(3)*rng.Int64N(9000) {
		starts = append(starts, at)
		mustDo(t, w.AddExtent(Extent{Inode: 12, Physical: at, Length: 1}))
	}
	mustDo(t, w.Finish())
	x, err := Open(path)
	mustDo(t, err)
	defer x.Close()
	last := starts[len(starts)-1]
	mustDo(t, x.use(context.Background(), func(c *reader) error {
		for _, id := range append([]int64{-1, 0, 69, 70, 71, last - 1, last, last + 1, 1 << 62}, starts[:2000]...) {
			for _, id := range []int64{id, id + rng.Int64N(9000)} {
				i, exact := slices.BinarySearch(starts, id)
				if !exact {
					i--
				}
				got := int64(-1)
				mustDo(t, c.trees.upTo("extent", id, func(row []field) error {
					got = row[0].n
					return nil
				}))
				if i < 0 && got != -1 || i >= 0 && got != starts[i] {
					t.Fatalf("up to %d it is %d", id, got)
				}
			}
		}
		return nil
	}))
}
