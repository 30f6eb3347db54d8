package cache

import "math/bits"

// ghosts remembers about as many of the names that went from the small queue as there are slots. It has no pointers: 32 bits of a name, and the
// number of its going. Two that look alike do no harm. The zero value is empty.
type ghosts struct {
	entries []uint64
	slots   int
	gone    uint32
}

// ghostWays is how many places a key may be at.
const ghostWays = 4

// ghostBytes is what a slot adds to ghosts at most.
const ghostBytes = 16

func (g *ghosts) places(name uint64) []uint64 {
	h := name >> 32 & uint64(len(g.entries)/ghostWays-1)
	return g.entries[h*ghostWays:][:ghostWays]
}

// fit makes room for the ghosts of so many slots. What was there is forgotten.
func (g *ghosts) fit(slots int) {
	n := max(ghostWays, 1<<bits.Len(uint(slots-1)))
	if n != len(g.entries) {
		g.entries = make([]uint64, n)
	}
	g.slots = slots
}

// add remembers a name, in the place of the oldest.
func (g *ghosts) add(name uint64, slots int) {
	if g.slots != slots {
		g.fit(slots)
	}
	g.gone++
	places := g.places(name)
	oldest := 0
	for i, e := range places {
		if e == 0 {
			oldest = i
			break
		}
		if g.age(e) > g.age(places[oldest]) {
			oldest = i
		}
	}
	places[oldest] = name<<32 | uint64(g.gone)
}

func (g *ghosts) age(e uint64) uint32 { return g.gone - uint32(e) }

// take reports whether one of that name went not long ago, and forgets it.
func (g *ghosts) take(name uint64) bool {
	if g.entries == nil {
		return false
	}
	places := g.places(name)
	for i, e := range places {
		if e != 0 && e&tagMask == name<<32 {
			places[i] = 0
			return g.age(e) <= uint32(g.slots)
		}
	}
	return false
}
