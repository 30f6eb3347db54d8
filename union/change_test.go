package union

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
)

// TestChangesNeedRoom takes the slots that a checkpoint needs, as requests under way may, and asks for changes of layers that take one. Each
// is refused with nothing lost, and done when there is room again.
func TestChangesNeedRoom(t *testing.T) {
	t.Parallel()
	r := newRigOf(t, rigConfig{seed: 1})
	const blocks = 64
	write := func(stamp uint64) {
		for b := range blocks {
			r.mustWrite(b, stamp)
		}
	}
	other, err := r.store.OpenLayer("other", LayerOptions{Create: true, Pin: r.base.Pin(), SizeBytes: r.size})
	if err != nil {
		t.Fatal(err)
	}
	other.Release()
	write(1)
	f, err := r.layer.PrepareFreeze("cut")
	if err == nil {
		_, err = f.Seal()
	}
	if err != nil {
		t.Fatal(err)
	}
	write(2)
	if err := errors.Join(r.store.Checkpoint(), r.layer.Merge(), r.store.commit()); err != nil {
		t.Fatal(err)
	}
	r.store.epochs.collect()
	if len(r.store.stale) == 0 {
		t.Fatal("no map is stale after a merge: a catalog alone would do")
	}

	changes := map[string]func() error{
		"quota": func() error { _, err := r.layer.SetQuota(1 << 20); return err },
		"create": func() error {
			l, err := r.store.OpenLayer("new", LayerOptions{Create: true, Pin: r.base.Pin(), SizeBytes: r.size})
			if err == nil {
				l.Release()
			}
			return err
		},
		"remove": func() error { return r.store.RemoveLayer("other") },
		"detach": func() error { return r.store.Detach(context.Background(), "web1", r.base, DetachOptions{}) },
	}
	taken, ok := r.store.slots.alloc(nil, int(r.store.slots.freeSlots()-1), 0)
	if !ok {
		t.Fatal("no slots")
	}
	before := r.store.Info()
	for what, change := range changes {
		if err := change(); !errors.Is(err, ErrNoSpace) {
			t.Errorf("%s: %v, want %v", what, err, ErrNoSpace)
		}
	}
	after := r.store.Info()
	if after.Failed || after.Generation != before.Generation || len(after.Layers) != len(before.Layers) {
		t.Fatalf("failed %v, generation %d, %d layers; before %d, %d", after.Failed, after.Generation, len(after.Layers), before.Generation, len(before.Layers))
	}
	for _, l := range after.Layers {
		if l.QuotaBytes != 0 || l.Detaching {
			t.Errorf("layer %+v", l)
		}
	}
	r.store.releaseAll(taken)
	r.wantBlocks(blocks, func(int) uint64 { return 2 })
	for _, what := range []string{"create", "remove", "detach", "quota"} {
		if err := changes[what](); err != nil {
			t.Errorf("%s with room: %v", what, err)
		}
	}
	r.next(endCut, rand.New(rand.NewPCG(1, 1)))
	r.wantBlocks(blocks, func(int) uint64 { return 2 })
	if got := r.layer.Info(); got.QuotaBytes != 1<<20 || got.Pin.Kind != PinNone {
		t.Errorf("layer %+v", got)
	}
	r.shut()
}
