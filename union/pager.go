package union

import (
	"sync"
	"sync/atomic"
)

// pager bounds the memory that the entries of all sector maps of a store take together. Entries whose
// records on the store are as new as they are can be forgotten: those that nobody looked into for longest, roughly, by
// the second-chance rule (Corbató, "A Paging Experiment with the Multics System", 1968).
type pager struct {
	arena *arena
	limit int64 // bytes of arrays in memory that it tries to stay below

	dirtyRegions atomic.Int64 // with entries that no record holds yet
	dirtyBytes   atomic.Int64 // that their records will take
	dirtyPages   atomic.Int64 // of directories
	pages        atomic.Int64 // of directories, all
	count        atomic.Int64 // of maps
	misses       atomic.Uint64
	pins         atomic.Int32 // while positive, nothing is forgotten

	mu   sync.Mutex // taken before a map's
	maps []*sectorMap
	next int // map at which eviction goes on
}

const (
	// mapMemory is the size in bytes of the entries in memory, of all layers of a store, that is tried to stay below. What a
	// checkpoint has not written yet comes on top where it must.
	mapMemory = 48 << 20
	// maxDirtyRegions asks for a checkpoint: a recovery has to load the records of as many regions.
	maxDirtyRegions = 256 << 10
	// trimBytes is more than any load brings in.
	trimBytes = 64 << 10
	// evictionBatch is how many directory pages are looked at under a map's lock.
	evictionBatch = 8
)

func newPager() *pager { return &pager{arena: newArena(), limit: mapMemory} }

func (p *pager) add(m *sectorMap) {
	p.mu.Lock()
	p.maps = append(p.maps, m)
	p.mu.Unlock()
	p.count.Add(1)
}

func (p *pager) remove(m *sectorMap) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, x := range p.maps {
		if x == m {
			last := len(p.maps) - 1
			p.maps[i] = p.maps[last]
			p.maps[last] = nil
			p.maps = p.maps[:last]
			p.count.Add(-1)
			return
		}
	}
}

// crowded tells that a checkpoint should write what is dirty.
func (p *pager) crowded() bool {
	return p.dirtyRegions.Load() > maxDirtyRegions || p.arena.used.Load() > p.limit && p.dirtyRegions.Load() > maxDirtyRegions/64
}

// trim forgets entries until they fit the limit, trimBytes at most, or until it has looked at each once: what was just loaded is
// left for those who want it.
func (p *pager) trim() {
	if p.arena.used.Load() <= p.limit || p.pins.Load() > 0 || !p.mu.TryLock() {
		return
	}
	defer p.mu.Unlock()
	target := max(p.limit/16*15, p.arena.used.Load()-trimBytes)
	for range len(p.maps) {
		if p.next >= len(p.maps) {
			p.next = 0
		}
		m := p.maps[p.next]
		for done := 0; done < len(m.pages); done += evictionBatch {
			if p.pins.Load() > 0 || p.arena.used.Load() <= target {
				return
			}
			m.mu.Lock()
			m.evict(evictionBatch, target)
			m.mu.Unlock()
		}
		p.next++
	}
}

// evict looks at some pages of the directory and forgets the entries that were not looked into since the last time.
func (m *sectorMap) evict(pages int, target int64) {
	if m.held == 0 || m.pager.pins.Load() > 0 {
		return
	}
	for range pages {
		if m.hand >= m.regions() {
			m.hand = 0
		}
		first := m.hand - m.hand%dirWords
		p := m.pages[first/dirWords]
		if p == nil {
			m.hand = first + dirWords
			continue
		}
		for i := m.hand - first; i < dirWords; i++ {
			m.hand = first + i + 1
			w := p.words[i]
			if w>>wordState != wordArray {
				continue
			}
			a := m.arrayOf(w)
			switch {
			case a.has(flagDirty) || a.place() == 0:
			case a.has(flagRead):
				a.unflag(flagRead)
			default:
				m.setWord(first+i, wordPaged<<wordState|uint64(a.place()))
				m.freeArray(w)
				if m.pager.arena.used.Load() <= target {
					return
				}
			}
		}
	}
}

// loading is a load under way, for others that want the same region.
type loading struct {
	done chan struct{}
	err  error
}

// load brings the entries of a region into memory. It blocks, and must be called with no lock held that a request needs.
func (s *Store) load(m *sectorMap, region uint64) error {
	m.mu.Lock()
	w := m.word(region)
	if w>>wordState != wordPaged {
		m.mu.Unlock()
		return nil
	}
	if other := m.loading[region]; other != nil {
		m.mu.Unlock()
		<-other.done
		return other.err
	}
	mine := &loading{done: make(chan struct{})}
	m.loading[region] = mine
	from, err := m.store.blocksFrom(place(w & placeMask))
	m.mu.Unlock()
	m.pager.misses.Add(1)
	m.pager.trim()

	var r regionRecord
	if err == nil {
		r, err = s.readRecord(m, region, place(w&placeMask), from)
	}
	m.mu.Lock()
	delete(m.loading, region)
	switch {
	case m.word(region) != w:
		// It was dropped, moved or loaded meanwhile, and what was read may be anything.
		err = nil
	case err == nil:
		m.fill(region, place(w&placeMask), r)
	}
	m.mu.Unlock()
	r.release()
	mine.err = err
	close(mine.done)
	return err
}

// loadAll loads every paged region of a range of blocks, and of the whole map where count is 0. Others may be forgotten
// meanwhile, unless the pager is pinned.
func (s *Store) loadAll(m *sectorMap, first, count uint64) error {
	if count == 0 {
		count = m.blocks
	}
	for {
		m.mu.Lock()
		region, found := m.paged(first, count)
		m.mu.Unlock()
		if !found {
			return nil
		}
		if err := s.load(m, region); err != nil {
			return err
		}
		end := first + count
		first = region << regionShift
		count = end - first
	}
}

// records returns what a map holds of a region, as sectorMap.region does, and loads it first where it must.
func (s *Store) records(m *sectorMap, region uint64, dst []record) ([]record, error) {
	for {
		m.mu.Lock()
		if m.word(region)>>wordState != wordPaged {
			dst = m.region(region, 0, dst)
			m.mu.Unlock()
			return dst, nil
		}
		m.mu.Unlock()
		if err := s.load(m, region); err != nil {
			return dst, err
		}
	}
}

// eachRegion calls f with what the map holds of each region that it holds anything of, in order.
func (s *Store) eachRegion(m *sectorMap, f func(region uint64, records []record) error) error {
	var records []record
	for r := uint64(0); r < m.regions(); r++ {
		m.mu.Lock()
		page, w := m.pages[r/dirWords], m.word(r)
		m.mu.Unlock()
		if page == nil {
			r += dirWords - 1 - r%dirWords
			continue
		}
		if w == wordNone {
			continue
		}
		var err error
		if records, err = s.records(m, r, records[:0]); err != nil {
			return err
		}
		if err := f(r, records); err != nil {
			return err
		}
	}
	return nil
}
