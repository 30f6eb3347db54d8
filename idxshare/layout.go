package idxshare

import (
	"errors"
	"fmt"
	"slices"
)

// laidVolume is a volume where it lies now, and what changed of it, in blocks of its file system.
type laidVolume struct {
	Volume
	changed blockSet
}

// tableBytes is how much at the beginning of a device may be a partition table, also where a file system has all of it.
const tableBytes = 2 * 4096

// isExt tells whether deltas are made of file systems of a type.
func isExt(kind string) bool { return slices.Contains([]string{"ext2", "ext3", "ext4"}, kind) }

// layout returns the file systems as they lie now, with what changed of each. The partition table is read again where something changed that may be a part of it, or where something was missing the last time.
func (d *deltaMaker) layout() ([]laidVolume, error) {
	var laid []laidVolume
	for _, r := range d.before.volumes {
		laid = append(laid, laidVolume{Volume: r.Volume})
	}
	again := slices.ContainsFunc(laid, d.wasGone)
	var ranges []ByteRange
	for r, err := range d.in.Changed {
		if err != nil {
			return nil, err
		}
		ranges = append(ranges, r)
		again = again || r.Off < tableBytes || !slices.ContainsFunc(laid, func(v laidVolume) bool { return v.Start <= r.Off && r.Off+r.Len <= v.Start+v.Length })
	}
	if again {
		var err error
		if laid, err = d.relay(laid); err != nil {
			return nil, err
		}
	}
	for i := range laid {
		v := &laid[i]
		bs := int64(v.BlockSize)
		var found blockSet
		for _, r := range ranges {
			if first, end := max(r.Off, v.Start)-v.Start, min(r.Off+r.Len, v.Start+v.Length)-v.Start; first < end {
				found.add(blockRange{first / bs, (end+bs-1)/bs - first/bs})
			}
		}
		v.changed = found.with(v.changed)
	}
	return laid, nil
}

// wasGone tells whether there was nothing in a volume the last time: then it has no UUID, which it has in the base, if it is there.
func (d *deltaMaker) wasGone(v laidVolume) bool {
	return v.UUID == "" && !slices.ContainsFunc(d.in.Base.volumes, func(b *ranged) bool { return b.ID == v.ID && b.UUID == "" })
}

// relay compares the volumes with the partition table. Of those that are new, or have another length, the first block counts as changed, so that they are looked at.
func (d *deltaMaker) relay(laid []laidVolume) ([]laidVolume, error) {
	parts, err := partitions(d.content, d.in.Size)
	if errors.Is(err, ErrPartitions) {
		d.report.Table = err.Error()
		return laid, nil
	}
	if err != nil {
		return nil, err
	}
	next := 0
	for i := range laid {
		v := &laid[i]
		next = max(next, v.ID+1)
		n := slices.IndexFunc(parts, func(p part) bool { return p.start == v.Start })
		if n < 0 {
			v.Type = vanished
			continue
		}
		p := parts[n]
		parts = slices.Delete(parts, n, n+1)
		if v.Length == p.length && v.Partition == p.number && v.Type != vanished && !d.wasGone(*v) {
			continue
		}
		v.Length, v.Partition, v.changed = p.length, p.number, blockSet{{0, 1}}
		if v.Type == vanished {
			v.Type = "ext4" // which is looked at
		}
	}
	for _, p := range parts {
		kind, err := probe(d.content, p)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
		if kind != "ext4" || next >= MaxVolumes {
			d.report.LeftOut = append(d.report.LeftOut, LeftOut{Partition: p.number, Start: p.start, Length: p.length, Type: kind, Why: "it is new, and no ext2, ext3 or ext4, or one too many"})
			continue
		}
		laid = append(laid, laidVolume{Volume{ID: next, Partition: p.number, Start: p.start, Length: p.length, Type: kind, BlockSize: readUnit, Mapped: true}, blockSet{{0, 1}}})
		next++
	}
	return laid, nil
}
