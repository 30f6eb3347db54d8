package union

import (
	"fmt"
	"math/rand/v2"
)

// opKind is a kind of operation of a simulated workload.
type opKind uint8

const (
	opWrite opKind = iota
	opZero
	opDiscard
	opRead
	opFlush
	opCheckpoint
	opCommit
	opFlatten
	opFreeze
	opMerge
	opRemove
	opCreate
	opBranch
	opDrain
	opKinds
)

func (k opKind) String() string {
	return [...]string{"write", "zero", "discard", "read", "flush", "checkpoint", "commit", "flatten", "freeze", "merge", "remove", "create",
		"branch", "drain"}[k]
}

// simOp is one operation of a script. What its numbers mean depends on what is there when its turn comes, so that a script
// still is one when operations are left out.
type simOp struct {
	kind         opKind
	dev          int
	first, count int // sectors
	fua          bool
	pick         int
	steps        int // of the schedule after it
}

func (o simOp) String() string {
	s := o.kind.String()
	switch o.kind {
	case opWrite, opZero, opDiscard, opRead:
		s = fmt.Sprintf("%s device %d sector %d count %d", s, o.dev, o.first, o.count)
		if o.fua && o.kind == opWrite {
			s += " FUA"
		}
	case opFlush, opFreeze, opMerge:
		s = fmt.Sprintf("%s device %d", s, o.dev)
	case opRemove, opCreate, opBranch:
		s = fmt.Sprintf("%s %d", s, o.pick)
	}
	return fmt.Sprintf("%s, then %d steps", s, o.steps)
}

// opMix is how often each kind of operation comes, and how the schedule goes on between.
type opMix struct {
	weights [opKinds]int
	fua     int // one write in so many
	ops     int
	steps   int // at most, between two operations
	blocks  int // at most, of a request
}

// opMixes are different kinds of load: requests alone, checkpoints, layers, and much at once.
var opMixes = []opMix{
	{weights: weigh(map[opKind]int{opWrite: 10, opZero: 1, opDiscard: 2, opRead: 2, opFlush: 4, opCheckpoint: 1}), fua: 5, ops: 40, steps: 8, blocks: 2},
	{weights: weigh(map[opKind]int{opWrite: 10, opDiscard: 2, opRead: 3, opFlush: 3, opCheckpoint: 2, opCommit: 1, opDrain: 1}), fua: 2, ops: 40, steps: 12, blocks: 3},
	{weights: weigh(map[opKind]int{opWrite: 10, opZero: 1, opDiscard: 1, opRead: 1, opFlush: 3, opCheckpoint: 1, opFreeze: 2, opMerge: 2,
		opRemove: 1, opCreate: 2, opBranch: 1, opFlatten: 1, opDrain: 1}), fua: 4, ops: 40, steps: 10, blocks: 2},
	{weights: weigh(map[opKind]int{opWrite: 6, opDiscard: 1, opFlush: 3, opFreeze: 3, opMerge: 3, opRemove: 2, opCreate: 2, opBranch: 1,
		opCheckpoint: 1, opFlatten: 1}), fua: 6, ops: 30, steps: 20, blocks: 2},
	{weights: weigh(map[opKind]int{opWrite: 20, opZero: 2, opDiscard: 2, opRead: 6, opFlush: 2, opCommit: 1}), fua: 8, ops: 90, steps: 5, blocks: 3},
	{weights: weigh(map[opKind]int{opWrite: 12, opRead: 3, opFlush: 6, opCheckpoint: 1, opFreeze: 1, opMerge: 1}), fua: 4, ops: 120, steps: 8, blocks: 2},
}

func weigh(by map[opKind]int) (w [opKinds]int) {
	for k, n := range by {
		w[k] = n
	}
	return w
}

// newScript draws a script.
func newScript(c *simConfig) []simOp {
	rng := rand.New(rand.NewPCG(c.seed, 33))
	return drawScript(rng, c, c.mix.ops/2+rng.IntN(c.mix.ops))
}

func drawScript(rng *rand.Rand, c *simConfig, n int) []simOp {
	total := 0
	for _, w := range c.mix.weights {
		total += w
	}
	sectors := c.geometry.sectors()
	script := make([]simOp, n)
	for i := range script {
		at := rng.IntN(total)
		kind := opKind(0)
		for ; at >= c.mix.weights[kind]; kind++ {
			at -= c.mix.weights[kind]
		}
		o := simOp{kind: kind, dev: rng.IntN(2), pick: rng.IntN(1 << 10), fua: rng.IntN(c.mix.fua) == 0, steps: rng.IntN(c.mix.steps + 1)}
		o.first, o.count = rng.IntN(sectors), 1+rng.IntN(8*c.mix.blocks)
		if rng.IntN(3) != 0 { // whole blocks
			o.first &^= 7
			o.count = (o.count + 7) &^ 7
		}
		if rng.IntN(6) == 0 {
			o.steps *= 4
		}
		if kind == opDiscard && rng.IntN(8) == 0 {
			o.first, o.count = 0, sectors
		}
		script[i] = o
	}
	return script
}
