package union

import (
	"context"
	"errors"
	"math/rand/v2"
	"syscall"
	"testing"
)

// detaching is a Detach that a test takes step by step, among the requests of the simulator.
type detaching struct {
	*detach
	c  *chunk
	at uint64
}

func (r *rig) beginDetach(layer string) *detaching {
	r.t.Helper()
	d, err := r.store.beginDetach(layer, r.rootOf(layer), DetachOptions{BytesPerSecond: 1 << 40})
	if err != nil {
		r.t.Fatalf("seed %d: detach: %v", r.seed, err)
	}
	if d == nil {
		return nil
	}
	a := &detaching{detach: d, c: newChunk()}
	if d.copyComplete() {
		a.at = d.work.m.blocks
	}
	return a
}

// some copies a little and reports whether the copy is complete.
func (d *detaching) some(r *rig) bool {
	r.t.Helper()
	if d.at == d.work.m.blocks {
		return true
	}
	n, err := d.step(context.Background(), d.c, d.at, 24)
	if err != nil {
		r.t.Fatalf("seed %d: detach at block %d: %v", r.seed, d.at, err)
	}
	if d.at += n; d.at < d.work.m.blocks {
		return false
	}
	if err := d.copy.flush(); err != nil {
		r.t.Fatal(err)
	}
	return true
}

// flushed waits for all requests and flushes.
func (r *rig) flushed(o *oracle) {
	r.t.Helper()
	if err := errors.Join(r.sim.Run(), r.block.Flush()); err != nil {
		r.t.Fatalf("seed %d: %v", r.seed, err)
	}
	copy(o.floor, o.acked)
}

// removeAncestors removes every sealed layer that the device does not stand on, also one whose merge a power cut undid.
func (o *layerOracle) removeAncestors(r *rig) {
	r.t.Helper()
	for again := true; again; {
		again = false
		for name, l := range r.store.layers {
			if !l.entry.Sealed || r.layer.standsOn(l) || r.store.stoodOn(l) {
				continue
			}
			if err := r.store.RemoveLayer(name); err != nil {
				r.t.Fatalf("seed %d: %v", r.seed, err)
			}
			again = true
			break
		}
	}
	for name := range o.sealed {
		if r.store.layers[name] == nil {
			delete(o.sealed, name)
		}
	}
}

// finishBadly stops the last step at one of its writes; it reports whether that was early enough.
func (d *detaching) finishBadly(r *rig, rng *rand.Rand) bool {
	r.store.disk = &faultDisk{Disk: r.disk, left: rng.IntN(12)}
	calm(r.t, r.store, r.sim)
	err := d.finish()
	r.store.disk = r.disk
	if err != nil && !errors.Is(err, syscall.EIO) {
		r.t.Fatalf("seed %d: finish: %v", r.seed, err)
	}
	return err != nil
}

// progress copies among requests, some steps at most, and puts the copy in its place when it is complete, perhaps badly. It reports
// whether the store failed at that.
func (d *detaching) progress(r *rig, rng *rand.Rand, steps int, drive func()) (died bool) {
	r.t.Helper()
	if d == nil {
		return false
	}
	defer d.end()
	for ; steps > 0; steps-- {
		drive()
		if !d.some(r) {
			continue
		}
		if r.base.disk != nil && rng.IntN(3) == 0 && d.finishBadly(r, rng) {
			return true
		}
		if d.owner.entry.Detaching {
			calm(r.t, r.store, r.sim)
			if err := d.finish(); err != nil {
				r.t.Fatalf("seed %d: finish: %v", r.seed, err)
			}
		}
		return false
	}
	return false
}

// TestDetachInFlight detaches a device's leaf among concurrent requests, freezes and merges, ends process or power at any point,
// goes on after it, and in the end removes all ancestors and the root: the device, and what was frozen from it
// since, hold what they held.
func TestDetachInFlight(t *testing.T) {
	t.Parallel()
	kills := 0
	for seed := range seeds(20) {
		rng := rand.New(rand.NewPCG(seed, 31))
		r := newRig(t, seed, seed%4 == 3)
		o := newLayerOracle(r)
		driveLayers(r, o, rng, 200+rng.IntN(900))
		for detached := false; ; {
			r.flushed(o.oracle)
			for _, st := range o.sealed {
				st.durable = true
			}
			d := r.beginDetach("web1")
			how := ending(rng.IntN(3))
			if r.base.disk == nil { // an asynchronous root writes into what a process that died would have had
				how = endClosed
			}
			steps := rng.IntN(2 * int(r.layer.m.blocks) / 24) // before the end of this life
			died := d.progress(r, rng, steps, func() { driveLayers(r, o, rng, rng.IntN(60)) })
			if died {
				how = endKilled + ending(rng.IntN(2))
			}
			if !died && !r.layer.entry.Detaching {
				if !detached {
					o.removeAncestors(r)
					r.idle() // reads that began before may still go to the root
					r.loseRoot()
				}
				detached = true
				driveLayers(r, o, rng, rng.IntN(400))
			}
			kills++
			o.next(r, how, rng)
			mustFlatten(r.t, r.store)
			o.verify(r, false)
			if detached {
				break
			}
		}
		if r.store.workOf(r.layer) != nil || r.layer.entry.Pin != (Pin{}) {
			t.Errorf("seed %d: left %+v", seed, r.store.Info().Layers)
		}
		r.shut()
		if t.Failed() {
			return
		}
	}
	t.Logf("%d ends of process or power", kills)
	if kills < 20 && !testing.Short() {
		t.Error("too few")
	}
}
