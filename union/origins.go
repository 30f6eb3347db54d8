package union

// Origins are the places that the data of a request came from: a set, in which a higher bit stands for a place that is farther away. A device says them of each
// request, before it is answered, to who looks at it from outside ([ublk.Request.Mark]). Of a write, the leaf is where the data goes to, and the others are those
// that the rest of a block came from that was written in part. The numbers are an interface: eBPF programs have them.
type Origins uint8

// The places, the nearest first.
const (
	FromZeros Origins = 1 << iota // nowhere
	FromLeaf
	FromBranch    // a sealed layer below the leaf
	FromMemory    // the root, in memory
	FromDisk      // the root, on a disk of this machine that keeps parts of it
	FromPeers     // the root, from other machines
	FromAppliance // the root, from one that keeps it for others
	FromRoot      // the root itself
)

// note adds where blocks that were looked up are: in the layer itself, or below.
func (f *Origins) note(own, all int) {
	if own > 0 {
		*f |= FromLeaf
	}
	if all > own {
		*f |= FromBranch
	}
}

// countData counts the blocks that are in slots.
func countData(maps []mapping) (n int) {
	for _, m := range maps {
		if m.isData() {
			n++
		}
	}
	return n
}
