package union

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
)

// layerSpace is what a store's layers take.
type layerSpace struct {
	depth, layers int
	free          uint64
	catalogBytes  int
}

// space is measured when nothing waits to be freed.
func (r *rig) space() layerSpace {
	r.t.Helper()
	if err := errors.Join(r.sim.Run(), r.store.commit(), r.checkpoint()); err != nil {
		r.t.Fatal(err)
	}
	if r.store.epochs.collect() {
		r.t.Error("slots wait for readers, of which there are none")
	}
	entries := make([]layerEntry, 0, len(r.store.layers))
	for _, l := range r.store.layers {
		entries = append(entries, l.describe())
	}
	return layerSpace{r.layer.depth(), len(r.store.layers), r.store.slots.freeSlots(), len(encodeCatalog(nil, entries))}
}

// TestThousandExports freezes, exports and merges a live device a thousand times, with writes between, and ends
// process and power in the midst of exports now and then: depth, layers, free space and the size of the catalog are in
// the end what they were, and so is the content what was written.
func TestThousandExports(t *testing.T) {
	t.Parallel()
	const exports = 1000
	rng := rand.New(rand.NewPCG(1, 51))
	r := newRig(t, 4, false)
	r.size = 1 << 20
	o := newOracle(r)
	r.block.Close()
	r.layer.Release()
	if err := r.store.RemoveLayer("web1"); err != nil {
		t.Fatal(err)
	}
	r.close()
	r.open()
	content := make([]byte, r.size) // every block in a slot, so that what the device holds does not grow
	if _, err := r.block.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	for s := range o.history {
		o.history[s] = []uint64{0}
	}
	before := r.space()
	dir := t.TempDir()
	kills := 0
	for i := range exports {
		o.writeSome(r, rng)
		name := fmt.Sprintf("export-%d", i)
		r.sealAs(name)
		o.writeSome(r, rng)
		if i%40 == 0 {
			if _, err := exportLayer(t, r, name, filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		if i%50 == 49 {
			kills++
			copy(o.floor, o.acked)
			if err := r.block.Flush(); err != nil {
				t.Fatal(err)
			}
			o.writeSome(r, rng)
			if i%100 == 99 {
				r.abandon()
			} else {
				r.powerCut(rng)
			}
			r.open()
			o.settle(r, func(s, i int) bool { return i >= o.floor[s] })
		}
		if r.layer.parent == nil || !strings.HasPrefix(r.layer.parent.entry.Name, "export-") {
			t.Fatalf("export %d: stands on %v", i, r.layer.parent)
		}
		if err := r.layer.Merge(); err != nil {
			t.Fatal(err)
		}
		if i%10 == 0 {
			r.store.maintain()
		}
	}
	// Those blocks that were discarded since are no loss of space.
	if _, err := r.block.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	if after := r.space(); after != before {
		t.Errorf("before %+v, after %d exports %+v", before, exports, after)
	}
	t.Logf("%d exports, %d of them killed: %+v", exports, kills, before)
	r.close()
	r.check()
}

// writeSome writes a few requests to their end.
func (o *oracle) writeSome(r *rig, rng *rand.Rand) {
	r.t.Helper()
	for range 1 + rng.IntN(3) {
		o.submit(r, rng)
	}
	if err := r.sim.Run(); err != nil {
		r.t.Fatal(err)
	}
}

// The layer that an export did not live to take back goes with the last one that stands on it.
func TestLeftoverGoesWithItsLayer(t *testing.T) {
	r := newRig(t, 1, false)
	if _, err := r.block.WriteAt(make([]byte, 64<<10), 0); err != nil {
		t.Fatal(err)
	}
	before := r.store.slots.freeSlots()
	r.sealAs("gold")
	r.sealAs(ExportPrefix + "1")
	if err := r.block.Close(); err != nil {
		t.Fatal(err)
	}
	r.layer.Release()
	if err := r.store.RemoveLayer("web1"); err != nil {
		t.Fatal(err)
	}
	if info := r.store.Info(); len(info.Layers) != 1 || info.Layers[0].Name != "gold" {
		t.Errorf("left %+v", info.Layers)
	}
	if err := r.store.RemoveLayer("gold"); err != nil {
		t.Fatal(err)
	}
	if free := r.store.slots.freeSlots(); free < before+16 {
		t.Errorf("%d slots were free, now %d", before, free)
	}
	if err := r.store.Detach(context.Background(), "gold", r.base, DetachOptions{}); !errors.Is(err, ErrNoLayer) {
		t.Error(err)
	}
}
