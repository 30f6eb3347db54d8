package ublktest

import "math/rand/v2"

// Cut makes of the disk what a power cut now leaves: the durable content, plus those 512-byte sectors of volatile
// writes that keep is true for, counted as [Disk.CrashWith] does. It costs what the volatile writes cost, and not what the
// size of the disk would; what was written past the hooks since the last Settle stays.
func (d *Disk) Cut(keep func(i, sector int) bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.volatile {
		end := w.Off + int64(len(w.Data))
		copy(d.content[w.Off:end], d.durable[w.Off:end])
	}
	for i, w := range d.volatile {
		for at := 0; at < len(w.Data); at += tearBytes {
			if keep(i, at/tearBytes) {
				end := min(at+tearBytes, len(w.Data))
				copy(d.content[w.Off+int64(at):], w.Data[at:end])
				d.persisted(w.Data[at:end], w.Off+int64(at))
			}
		}
	}
	clear(d.volatile)
	d.volatile = d.volatile[:0]
}

// CutSome is Cut with what rng keeps, chosen as [Disk.Crash] chooses.
func (d *Disk) CutSome(rng *rand.Rand) { d.Cut(d.someOf(rng)) }
