package union

import "iter"

// ChangedExtent is a range of a device, in bytes, that does not come from its root.
type ChangedExtent struct {
	Off  int64 `json:"off"`
	Len  int64 `json:"len"`
	Zero bool  `json:"zero"` // discarded or zeroed
}

// Changed goes through what the layer and those below it hold, in order, whole 4 KiB blocks joined where they
// are neighbours of one kind; the last one ends with the device. A layer that is written to meanwhile is seen
// region by region (4 MiB): freeze it for a consistent picture.
//
// The error, which comes with no extent and ends it, is of reading the store.
func (l *Layer) Changed() iter.Seq2[ChangedExtent, error] {
	return func(yield func(ChangedExtent, error) bool) {
		size := l.SizeBytes()
		var run ChangedExtent
		emit := func() bool {
			if run.Len == 0 {
				return true
			}
			run.Len = min(run.Len, size-run.Off)
			return yield(run, nil)
		}
		more, err := l.eachChanged(func(block uint64, m mapping, _ uint32) bool {
			off := int64(block) << blockShift
			if run.Len > 0 && run.Off+run.Len == off && run.Zero == (m == mapZero) {
				run.Len += blockSize
				return true
			}
			if !emit() {
				return false
			}
			run = ChangedExtent{off, blockSize, m == mapZero}
			return true
		})
		switch {
		case err != nil:
			yield(ChangedExtent{}, err)
		case more:
			emit()
		}
	}
}

// BlockPrint is a block of a device, by its number, with a print of what it holds.
type BlockPrint struct {
	Block uint64
	Print uint64
}

// Prints goes through the blocks of 4 KiB that do not come from the root, in order, as [Layer.Changed]. A block that has another content than in an earlier pass, of
// this layer or of one that it was frozen into, has another print: what is written goes to another place of the store, and where it came back to the same
// place its checksum differs, but for one in 2^32. The reverse does not hold. Zeros have print 0.
func (l *Layer) Prints() iter.Seq2[BlockPrint, error] {
	return func(yield func(BlockPrint, error) bool) {
		_, err := l.eachChanged(func(block uint64, m mapping, sum uint32) bool {
			p := BlockPrint{Block: block}
			if m.isData() {
				p.Print = (m.slot()+1)<<32 | uint64(sum)
			}
			return yield(p, nil)
		})
		if err != nil {
			yield(BlockPrint{}, err)
		}
	}
}

// eachChanged calls f for each block that the layer or one below it holds, with its checksum, until f returns false; more tells that it did not.
func (l *Layer) eachChanged(f func(block uint64, m mapping, sum uint32) bool) (more bool, err error) {
	read := l.store.newReader()
	defer read.close()
	maps := make([]mapping, regionBlocks)
	sums := make([]uint32, regionBlocks)
	for first := uint64(0); first < l.blocks(); first += regionBlocks {
		if !l.touches(first >> regionShift) {
			continue
		}
		n := min(regionBlocks, l.blocks()-first)
		epoch := read.enter()
		err := l.resolve(first, maps[:n], sums[:n])
		read.exit(epoch)
		if err != nil {
			return false, err
		}
		for i, m := range maps[:n] {
			if m != mapAbsent && !f(first+uint64(i), m, sums[i]) {
				return false, nil
			}
		}
	}
	return true, nil
}

func (l *Layer) blocks() uint64 { return (uint64(l.SizeBytes()) + blockSize - 1) >> blockShift }

// touches tells whether the layer or one below it holds anything of a region.
func (l *Layer) touches(region uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	m, p := l.m, l.parent
	for !m.touches(region) {
		if p == nil {
			return false
		}
		m, p = p.content()
	}
	return true
}
