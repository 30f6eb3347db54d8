package idxshare

import (
	"bytes"
	"errors"
	"iter"
	"math/rand/v2"
	"testing"
)

func seqOf(prints []Print) iter.Seq2[Print, error] {
	return func(yield func(Print, error) bool) {
		for _, p := range prints {
			if !yield(p, nil) {
				return
			}
		}
	}
}

// Blocks that came, went or are others, and no others, have changed since; and what was kept is read again as it was.
func TestChangedSince(t *testing.T) {
	const blocks, size = 400, 400*printsBlock - 512
	rng := rand.New(rand.NewPCG(1, 2))
	var kept iter.Seq2[Print, error]
	before := map[uint64]uint64{}
	for round := range 20 {
		now, list := map[uint64]uint64{}, []Print(nil)
		for block := range uint64(blocks) {
			p, ok := before[block]
			if rng.IntN(5) == 0 {
				p, ok = rng.Uint64N(3), rng.IntN(4) > 0
			}
			if ok {
				now[block] = p
				list = append(list, Print{block, p})
			}
		}
		var file bytes.Buffer
		w := NewPrintsWriter(&file, uint64(round))
		changed := make([]bool, blocks)
		for r, err := range ChangedSince(kept, seqOf(list), size, w) {
			mustDo(t, err)
			if r.Len <= 0 || r.Off%printsBlock != 0 || r.Off+r.Len > size {
				t.Fatalf("range %+v", r)
			}
			for b := r.Off / printsBlock; b*printsBlock < r.Off+r.Len; b++ {
				changed[b] = true
			}
		}
		for b := range changed {
			was, had := before[uint64(b)]
			is, has := now[uint64(b)]
			if want := had != has || was != is; want != changed[b] {
				t.Fatalf("round %d: block %d: %v, %v before and %v, %v now: changed %v", round, b, had, was, has, is, changed[b])
			}
		}
		mustDo(t, w.Close())
		prints, generation, err := OpenPrints(bytes.NewReader(file.Bytes()), int64(file.Len()))
		mustDo(t, err)
		if generation != uint64(round) {
			t.Errorf("generation %d", generation)
		}
		kept, before = prints, now
		for _, at := range []int{0, 16, 24, 40, file.Len() - 1} {
			damaged := bytes.Clone(file.Bytes())
			damaged[at] ^= 1
			if _, _, err := OpenPrints(bytes.NewReader(damaged), int64(len(damaged))); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
				t.Errorf("byte %d damaged: %v", at, err)
			}
		}
		if _, _, err := OpenPrints(bytes.NewReader(file.Bytes()[:file.Len()-1]), int64(file.Len()-1)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("cut off: %v", err)
		}
	}
}
