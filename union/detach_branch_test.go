package union

import (
	"errors"
	"math/rand/v2"
	"testing"

	"coppice/ublk/ublktest"
)

// twins are two devices on one sealed layer, in one simulator.
type twins struct {
	*rig
	second *rig
	o      [2]*oracle
}

// newTwins leaves the devices web1 and web2 on the layer "branch", which stands on "p1" and the root.
func newTwins(t *testing.T, seed uint64, rng *rand.Rand) *twins {
	t.Helper()
	r := newRig(t, seed, false)
	o := newOracle(r)
	for _, name := range []string{"p1", "branch"} {
		drive(r, o, rng, 400)
		r.flushed(o)
		r.sealAs(name)
	}
	o.settle(r, func(s, i int) bool { return i == o.acked[s] })
	w := &twins{rig: r, o: [2]*oracle{o, newOracle(r)}}
	for s := range o.history {
		w.o[1].history[s] = append([]uint64(nil), o.history[s]...)
	}
	w.o[1].stamp = 1 << 40
	w.openSecond()
	return w
}

// sealAs freezes the device as the API does.
func (r *rig) sealAs(name string) {
	r.t.Helper()
	f, err := r.layer.PrepareFreeze(name)
	if err == nil {
		_, err = f.Seal()
	}
	if err != nil {
		r.t.Fatalf("seed %d: freeze: %v", r.seed, err)
	}
}

func (w *twins) openSecond() {
	w.t.Helper()
	second := *w.rig
	w.second = &second
	base := w.rootOf("branch")
	var err error
	if second.layer, err = w.store.OpenLayer("web2", LayerOptions{Create: true, From: "branch", Pin: rootPin(base)}); err == nil {
		second.dev, err = NewDevice(second.layer, base, DeviceOptions{})
	}
	if err == nil {
		second.block, err = w.sim.NewDevice(second.dev, ublktest.DeviceConfig{SizeBytes: w.size, Queues: w.queue, Depth: 8, MaxIO: 64 << 10})
	}
	if err != nil {
		w.t.Fatalf("seed %d: second device: %v", w.seed, err)
	}
}

func (w *twins) drive(rng *rand.Rand, n int) {
	for range n {
		switch k := rng.IntN(100); {
		case k < 15:
			w.o[0].submit(w.rig, rng)
		case k < 30:
			w.o[1].submit(w.second, rng)
		case k == 30:
			mustFlatten(w.t, w.store)
		default:
			w.sim.Step()
		}
	}
}

// end ends the life of the process and begins the next.
func (w *twins) end(how ending, rng *rand.Rand) {
	w.t.Helper()
	if how == endClosed {
		w.idle()
	} else {
		w.sim.Halt()
	}
	if err := w.second.block.Close(); err != nil {
		w.t.Fatal(err)
	}
	w.second.layer.Release()
	w.next(how, rng)
	w.openSecond()
	for i, r := range []*rig{w.rig, w.second} {
		w.o[i].settleAfter(r, how)
	}
}

// TestDetachBranchInFlight detaches a sealed layer below two live devices, ends process or power at any point, and in the
// end removes ancestor and root: both devices hold what they held.
func TestDetachBranchInFlight(t *testing.T) {
	t.Parallel()
	kills := 0
	for seed := range seeds(12) {
		rng := rand.New(rand.NewPCG(seed, 32))
		w := newTwins(t, seed, rng)
		branch := w.store.layers["branch"]
		for detached := false; !detached; kills++ {
			d := w.beginDetach("branch")
			how := ending(rng.IntN(3))
			died := d.progress(w.rig, rng, rng.IntN(2*int(branch.m.blocks)/24), func() { w.drive(rng, rng.IntN(60)) })
			if died {
				how = endKilled + ending(rng.IntN(2))
			}
			if branch = w.store.layers["branch"]; !died && !branch.entry.Detaching {
				if err := w.store.RemoveLayer("p1"); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				if err := errors.Join(w.store.Checkpoint(), w.sim.Run()); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				w.loseRoot()
				detached = true
				w.drive(rng, rng.IntN(400))
			}
			w.end(how, rng)
		}
		w.drive(rng, 300)
		w.end(endClosed, rng)
		w.close2()
		if t.Failed() {
			return
		}
	}
	t.Logf("%d ends of process or power", kills)
	if kills < 20 && !testing.Short() {
		t.Error("too few")
	}
}

// close2 closes both devices and the store, and removes one device's layer after the other: the branch has no user then, and goes
// too.
func (w *twins) close2() {
	w.t.Helper()
	if err := w.second.block.Close(); err != nil {
		w.t.Fatal(err)
	}
	w.second.layer.Release()
	if err := w.store.RemoveLayer("branch"); !errors.Is(err, ErrLayerInUse) {
		w.t.Errorf("seed %d: remove a layer that others stand on: %v", w.seed, err)
	}
	if err := w.store.RemoveLayer("web2"); err != nil {
		w.t.Error(err)
	}
	w.shut()
}
