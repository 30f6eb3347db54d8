package union

import (
	"fmt"
	"slices"
	"time"
)

// maps reads what the store has of the maps of a layer. Pages of a directory are in memory, and written anew where they are
// damaged.
func (p *scrubbing) maps(l *Layer) error {
	damaged := false
	p.s.mu.Lock()
	own, flat := l.m, l.flat
	p.s.mu.Unlock()
	for _, m := range [...]*sectorMap{own, flat} {
		if m == nil {
			continue
		}
		bad, err := p.directory(l, m)
		if err != nil {
			return err
		}
		damaged = damaged || bad
		if bad, err = p.segments(l, m); err == nil && bad && m == flat {
			err = p.rebuild(l)
		}
		if err != nil {
			return err
		}
	}
	if !damaged {
		return nil
	}
	return p.s.Checkpoint()
}

// held locks the store and reports whether the map is still that of the layer.
func (p *scrubbing) held(l *Layer, m *sectorMap) bool {
	p.s.mu.Lock()
	if p.s.layers[l.entry.Name] == l && (l.m == m || l.flat == m) {
		return true
	}
	p.s.mu.Unlock()
	return false
}

func (p *scrubbing) directory(l *Layer, m *sectorMap) (damaged bool, err error) {
	for i := range m.pages {
		if err := p.ctx.Err(); err != nil {
			return damaged, err
		}
		began := time.Now()
		if !p.held(l, m) {
			return damaged, nil
		}
		read, bad := p.page(l, m, i)
		p.s.mu.Unlock()
		damaged = damaged || bad
		if read {
			p.pace.wait(p.ctx, p.s, blockSize, time.Since(began))
		}
	}
	return damaged, nil
}

// page reads one page of a directory. The caller holds mu: no checkpoint writes it elsewhere meanwhile.
func (p *scrubbing) page(l *Layer, m *sectorMap, index int) (read, damaged bool) {
	m.mu.Lock()
	page := m.pages[index]
	if page == nil || page.slot == noSlot {
		m.mu.Unlock()
		return false, false
	}
	off, sum := p.s.sb.slotOffset(page.slot), page.sum
	m.mu.Unlock()
	var h mapHeader
	q := p.buf[:blockSize]
	_, err := p.s.disk.ReadAt(q, off)
	if err == nil {
		err = h.decode(q, off)
	}
	if err == nil && le.Uint32(q[logSumField:]) == sum {
		return true, false
	}
	name := p.names[l.entry.Number]
	p.found(Problem{"directory", off, fmt.Sprintf("layer %q: page %d is damaged", name, index), true}, name)
	m.mu.Lock()
	m.changed(uint64(index) * dirWords)
	m.mu.Unlock()
	return true, true
}

// rebuild has the flat map of a layer, and those above that were made with it, made again from the layers' own.
func (p *scrubbing) rebuild(l *Layer) error {
	s := p.s
	s.flattening.Lock()
	defer s.flattening.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, above := range s.inOrder() {
		if above.entry.Sealed && above.standsOn(l) {
			s.dropView(above)
		}
	}
	s.wakeBackground()
	return s.checkpointLocked()
}

// segments reads the records of regions. Those of a layer's own map are nowhere else; those of a flat map can be made again.
func (p *scrubbing) segments(l *Layer, m *sectorMap) (damaged bool, err error) {
	p.s.mu.Lock()
	all := slices.Clone(m.store.segments)
	p.s.mu.Unlock()
	for _, seg := range all {
		index := uint32(0)
		for _, e := range seg.extents {
			for done := uint32(0); done < e.Count; {
				if err := p.ctx.Err(); err != nil {
					return damaged, err
				}
				began := time.Now()
				if !p.held(l, m) {
					return damaged, nil
				}
				n := min(e.Count-done, slotCheckBlocks)
				live := slices.Contains(m.store.segments, seg)
				if live && p.segment(l, m, seg, e.Slot+uint64(done), n, index) {
					damaged = true
				}
				p.s.mu.Unlock()
				if !live {
					break
				}
				done += n
				index += n
				p.pace.wait(p.ctx, p.s, int64(n)<<blockShift, time.Since(began))
			}
		}
	}
	return damaged, nil
}

// segment reads n blocks of a segment that lie in one piece.
func (p *scrubbing) segment(l *Layer, m *sectorMap, seg *segment, slot uint64, n, index uint32) (damaged bool) {
	s := p.s
	q := p.buf[:n<<blockShift]
	off := s.sb.slotOffset(slot)
	s.readCopy(q, off)
	for i := range n {
		at := off + int64(i)<<blockShift
		if err := s.checkMapBlock(m, q[i<<blockShift:][:blockSize], index+i, seg.generation, at); err != nil {
			damaged = true
			name, what := p.names[l.entry.Number], "map"
			if m == l.flat {
				what = "flat map"
			}
			p.found(Problem{"map", at, fmt.Sprintf("layer %q: block %d of a segment of its %s is damaged", name, index+i, what), m == l.flat}, name)
		}
	}
	return damaged
}

// bitmap reads the pages of the bitmap of owned slots, which are in memory, and are written anew where they are damaged.
func (p *scrubbing) bitmap() error {
	s := p.s
	s.mu.Lock()
	defer s.mu.Unlock()
	damaged := false
	for i := range s.slots.pages {
		page := &s.slots.pages[i]
		if page.slot == noSlot {
			continue
		}
		off := s.sb.slotOffset(page.slot)
		q := p.buf[:blockSize]
		if _, err := s.disk.ReadAt(q, off); err == nil && pageChecksum(q) == page.sum {
			continue
		}
		damaged = true
		p.found(Problem{"bitmap", off, fmt.Sprintf("page %d is damaged", i), true}, "")
		s.slots.mu.Lock()
		if !page.dirty {
			page.dirty = true
			s.slots.dirty.Add(1)
		}
		s.slots.mu.Unlock()
	}
	if !damaged {
		return nil
	}
	return s.checkpointLocked()
}

// holds tells whether the layer itself has anything in a region.
func (l *Layer) holds(region uint64) bool {
	m, _ := l.content()
	return m.touches(region)
}
