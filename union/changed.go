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
		read := l.store.newReader()
		defer read.close()
		var run ChangedExtent
		emit := func() bool {
			if run.Len == 0 {
				return true
			}
			run.Len = min(run.Len, size-run.Off)
			return yield(run, nil)
		}
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
				yield(ChangedExtent{}, err)
				return
			}
			for i, m := range maps[:n] {
				off := int64(first+uint64(i)) << blockShift
				switch {
				case m == mapAbsent:
				case run.Len > 0 && run.Off+run.Len == off && run.Zero == (m == mapZero):
					run.Len += blockSize
				default:
					if !emit() {
						return
					}
					run = ChangedExtent{off, blockSize, m == mapZero}
				}
			}
		}
		emit()
	}
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
