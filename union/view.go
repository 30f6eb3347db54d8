package union

// view is a sealed layer and all layers below it as one map, so that a look-up costs the same at any depth. It never
// changes. A region of the device that only one of the layers touches is that layer's own; only
// where several do, their entries are merged into the flat map of the view's layer, which a checkpoint writes to the store like
// any other.
type view struct {
	maps []*sectorMap // maps[0] is nil: no layer touches the region
	from []*viewPage  // by region, which of maps; nil: none
}

// viewPage says for each region of a directory page which map to ask. Views share the pages that they agree on.
type viewPage [dirWords]uint16

func (v *view) source(region uint64) *sectorMap {
	if p := v.from[region/dirWords]; p != nil {
		return v.maps[p[region%dirWords]]
	}
	return nil
}

// lookup resolves blocks that no layer above holds.
func (v *view) lookup(first uint64, out []mapping, sums []uint32) missing {
	for len(out) > 0 {
		n := int(min(uint64(len(out)), regionBlocks-first%regionBlocks))
		if m := v.source(first >> regionShift); m != nil {
			m.mu.Lock()
			ok := m.lookupRegion(first, out[:n], sums[:n])
			m.mu.Unlock()
			if !ok {
				return missing{m, first >> regionShift}
			}
		} else {
			clear(out[:n])
		}
		first += uint64(n)
		out, sums = out[n:], sums[n:]
	}
	return missing{}
}

// extendView begins the view of a sealed layer with the view of what it stands on (nil: the root alone), and flat, which may
// be nil. The caller sets the sources of the regions that the layer touches.
func extendView(m, flat *sectorMap, below *view) *view {
	if below == nil {
		below = &view{maps: []*sectorMap{nil}, from: make([]*viewPage, len(m.pages))}
	}
	v := &view{maps: append([]*sectorMap(nil), below.maps...), from: append([]*viewPage(nil), below.from...)}
	v.maps = append(v.maps, m, flat)
	return v
}

// own makes the page that a region is in this view's own.
func (v *view) own(below *view, region uint64) *viewPage {
	i := region / dirWords
	if v.from[i] == nil {
		v.from[i] = new(viewPage)
	} else if below != nil && v.from[i] == below.from[i] {
		c := *v.from[i]
		v.from[i] = &c
	}
	return v.from[i]
}

// touched calls f for each region that a map holds anything of.
func (m *sectorMap) touched(f func(region, word uint64) error) error {
	var words [dirWords]uint64
	for i := range m.pages {
		m.mu.Lock()
		p := m.pages[i]
		if p != nil {
			words = p.words
		}
		m.mu.Unlock()
		if p == nil {
			continue
		}
		for k, w := range words {
			if w == 0 {
				continue
			}
			if err := f(uint64(i)*dirWords+uint64(k), w); err != nil {
				return err
			}
		}
	}
	return nil
}

// reopenView makes the view of a layer whose flat map was complete when the store was opened.
func reopenView(m, flat *sectorMap, below *view) *view {
	v := extendView(m, flat, below)
	self := uint16(len(v.maps) - 2)
	_ = m.touched(func(region, _ uint64) error {
		v.own(below, region)[region%dirWords] = self
		return nil
	})
	if flat != nil {
		_ = flat.touched(func(region, _ uint64) error {
			v.own(below, region)[region%dirWords] = self + 1
			return nil
		})
	}
	return v
}

// buildView merges a sealed layer with the view of what it stands on. flat is called for the map that takes what several layers hold, when
// it is needed first.
func (s *Store) buildView(m *sectorMap, below *view, flat func() *sectorMap) (*view, error) {
	v := extendView(m, nil, below)
	self := uint16(len(v.maps) - 2)
	var records []record
	err := m.touched(func(region, word uint64) error {
		source := self
		if below != nil && below.source(region) != nil && word>>wordState != wordZero {
			var all bool
			var err error
			if records, all, err = s.overlay(m, below.source(region), region, records[:0]); err != nil {
				return err
			}
			if !all {
				if v.maps[self+1] == nil {
					v.maps[self+1] = flat()
				}
				v.maps[self+1].put(records)
				source = self + 1
				s.relieve()
			}
		}
		v.own(below, region)[region%dirWords] = source
		return nil
	})
	return v, err
}

// overlay lists what two maps hold of a region, the first above the second, or tells that the first holds all of it.
func (s *Store) overlay(m, under *sectorMap, region uint64, records []record) (_ []record, all bool, err error) {
	if err := s.load(m, region); err != nil {
		return records, false, err
	}
	m.mu.Lock()
	if m.word(region)>>wordState != wordPaged {
		all = m.holdsAll(region)
	}
	m.mu.Unlock()
	if all {
		return records, true, nil
	}
	if records, err = s.records(under, region, records); err != nil {
		return records, false, err
	}
	records, err = s.records(m, region, records)
	return records, false, err
}

// put brings records into a map whose superseded slots are others' business.
func (m *sectorMap) put(records []record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range records {
		m.apply(&records[i], nothingFreed)
	}
}

// relieve makes a checkpoint where flattening has made more entries than memory is for. The caller holds flattening alone.
func (s *Store) relieve() {
	if !s.pager.crowded() {
		return
	}
	// A failure is the store's, and shows where it is used.
	_ = s.Checkpoint()
	s.pager.trim()
}

// flatten builds the views that are missing, from the bottom up. Requests go on meanwhile.
func (s *Store) flatten() error {
	s.flattening.Lock()
	defer s.flattening.Unlock()
	for l := s.unflattened(); l != nil; l = s.unflattened() {
		var below *view
		if l.parent != nil {
			below = l.parent.view.Load()
		}
		if err := s.flattenLayer(l, below); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) flattenLayer(l *Layer, below *view) error {
	var v *view
	var err error
	if l.flatDone {
		v = reopenView(l.m, l.flat, below)
	} else if v, err = s.buildView(l.m, below, func() *sectorMap { return s.newFlat(l) }); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l.flatDone = true
	l.view.Store(v)
	return nil
}

// newFlat makes the flat map of a layer.
func (s *Store) newFlat(l *Layer) *sectorMap {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.flat = newSectorMap(s.pager, s.sb.NextLayer, l.blocks())
	s.sb.NextLayer++
	return l.flat
}

// unflattened returns a sealed layer without a view whose parent has one.
func (s *Store) unflattened() *Layer {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.inOrder() {
		if l.entry.Sealed && l.view.Load() == nil && (l.parent == nil || l.parent.view.Load() != nil) {
			return l
		}
	}
	return nil
}

// dropView gives up the view and the flat map of a layer, which is to change. The caller holds flattening and mu.
func (s *Store) dropView(l *Layer) {
	l.view.Store(nil)
	l.flatDone, l.flatStored = false, false
	if l.flat == nil {
		return
	}
	e := l.flat.entry()
	s.stale = append(s.stale, e.slots()...)
	l.dropFlat()
}
