package powercut

import (
	"fmt"
	"math/rand/v2"

	"coppice/vmtests/logwrites"
)

// Cut says which of an epoch's writes arrive.
type Cut struct {
	Mode Mode
	Seed uint64
}

// Mode is a way to choose writes.
type Mode string

// Modes. All but Nothing and Everything draw from the seed.
const (
	Nothing    Mode = "nothing"    // the power fails right after the flush
	Everything Mode = "everything" // and right before the next one is complete
	Prefix     Mode = "prefix"     // the first few arrive
	DropOne    Mode = "drop one"
	OnlyOne    Mode = "only one"
	Subset     Mode = "subset" // each arrives or not
	Torn       Mode = "torn"   // each arrives, or not, or some of its sectors do
)

// RandomModes are those that differ with the seed.
var RandomModes = []Mode{Prefix, DropOne, OnlyOne, Subset, Torn}

func (c Cut) String() string { return fmt.Sprintf("%s, seed %d", c.Mode, c.Seed) }

// choose returns for each write which of its sectors arrive; nil: none.
func (c Cut) choose(log *logwrites.Log, writes []int) [][]bool {
	rng := rand.New(rand.NewPCG(c.Seed, 1))
	keep := make([][]bool, len(writes))
	one := rng.IntN(len(writes) + 1) // of a prefix: how many; len(writes) has no meaning else
	for i, n := range writes {
		keep[i] = c.sectors(rng, i, one, log.Entries[n].Len/SectorBytes)
	}
	return keep
}

func (c Cut) sectors(rng *rand.Rand, i, one int, n int64) []bool {
	whole := false
	switch c.Mode {
	case Everything:
		whole = true
	case Prefix:
		whole = i < one
	case DropOne:
		whole = i != one
	case OnlyOne:
		whole = i == one
	case Subset:
		whole = rng.IntN(2) == 0
	case Torn:
		if rng.IntN(2) == 0 {
			return randomSectors(rng, n)
		}
		whole = rng.IntN(2) == 0
	}
	if !whole {
		return nil
	}
	all := make([]bool, n)
	for k := range all {
		all[k] = true
	}
	return all
}

// randomSectors tears a write: a prefix or a random set of its sectors.
func randomSectors(rng *rand.Rand, n int64) []bool {
	some := make([]bool, n)
	prefix, scattered := rng.Int64N(n+1), rng.IntN(2) == 0
	for k := range some {
		some[k] = int64(k) < prefix
		if scattered {
			some[k] = rng.IntN(2) == 0
		}
	}
	return some
}
