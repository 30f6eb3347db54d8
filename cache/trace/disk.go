package trace

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
)

// blockBytes is the unit in which a [Disk] is read.
const blockBytes = 4 << 10

// Disk is a disk that is made up. It is safe for concurrent use.
type Disk struct {
	Bytes  int64  // a multiple of 4 KiB
	Stored int    // percent that compressing leaves of the data
	Seed   uint64 // disks with different ones have nothing in common
	// Held has the numbers of the units of [UnitBytes] that are not zeros. nil means all of them.
	Held map[int64]bool
}

// NewDisk returns a disk that has data where a trace's disk has data, which compresses as well, and zeros elsewhere.
func NewDisk(t *Trace) *Disk { return &Disk{t.Size, t.Stored, 1, t.Held(UnitBytes)} }

// ReadAt fills p. Offset and length are multiples of 4 KiB, and lie within the disk.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if off%blockBytes != 0 || len(p)%blockBytes != 0 || off < 0 || off+int64(len(p)) > d.Bytes {
		return 0, fmt.Errorf("%d bytes at %d of a disk of %d", len(p), off, d.Bytes)
	}
	clear(p)
	for i := 0; i < len(p); i += blockBytes {
		at := off + int64(i)
		if d.Held != nil && !d.Held[at/UnitBytes] {
			continue
		}
		rng := rand.NewPCG(d.Seed, uint64(at))
		for noise := p[i:][:blockBytes*d.Stored/100]; len(noise) >= 8; noise = noise[8:] {
			binary.LittleEndian.PutUint64(noise, rng.Uint64())
		}
	}
	return len(p), nil
}

// Beginning is the first reads of a trace, on a disk that has the chunks of a size that are read there, and after them three times as much other data.
func (t *Trace) Beginning(reads int, chunk int64) *Trace {
	reads = min(reads, len(t.Reads))
	used := map[int64]int64{}
	for _, r := range t.Reads[:reads] {
		for i := r.Off / chunk; i*chunk < r.Off+r.Len; i++ {
			used[i] = 0
		}
	}
	order := slices.Sorted(maps.Keys(used))
	for at, i := range order {
		used[i] = int64(at) * chunk
	}
	n := int64(len(order)) * chunk
	out := &Trace{About: t.About, Size: 4 * n, Stored: t.Stored, Prompt: t.Prompt}
	held := t.Held(UnitBytes)
	for _, i := range order {
		for at := int64(0); at < chunk; at += UnitBytes {
			if held[(i*chunk+at)/UnitBytes] {
				out.Data = joined(out.Data, Extent{Off: used[i] + at, Len: UnitBytes})
			}
		}
	}
	out.Data = joined(out.Data, Extent{Off: n, Len: 3 * n})
	for _, r := range t.Reads[:reads] {
		r.Off = used[r.Off/chunk] + r.Off%chunk
		out.Reads = append(out.Reads, r)
	}
	return out
}

// joined adds an extent behind others, to the last one where it follows that.
func joined(all []Extent, e Extent) []Extent {
	if n := len(all); n > 0 && all[n-1].Off+all[n-1].Len == e.Off {
		all[n-1].Len += e.Len
		return all
	}
	return append(all, e)
}
