package union

import (
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// Freeze is a layer about to be sealed. From [Layer.PrepareFreeze] to Seal or Cancel it keeps checkpoints and changes
// of the catalog away, so that nothing slow stands between them: the time in which a
// file system may be frozen. Requests go on all the while.
type Freeze struct {
	layer *Layer
	as    string
	done  bool
}

// PrepareFreeze checks that the layer can be sealed under the name, and waits for a checkpoint under way. The layer
// must be open. The caller must call Seal or Cancel soon.
func (l *Layer) PrepareFreeze(as string) (*Freeze, error) {
	s := l.store
	s.mu.Lock()
	if err := l.canFreeze(as); err != nil {
		s.mu.Unlock()
		return nil, fmt.Errorf("freeze layer %q of store %s as %q: %w", l.entry.Name, s.path, as, err)
	}
	return &Freeze{layer: l, as: as}, nil
}

func (l *Layer) canFreeze(as string) error {
	s := l.store
	if err := ValidLayerName(as); err != nil {
		return err
	}
	switch {
	case s.closed:
		return ErrClosed
	case s.readOnly:
		return ErrReadOnly
	case s.layers[as] != nil:
		return fmt.Errorf("%w: give another name", ErrLayerExists)
	case s.fewEnough() != nil:
		return s.fewEnough()
	case errors.Is(s.roomForLayer(), ErrNoSpace):
		return s.roomForLayer()
	case l.depth() > MaxDepth:
		return fmt.Errorf("it stands on %d layers, which is the limit: detach it first", MaxDepth)
	}
	return nil
}

// Cancel leaves the layer as it is. After Seal it does nothing.
func (f *Freeze) Cancel() {
	if !f.done {
		f.done = true
		f.layer.store.mu.Unlock()
	}
}

// Seal makes what the layer holds a sealed layer of its own, under the new name, and lets the layer go on, empty, on top
// of it: one group of records in the log, made durable by one flush. All requests that were acknowledged before
// are in the sealed layer. It takes the same time whatever the layer holds.
func (f *Freeze) Seal() (LayerInfo, error) {
	if f.done {
		return LayerInfo{}, fmt.Errorf("seal layer %q: %w", f.layer.entry.Name, ErrClosed)
	}
	l, s := f.layer, f.layer.store
	defer f.Cancel()
	sealed, err := s.seal(l, f.as)
	if err == nil && !seeded(bugFreezeNoCommit) {
		// Before anybody else can write the catalog, which must not name a sealed layer that the log does not.
		err = s.commit()
	}
	if err != nil {
		return LayerInfo{}, fmt.Errorf("freeze layer %q of store %s as %q: %w", l.entry.Name, s.path, f.as, err)
	}
	s.wakeBackground()
	return sealed.infoLocked(), nil
}

// seal does the work in memory. The caller holds mu.
func (s *Store) seal(l *Layer, as string) (*Layer, error) {
	id := uuid.New()
	number := s.sb.NextLayer
	now := time.Now().Unix()
	text := append(append([]byte(nil), id[:]...), as...)
	records := 1 + (len(text)+textPerRecord-1)/textPerRecord

	if err := s.lockWithRoom(l, recordsPerLog+records); err != nil {
		return nil, err
	}
	defer l.mu.Unlock()
	defer s.log.mu.Unlock()
	s.log.together(records)
	s.log.append(&record{Kind: kindSeal, Layer: l.entry.Number, Block: uint64(number), Slot: uint64(now), CRC: uint32(len(text))})
	for len(text) > 0 {
		n := min(textPerRecord, len(text))
		s.log.appendText(l.entry.Number, text[:n])
		text = text[n:]
	}
	s.sb.NextLayer++
	return s.split(l, number, id, as, now), nil
}

// lockWithRoom locks the layer and the log when there is room for records. It must not hold the layer's lock while it makes
// room: a commit may need the thread of a request that waits for that lock. The caller holds mu.
func (s *Store) lockWithRoom(l *Layer, records int) error {
	return s.lockRoom(l, records, s.checkpointLocked)
}

// lockRoom is lockWithRoom for callers that do not hold mu, with another way to make a checkpoint.
func (s *Store) lockRoom(l *Layer, records int, checkpoint func() error) error {
	for try := 0; ; try++ {
		l.mu.Lock()
		s.log.mu.Lock()
		failed := s.log.failed
		if !failed && s.log.room(records) {
			return nil
		}
		s.log.mu.Unlock()
		l.mu.Unlock()
		if failed {
			return errFailed
		}
		err := s.commit()
		if err == nil && try > 0 {
			err = checkpoint()
		}
		if err != nil {
			return err
		}
	}
}

// split hands what l holds to a new sealed layer below it.
func (s *Store) split(l *Layer, number uint32, id uuid.UUID, as string, created int64) *Layer {
	e := l.entry
	e.Number, e.UUID, e.Name, e.Created, e.Sealed, e.QuotaBytes = number, id, as, created, true, 0
	e.Detaching = false // that stays with the layer above
	sealed := &Layer{store: s, entry: e, m: l.m}
	sealed.standOn(l.parent)
	s.layers[as] = sealed
	// The layer's old map goes on under the old number, so the number of the sealed layer is free for the new one.
	l.m = newSectorMap(s.pager, number, l.m.blocks)
	l.standOn(sealed)
	return sealed
}

// Merge makes the layer and the sealed layer that it stands on one again, under the layer's own name: what a freeze
// did is undone, and content stays as it is. Nothing else may stand on the sealed one. It takes time in
// proportion to what the layer wrote since the freeze, in which its requests wait.
func (l *Layer) Merge() error {
	s := l.store
	s.flattening.Lock()
	defer s.flattening.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.merge(l); err != nil {
		return fmt.Errorf("merge layer %q of store %s with the one below: %w", l.entry.Name, s.path, err)
	}
	return nil
}

// merge is Merge for a caller that holds flattening and mu.
func (s *Store) merge(l *Layer) error {
	below := l.parent
	work := s.workOf(l)
	switch {
	case below == nil:
		return ErrNoLayer
	case below.readers > 0:
		return fmt.Errorf("layer %q is being read: %w", below.entry.Name, ErrLayerInUse)
	case below.entry.Detaching && below != work:
		return fmt.Errorf("layer %q is being detached: %w", below.entry.Name, ErrLayerInUse)
	}
	if err := s.standsOnly(below, l, work); err != nil {
		return err
	}
	s.moveWork(l, below)
	s.pager.pins.Add(1)
	defer s.pager.pins.Add(-1)
	for {
		if err := s.loadForJoin(l, below); err != nil {
			return err
		}
		if err := s.lockWithRoom(l, 1); err != nil {
			return err
		}
		ready := s.readyToJoin(l, below)
		if ready {
			s.log.append(&record{Kind: kindMerge, Layer: l.entry.Number, Block: uint64(below.entry.Number)})
			var freed []extent
			s.join(l, below, func(slot uint64) { freed = appendExtent(freed, slot, 1) })
			s.slots.disownAll(freed)
			if seeded(bugMergeFreesEarly) {
				s.releaseAll(freed)
				freed = nil
			}
			s.log.limbo = append(s.log.limbo, freed...)
		}
		s.log.mu.Unlock()
		l.mu.Unlock()
		if ready {
			return nil
		}
	}
}

// loadForJoin loads what l holds, and of the layer below the same regions. The pager is pinned.
func (s *Store) loadForJoin(l, below *Layer) error {
	return l.m.touched(func(region, _ uint64) error {
		if err := s.load(l.m, region); err != nil {
			return err
		}
		return s.load(below.m, region)
	})
}

// readyToJoin tells whether everything is loaded: a write may have touched another region since. The caller holds the layer's lock.
func (s *Store) readyToJoin(l, below *Layer) bool {
	return l.m.touched(func(region, word uint64) error {
		below.m.mu.Lock()
		defer below.m.mu.Unlock()
		if word>>wordState == wordPaged || below.m.word(region)>>wordState == wordPaged {
			return errNotLoaded
		}
		return nil
	}) == nil
}

var errNotLoaded = errors.New("entries are not loaded")

// join applies what l holds to the map of the layer below and makes that l's own. Where the store has a part of
// l's map, nothing there holds both until the next checkpoint, and the catalog alone must not be written before.
func (s *Store) join(l, below *Layer, freed func(slot uint64)) {
	below.m.applyAll(l.m, freed)
	e := l.m.entry()
	if !seeded(bugMergeFreesMaps) {
		s.stale = append(s.stale, e.slots()...)
	} else if s.slots != nil && s.epochs != nil {
		s.releaseAll(e.slots())
	}
	l.m.drop()
	l.m = below.m
	s.dropView(below)
	l.standOn(below.parent)
	if below.isWork() { // complete, and now a part of l
		l.entry.Detaching = false
	}
	below.entry.Sealed = false
	delete(s.layers, below.entry.Name)
}

// applyAll brings everything that another map holds into this one. All that it needs is loaded.
func (m *sectorMap) applyAll(from *sectorMap, freed func(slot uint64)) {
	var records []record
	_ = from.touched(func(region, _ uint64) error {
		from.mu.Lock()
		records = from.region(region, 0, records[:0])
		from.mu.Unlock()
		m.mu.Lock()
		defer m.mu.Unlock()
		for i := range records {
			m.apply(&records[i], freed)
		}
		return nil
	})
}

// replaySeal repeats a freeze that the catalog does not know.
func (s *Store) replaySeal(l *Layer, r *record, text []byte, byNumber map[uint32]*Layer) error {
	number := uint32(r.Block)
	if byNumber[number] != nil {
		return &CorruptError{"log", -1, fmt.Sprintf("layer %d was sealed as layer %d, which is another", r.Layer, number)}
	}
	var id uuid.UUID
	if copy(id[:], text) != len(id) || ValidLayerName(string(text[len(id):])) != nil || s.layers[string(text[len(id):])] != nil {
		return &CorruptError{"log", -1, fmt.Sprintf("name of sealed layer %d not valid", number)}
	}
	byNumber[number] = s.split(l, number, id, string(text[len(id):]), int64(r.Slot))
	if !seeded(bugLayerNumberReuse) {
		s.sb.NextLayer = max(s.sb.NextLayer, number+1)
	}
	return nil
}

// replayMerge repeats a merge. Where the catalog does not have the sealed layer any more, it is done.
func (s *Store) replayMerge(l *Layer, r *record, byNumber map[uint32]*Layer) error {
	below := byNumber[uint32(r.Block)]
	if below == nil {
		return nil
	}
	if l.parent != below {
		return &CorruptError{"log", -1, fmt.Sprintf("layer %d was merged with layer %d, which it does not stand on", r.Layer, r.Block)}
	}
	s.moveWork(l, below)
	if err := s.loadForJoin(l, below); err != nil {
		return err
	}
	s.join(l, below, s.supersede)
	delete(byNumber, uint32(r.Block))
	return nil
}
