package union

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
)

// TestPrints reads a device again and again as it was at moments, with requests, flattening and merging between them: what has the same print holds the same, and what nobody
// wrote has the same print.
func TestPrints(t *testing.T) {
	for seed := range seeds(4) {
		rng := rand.New(rand.NewPCG(seed, 11))
		r := newRig(t, seed, false)
		o := newOracle(r)
		before, content := map[uint64]uint64{}, make([]byte, r.size)
		kept := 0
		for round := range 6 {
			drive(r, o, rng, 60)
			r.idle()
			name := fmt.Sprintf("%s%d", ExportPrefix, round)
			r.sealAs(name)
			now, read := readPrints(t, r, name)
			for block, p := range now {
				was, there := before[block]
				at := int64(block) << blockShift
				end := min(at+blockSize, r.size)
				switch {
				case p == 0 && !bytes.Equal(read[at:end], make([]byte, end-at)):
					t.Fatalf("seed %d: block %d has the print of zeros and is none", seed, block)
				case !there || was != p:
				case !bytes.Equal(read[at:end], content[at:end]):
					t.Fatalf("seed %d: block %d has print %#x as before, and another content", seed, block, p)
				default:
					kept++
				}
			}
			before, content = now, read
			if err := r.layer.Merge(); err != nil {
				t.Fatal(err)
			}
		}
		if kept == 0 {
			t.Errorf("seed %d: no block kept its print", seed)
		}
		r.close()
		r.disk.Close()
	}
}

// readPrints returns the prints of a sealed layer, and all that it reads. What it says is there is what Changed says.
func readPrints(t *testing.T, r *rig, name string) (map[uint64]uint64, []byte) {
	t.Helper()
	l, err := r.store.OpenSealed(name)
	if err != nil {
		t.Fatal(err)
	}
	defer l.CloseSealed()
	c, err := l.Content(r.base)
	if err != nil {
		t.Fatal(err)
	}
	prints := map[uint64]uint64{}
	for x, err := range c.Prints() {
		if err != nil {
			t.Fatal(err)
		}
		prints[x.Block] = x.Print
	}
	changed := 0
	for x, err := range c.Changed() {
		if err != nil {
			t.Fatal(err)
		}
		for off := x.Off; off < x.Off+x.Len; off += blockSize {
			changed++
			if p, ok := prints[uint64(off)>>blockShift]; !ok || (p == 0) != x.Zero {
				t.Fatalf("block %d has print %#x, %v, in %+v", off>>blockShift, p, ok, x)
			}
		}
	}
	if changed != len(prints) {
		t.Fatalf("%d blocks changed, %d have prints", changed, len(prints))
	}
	for _, err := range c.Prints() { // one who has seen enough
		if err != nil {
			t.Fatal(err)
		}
		if changed > 0 {
			break
		}
	}
	p := make([]byte, r.size)
	if _, err := c.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return prints, p
}
