package union

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"coppice/ublk/ublktest"
)

// TestModel has rapid drive the whole API of layers, on two small stores at once, and compares what they hold with a model in memory,
// byte for byte: after power cuts and the death of the process as well.
func TestModel(t *testing.T) {
	t.Parallel()
	roots, err := worldRoots(2)
	if err != nil {
		t.Fatal(err)
	}
	dir := runDir(t)
	tally := map[string]int{}
	check := func(t *rapid.T) {
		c := func(what string, n int) int { return below(n).Draw(t, what) }
		w := newWorld(t, filepath.Join(dir, "world"), roots, c)
		w.tally = tally
		t.Cleanup(func() {
			if err := w.close(); err != nil {
				t.Errorf("%v", err)
			}
		})
		t.Repeat(map[string]func(*rapid.T){"step": func(t *rapid.T) {
			if name, did := w.act(c); did {
				tally[name]++
			}
		}})
		w.finish()
	}
	for range 3 {
		rapid.Check(t, check)
	}
	t.Logf("%v", tally)
	for _, b := range roots {
		if err := b.disk.Close(); err != nil {
			t.Error(err)
		}
	}
}

// below draws from 0 to n-1, each as likely as the others: rapid's own ranges prefer small numbers.
func below(n int) *rapid.Generator[int] {
	return rapid.Custom(func(t *rapid.T) (v int) {
		for range bits.Len(uint(n-1)) + 3 {
			v <<= 1
			if rapid.Bool().Draw(t, "bit") {
				v++
			}
		}
		return v % n
	})
}

// worldActions are what may happen, and how often compared with the others.
var worldActions = []struct {
	name   string
	weight int
	do     func(*world, choose) bool
}{
	{"requests", 24, (*world).requests},
	{"create", 4, (*world).create},
	{"freeze", 4, (*world).freeze},
	{"merge", 3, (*world).merge},
	{"remove", 3, (*world).remove},
	{"plug", 3, (*world).replug},
	{"unplug", 1, (*world).unplugOne},
	{"detach", 3, (*world).detach},
	{"transfer", 2, (*world).transfer},
	{"export", 1, (*world).export},
	{"upkeep", 3, (*world).upkeep},
	{"quota", 3, (*world).setQuota},
	{"grow", 1, (*world).grow},
	{"take over", 1, (*world).takeOver},
	{"restart", 1, (*world).restart},
	{"kill", 2, (*world).kill},
	{"power cut", 3, (*world).powerCut},
}

// act does one thing, if it can be done now.
func (w *world) act(c choose) (name string, did bool) {
	total := 0
	for _, a := range worldActions {
		total += a.weight
	}
	k := c("action", total)
	for _, a := range worldActions {
		if k -= a.weight; k < 0 {
			w.t.Logf("%s", a.name)
			return a.name, a.do(w, c)
		}
	}
	panic("unreachable")
}

// newWorld makes a machine with two stores of chosen sizes.
func newWorld(t reporter, dir string, roots []*memBase, c choose) *world {
	t.Helper()
	if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil { // what a failed run left
		t.Fatalf("%v", err)
	}
	w := &world{t: t, dir: dir, roots: roots, seed: uint64(c("seed", 1<<16)), sizes: []int64{worldSize, worldSmallSize},
		chunk: newChunk()}
	for i := range 2 {
		geometry := layoutOf([]uint64{1024, 384, 192, 128}[c("blocks", 4)], []uint64{8, 16}[c("log", 2)], []uint64{superBBlock, leaseBlock}[c("lease", 2)]+1, uint64(c("gap", 3)))
		disk, err := ublktest.NewDisk(fmt.Sprintf("store%d", i), int64(geometry.SizeBlocks)<<blockShift)
		if err != nil {
			t.Fatalf("%v", err)
		}
		w.format(disk, geometry)
	}
	w.start()
	w.create(c)
	w.create(c)
	return w
}
