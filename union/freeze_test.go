package union

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"

	"coppice/ublk"
	"coppice/ublk/ublktest"
)

// sealedState is what a sealed layer may hold, by sector.
type sealedState struct {
	legal   [][]uint64
	weak    [][]uint64 // after a power cut before any flush
	durable bool
}

// layerOracle knows sealed layers beside the device's present content.
type layerOracle struct {
	*oracle
	sealed map[string]*sealedState
	count  int
}

func newLayerOracle(r *rig) *layerOracle {
	return &layerOracle{oracle: newOracle(r), sealed: map[string]*sealedState{}}
}

// next ends the life of the process, begins another, and demands every sealed layer and the device as they were.
func (o *layerOracle) next(r *rig, how ending, rng *rand.Rand) {
	r.t.Helper()
	r.next(how, rng)
	o.verify(r, how == endCut)
	o.settleAfter(r, how)
}

// seal freezes in the midst of requests: each that was acknowledged is in the sealed layer.
func (o *layerOracle) seal(r *rig) {
	o.count++
	name := fmt.Sprintf("s%d", o.count)
	r.store.mu.Lock()
	_, err := r.store.seal(r.layer, name)
	r.store.mu.Unlock()
	if err != nil {
		r.t.Fatalf("seed %d: seal %s: %v", r.seed, name, err)
	}
	st := &sealedState{}
	for s, h := range o.history {
		st.legal = append(st.legal, append([]uint64(nil), h[o.acked[s]:]...))
		st.weak = append(st.weak, append([]uint64(nil), h[o.floor[s]:]...))
	}
	o.sealed[name] = st
	// Completed only after the seal, so it covers it.
	r.block.Submit(flushDescriptor, nil, func(errno syscall.Errno, _ []byte) {
		if errno == 0 {
			st.durable = true
		}
	})
}

// merge undoes the newest freeze, where nothing else stands on it.
func (o *layerOracle) merge(r *rig) {
	below := r.layer.parent
	if below == nil {
		return
	}
	name := below.entry.Name
	switch err := r.layer.Merge(); {
	case errors.Is(err, ErrLayerInUse):
	case err != nil:
		r.t.Fatalf("seed %d: merge %s: %v", r.seed, name, err)
	default:
		delete(o.sealed, name)
	}
}

// verify reads every sealed layer through a leaf of its own.
func (o *layerOracle) verify(r *rig, afterCut bool) {
	r.t.Helper()
	for name, st := range o.sealed {
		if r.store.layers[name] == nil {
			if afterCut && !st.durable {
				delete(o.sealed, name)
				continue
			}
			r.t.Fatalf("seed %d: sealed layer %s is gone", r.seed, name)
		}
		legal := st.legal
		if afterCut && !st.durable {
			legal = st.weak
		}
		got := r.readLeafOf(name)
		for s := range legal {
			p := got[s*sector : (s+1)*sector]
			found := false
			for _, v := range legal[s] {
				if o.matches(r, s, v, p) {
					st.legal[s], found = []uint64{v}, true
					break
				}
			}
			if !found {
				r.t.Fatalf("seed %d: sector %d of sealed layer %s has none of %v (cut %v durable %v), begins %x", r.seed, s, name, legal[s], afterCut, st.durable, p[:16])
			}
		}
		st.durable = true
	}
}

func (r *rig) readLeafOf(name string) []byte {
	r.t.Helper()
	base := r.rootOf(name)
	l, err := r.store.OpenLayer("probe", LayerOptions{Create: true, From: name, Pin: rootPin(base)})
	if err != nil {
		r.t.Fatalf("seed %d: %v", r.seed, err)
	}
	d, err := NewDevice(l, base, DeviceOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	block, err := r.sim.NewDevice(d, ublktest.DeviceConfig{SizeBytes: r.size, Depth: 4, MaxIO: 256 << 10})
	if err != nil {
		r.t.Fatal(err)
	}
	got := make([]byte, r.size)
	const step = 256 << 10
	for off := int64(0); off < r.size; off += step {
		if _, err := block.ReadAt(got[off:min(off+step, r.size)], off); err != nil {
			r.t.Fatalf("seed %d: read %s: %v", r.seed, name, err)
		}
	}
	if err := block.Close(); err != nil {
		r.t.Fatal(err)
	}
	l.Release()
	if err := r.store.RemoveLayer("probe"); err != nil {
		r.t.Fatal(err)
	}
	return got
}

var flushDescriptor = ublk.Descriptor{Op: ublk.OpFlush}

// allDurable tells whether a flush has covered every freeze, as Freeze.Seal makes sure before anybody can write the catalog.
func (o *layerOracle) allDurable() bool {
	for _, st := range o.sealed {
		if !st.durable {
			return false
		}
	}
	return true
}

func driveLayers(r *rig, o *layerOracle, rng *rand.Rand, n int) {
	for range n {
		switch k := rng.IntN(200); {
		case k < 50:
			o.submit(r, rng)
		case k < 53 && r.layer.depth() < 12:
			o.seal(r)
		case k == 54:
			o.merge(r)
		case k == 55:
			mustFlatten(r.t, r.store)
		case k == 57 && o.allDurable(): // writes the catalog and leaves the log as it is
			o.count++
			calm(r.t, r.store, r.sim)
			l, err := r.store.OpenLayer(fmt.Sprintf("other%d", o.count), LayerOptions{Create: true, Pin: r.base.Pin(), SizeBytes: r.size})
			if err != nil {
				r.t.Fatalf("seed %d: make layer: %v", r.seed, err)
			}
			l.Release()
		case k == 56 && rng.IntN(4) == 0:
			if err := r.checkpoint(); err != nil {
				r.t.Fatalf("seed %d: checkpoint: %v", r.seed, err)
			}
		default:
			r.sim.Step()
		}
	}
}

// TestFreezeInFlight seals and merges layers among concurrent requests, then ends the process, the power or neither,
// and demands every sealed layer and the device as they were.
func TestFreezeInFlight(t *testing.T) {
	t.Parallel()
	for seed := range seeds(6) {
		rng := rand.New(rand.NewPCG(seed, 4))
		r := newRig(t, seed, false)
		o := newLayerOracle(r)
		for range 4 {
			driveLayers(r, o, rng, 100+rng.IntN(900))
			how := ending(rng.IntN(3))
			o.next(r, how, rng)
			mustFlatten(r.t, r.store)
			o.verify(r, false)
		}
		r.shut()
		if t.Failed() {
			return
		}
	}
}
