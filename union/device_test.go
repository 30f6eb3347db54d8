package union

import (
	"math/rand/v2"
	"testing"
)

// drive submits requests and lets the simulator go on at random for n rounds.
func drive(r *rig, o *oracle, rng *rand.Rand, n int) {
	for range n {
		switch k := rng.IntN(40); {
		case k < 12:
			o.submit(r, rng)
		case k == 12 && rng.IntN(8) == 0:
			if err := r.checkpoint(); err != nil && !o.failing {
				r.t.Fatalf("seed %d: checkpoint: %v", r.seed, err)
			}
		case k == 13 && rng.IntN(8) == 0:
			o.discardMuch(r, rng)
		default:
			r.sim.Step()
		}
	}
}

// TestAcknowledgedContent drives concurrent requests of all kinds, closes the store, opens it again and
// demands exactly what was acknowledged.
func TestAcknowledgedContent(t *testing.T) {
	t.Parallel()
	for seed := range seeds(24) {
		rng := rand.New(rand.NewPCG(seed, 1))
		r := newRig(t, seed, seed%4 == 3)
		o := newOracle(r)
		for range 3 {
			drive(r, o, rng, 600)
			r.idle()
			o.settleAfter(r, endClosed)
			r.next(endClosed, rng)
			o.settleAfter(r, endClosed)
		}
		r.shut()
		if t.Failed() {
			return
		}
	}
}

// TestPowerCut cuts the power at random moments: each sector has a value that a completed flush covered, or a later one. Other than
// the stores of the crash simulator, this one has the usual geometry.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	states := 0
	for seed := range seeds(6) {
		rng := rand.New(rand.NewPCG(seed, 2))
		r := newRig(t, seed, false)
		o := newOracle(r)
		for range 4 {
			drive(r, o, rng, 1+rng.IntN(900))
			r.next(endCut, rng)
			o.settleAfter(r, endCut)
			states++
		}
		r.shut()
		if t.Failed() {
			return
		}
	}
	t.Logf("%d states recovered", states)
}

// TestProcessDeath kills the process at random moments: everything acknowledged is there, flushed or not.
func TestProcessDeath(t *testing.T) {
	t.Parallel()
	for seed := range seeds(6) {
		rng := rand.New(rand.NewPCG(seed, 3))
		r := newRig(t, seed, false)
		o := newOracle(r)
		for range 4 {
			drive(r, o, rng, 1+rng.IntN(900))
			r.next(endKilled, rng)
			o.settleAfter(r, endKilled)
		}
		r.shut()
		if t.Failed() {
			return
		}
	}
}
