package ublktest

import (
	"math/bits"
	"math/rand/v2"
)

const tearBytes = 512 // what a disk writes whole or not at all

// Volatile returns the writes that a power cut may lose, in the order in which they were
// executed. The records are the Disk's: not to be changed.
func (d *Disk) Volatile() []*WriteRecord {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]*WriteRecord(nil), d.volatile...)
}

// Durable returns what a power cut leaves at least: the content without the writes that Volatile returns. It is the
// Disk's own memory: not to be changed, and not to be read while something else uses the Disk.
func (d *Disk) Durable() []byte { return d.durable }

// TakeDurable returns the blocks of 4 KiB of the durable image that were written to since it was called last.
func (d *Disk) TakeDurable() (blocks []int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, w := range d.fresh {
		for ; w != 0; w &= w - 1 {
			blocks = append(blocks, i*64+bits.TrailingZeros64(w))
		}
		d.fresh[i] = 0
	}
	return blocks
}

// CrashWith returns a new disk as a power cut now could leave it: the durable content, plus those
// 512-byte sectors of volatile writes that keep is true for. i counts the writes as
// [Disk.Volatile] does, sector those of the write from its beginning.
func (d *Disk) CrashWith(keep func(i, sector int) bool) (*Disk, error) {
	c, err := NewDisk(d.name, d.Size())
	if err != nil {
		return nil, err
	}
	c.align = d.align
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(c.content, d.durable)
	for i, w := range d.volatile {
		for at := 0; at < len(w.Data); at += tearBytes {
			if keep(i, at/tearBytes) {
				end := min(at+tearBytes, len(w.Data))
				copy(c.content[w.Off+int64(at):], w.Data[at:end])
			}
		}
	}
	copy(c.durable, c.content)
	return c, nil
}

// Crash returns a new disk as a power cut now could leave it, chosen by rng: none, all, a prefix or a
// random subset of the volatile writes, some of them torn.
func (d *Disk) Crash(rng *rand.Rand) (*Disk, error) { return d.CrashWith(d.someOf(rng)) }

// someOf chooses which sectors of the volatile writes are kept.
func (d *Disk) someOf(rng *rand.Rand) (keep func(i, sector int) bool) {
	n := len(d.Volatile())
	share := []float64{0, 0.1, 0.5, 0.9, 1}[rng.IntN(5)]
	torn := []float64{0, 0.3}[rng.IntN(2)]
	prefix := n
	if rng.IntN(3) == 0 {
		prefix = rng.IntN(n + 1)
	}
	kept := make([]bool, n)
	tear := make([]bool, n)
	for i := range kept {
		kept[i] = i < prefix && rng.Float64() < share
		tear[i] = rng.Float64() < torn
	}
	return func(i, _ int) bool {
		if tear[i] && i < prefix {
			return rng.IntN(2) == 0
		}
		return kept[i]
	}
}

// Clone returns a copy of the disk with everything in it durable.
func (d *Disk) Clone() (*Disk, error) {
	return d.CrashWith(func(int, int) bool { return true })
}
