package union

// view is a sealed layer and all layers below it as one map, so that a look-up costs the same at any depth. It never
// changes. A region of the device that only one of the layers touches is that layer's own; only
// where several do, their entries are merged into a map of the view's.
type view struct {
	maps []*sectorMap // maps[0] is nil: no layer touches the region
	from []uint16     // by region, which of maps
}

// lookup resolves blocks that no layer above holds.
func (v *view) lookup(first uint64, out []mapping, sums []uint32) {
	for len(out) > 0 {
		n := int(min(uint64(len(out)), regionBlocks-first%regionBlocks))
		if m := v.maps[v.from[first>>regionShift]]; m != nil {
			m.lookupRegion(first, out[:n], sums[:n])
		} else {
			clear(out[:n])
		}
		first += uint64(n)
		out, sums = out[n:], sums[n:]
	}
}

// buildView merges a sealed layer with the view of what it stands on (nil: the root alone).
func buildView(m *sectorMap, below *view) *view {
	if below == nil {
		below = &view{maps: []*sectorMap{nil}, from: make([]uint16, len(m.dir))}
	}
	v := &view{maps: append([]*sectorMap(nil), below.maps...), from: append([]uint16(nil), below.from...)}
	v.maps = append(v.maps, m)
	self := uint16(len(v.maps) - 1)
	var merged *sectorMap
	var records []record
	for r, d := range m.dir {
		if d == 0 {
			continue
		}
		under := v.maps[v.from[r]]
		if under == nil || d&dirZero != 0 || m.holdsAll(uint64(r)) {
			v.from[r] = self
			continue
		}
		if merged == nil {
			merged = newSectorMap(m.blocks)
			v.maps = append(v.maps, merged)
		}
		records = under.region(uint64(r), 0, records[:0])
		records = m.region(uint64(r), 0, records)
		for i := range records {
			merged.apply(&records[i], nothingFreed)
		}
		v.from[r] = self + 1
	}
	return v
}

// holdsAll tells whether every block of a region has an entry.
func (m *sectorMap) holdsAll(region uint64) bool {
	d := m.dir[region]
	if d&dirArray == 0 {
		return d&dirZero != 0
	}
	return uint64(m.arrayAt(d&dirMask).count()) == min(regionBlocks, m.blocks-region<<regionShift)
}

// flatten builds the views that are missing, from the bottom up. Requests go on meanwhile.
func (s *Store) flatten() {
	s.flattening.Lock()
	defer s.flattening.Unlock()
	for l := s.unflattened(); l != nil; l = s.unflattened() {
		var below *view
		if l.parent != nil {
			below = l.parent.view.Load()
		}
		v := buildView(l.m, below)
		s.mu.Lock()
		if l.entry.Sealed { // and not merged with the layer above since
			l.view.Store(v)
		}
		s.mu.Unlock()
	}
}

// unflattened returns a sealed layer without a view whose parent has one.
func (s *Store) unflattened() *Layer {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.layers {
		if l.entry.Sealed && l.view.Load() == nil && (l.parent == nil || l.parent.view.Load() != nil) {
			return l
		}
	}
	return nil
}
