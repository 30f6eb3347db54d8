package union

import (
	"bytes"
	"fmt"
	"slices"
)

// Values of a sector. Each write has a stamp of its own, from firstStamp on.
const (
	valueZero  = uint32(0)
	valueRoot  = uint32(1) // what the root holds there
	firstStamp = uint32(2)
	valueVoid  = ^uint32(0) // of a write that was refused: it is nowhere
)

// content is what the sectors of a device may hold: one value each, but for those that were written since the device was last
// compared with it.
type content struct {
	settled []uint32
	open    map[int]*sectorValues
}

// sectorValues are the values that a sector was given, in order of submission.
type sectorValues struct {
	values []uint32
	acked  int  // index of the newest that was acknowledged
	floor  int  // index of the oldest that may be found after a power cut
	busy   bool // a request that changes the sector is in flight
}

// legal says which values may be found: those from a sector's acked, or its floor, on.
type legal func(v *sectorValues) (from int)

func sinceAcked(v *sectorValues) int { return v.acked }
func sinceFloor(v *sectorValues) int { return v.floor }

func newContent(sizeBytes int64) *content {
	c := &content{settled: make([]uint32, sizeBytes/sector), open: map[int]*sectorValues{}}
	for s := range c.settled {
		c.settled[s] = valueRoot
	}
	return c
}

func (c *content) clone() *content {
	n := &content{settled: slices.Clone(c.settled), open: make(map[int]*sectorValues, len(c.open))}
	for s, v := range c.open {
		n.open[s] = &sectorValues{values: slices.Clone(v.values), acked: v.acked, floor: v.floor}
	}
	return n
}

// at returns the values of a sector, to change them.
func (c *content) at(s int) *sectorValues {
	v := c.open[s]
	if v == nil {
		v = &sectorValues{values: []uint32{c.settled[s]}}
		c.open[s] = v
	}
	return v
}

func (c *content) busy(first, count int) bool {
	for s := first; s < first+count; s++ {
		if v := c.open[s]; v != nil && v.busy {
			return true
		}
	}
	return false
}

// change notes that a request in flight gives the sectors a value, and returns what to call when it has ended: how tells whether it
// was acknowledged, refused without a trace, or neither.
func (c *content) change(first, count int, value uint32) (ended func(how outcome, durable bool)) {
	index := make([]int, count)
	for i := range count {
		v := c.at(first + i)
		v.busy = true
		index[i] = len(v.values)
		v.values = append(v.values, value)
	}
	return func(how outcome, durable bool) {
		for i := range count {
			v := c.open[first+i]
			v.busy = false
			switch how {
			case refused:
				v.values[index[i]] = valueVoid
			case acknowledged:
				v.acked = index[i]
				if durable {
					v.floor = max(v.floor, index[i])
				}
			}
			c.settle(first + i)
		}
	}
}

// outcome is how a request ended.
type outcome int

const (
	acknowledged outcome = iota
	refused              // it had no effect
	failed               // it may have had one
)

// settle forgets the values that cannot be found any more.
func (c *content) settle(s int) {
	v := c.open[s]
	last := len(v.values) - 1
	for last > v.acked && v.values[last] == valueVoid {
		last--
	}
	if !v.busy && v.floor == last {
		c.settled[s] = v.values[last]
		delete(c.open, s)
	}
}

// covered returns what to call when a flush that begins now has been acknowledged.
func (c *content) covered() (durable func()) {
	acked := make(map[int]*sectorValues, len(c.open))
	index := make(map[int]int, len(c.open))
	for s, v := range c.open {
		acked[s], index[s] = v, v.acked
	}
	return func() {
		for s, v := range acked {
			if c.open[s] != v {
				continue
			}
			v.floor = max(v.floor, index[s])
			c.settle(s)
		}
	}
}

// sealed is what a layer holds that was sealed now: all that was acknowledged, and what is in flight or not.
func (c *content) sealed() *content {
	n := &content{settled: slices.Clone(c.settled), open: map[int]*sectorValues{}}
	for s, v := range c.open {
		n.open[s] = &sectorValues{values: slices.Clone(v.values[v.acked:])}
		n.settle(s)
	}
	return n
}

// writeSector fills p with what a value stands for.
func writeSector(p []byte, s int, value uint32, root []byte) {
	switch value {
	case valueZero:
		clear(p)
	case valueRoot:
		n := 0
		if off := s * sector; off < len(root) {
			n = copy(p, root[off:])
		}
		clear(p[n:])
	default:
		fill(p, uint64(value)<<32|uint64(s))
	}
}

// compare tells how p, which begins with sector first, differs from every legal content, or nil. With narrow, what was found is
// the only legal content from then on.
func (c *content) compare(p []byte, first int, root []byte, from legal, narrow bool) error {
	var want [sector]byte
	for i := 0; i*sector < len(p); i++ {
		s := first + i
		got := p[i*sector : (i+1)*sector]
		v := c.open[s]
		if v == nil {
			if off := s * sector; c.settled[s] == valueRoot && off+sector <= len(root) {
				if bytes.Equal(got, root[off:off+sector]) {
					continue
				}
			}
			writeSector(want[:], s, c.settled[s], root)
			if !bytes.Equal(got, want[:]) {
				return fmt.Errorf("sector %d is not %s but begins with %x", s, valueName(c.settled[s]), got[:16])
			}
			continue
		}
		found := -1
		for k := len(v.values) - 1; k >= from(v) && found < 0; k-- {
			if v.values[k] == valueVoid {
				continue
			}
			if writeSector(want[:], s, v.values[k], root); bytes.Equal(got, want[:]) {
				found = k
			}
		}
		if found < 0 {
			return fmt.Errorf("sector %d is none of %s but begins with %x", s, valueNames(v.values[from(v):]), got[:16])
		}
		if narrow {
			c.settled[s] = v.values[found]
			delete(c.open, s)
		}
	}
	return nil
}

func valueNames(values []uint32) string {
	names := ""
	for i, v := range values {
		if i > 0 {
			names += ", "
		}
		names += valueName(v)
	}
	return names
}

func valueName(v uint32) string {
	switch v {
	case valueZero:
		return "zeros"
	case valueRoot:
		return "the root's"
	case valueVoid:
		return "a refused write"
	}
	return fmt.Sprintf("write %d", v)
}
