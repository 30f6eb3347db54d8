package union

import "fmt"

// Checkpoint writes the sector map of every layer that has changed as a new run and moves the log's start to the
// records that came after. Requests go on meanwhile: a run may hold mappings newer than its
// start, which the log then repeats.
func (s *Store) Checkpoint() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.checkpointLocked()
}

func (s *Store) checkpointLocked() error {
	l := s.log
	l.mu.Lock()
	if l.failed {
		l.mu.Unlock()
		return fmt.Errorf("checkpoint: %w", errFailed)
	}
	if l.count > 0 {
		l.seal()
		l.open()
	}
	start := l.next
	l.mu.Unlock()

	var old []extent
	for _, layer := range s.layers {
		replaced, err := s.writeRun(layer)
		if err != nil {
			s.fail()
			return fmt.Errorf("write run of layer %q: %w", layer.entry.Name, err)
		}
		old = append(old, replaced...)
	}
	if err := s.writeState(start); err != nil {
		s.fail()
		return err
	}
	s.releaseAll(old)
	s.releaseAll(s.staleRuns)
	s.staleRuns = nil
	l.mu.Lock()
	l.start = start
	var ready opList
	ready.take(&l.stalled)
	l.mu.Unlock()
	resumeAll(ready)
	return nil
}

func (s *Store) fail() {
	s.log.mu.Lock()
	s.log.fail()
	ready := s.log.drop()
	s.log.mu.Unlock()
	resumeAll(ready)
}

// runBatch is how many blocks of a run are written at once.
const runBatch = 256

// writeRun writes the map of a layer if it has changed and returns the slots of the run that this replaces.
func (s *Store) writeRun(layer *Layer) ([]extent, error) {
	layer.mu.Lock()
	dirty := layer.dirty
	layer.dirty = false
	regions := uint64(len(layer.m.dir))
	most := layer.m.blocks/entriesPerRun + 1
	layer.mu.Unlock()
	if !dirty {
		return nil, nil
	}
	w := runWriter{
		s:   s,
		buf: alignedBuffer(int(min(most, runBatch)) << blockShift),
		h:   runHeader{UUID: s.sb.UUID, Layer: layer.entry.Number, Generation: s.sb.Generation + 1},
	}
	records := make([]record, 0, regionBlocks)
	for r := range regions {
		layer.mu.Lock()
		if layer.m.dir[r] == 0 {
			layer.mu.Unlock()
			continue
		}
		records = layer.m.region(r, layer.entry.Number, records[:0])
		layer.mu.Unlock()
		for i := range records {
			if err := w.add(&records[i]); err != nil {
				return nil, err
			}
		}
	}
	if err := w.finish(); err != nil {
		return nil, err
	}
	old := layer.entry.Run
	layer.entry.Run, layer.entry.RunLayer = w.slots, w.h.Layer
	layer.entry.RunGeneration, layer.entry.RunEntries = w.h.Generation, w.entries
	return old, nil
}

// runWriter packs entries into blocks and writes them to fresh slots.
type runWriter struct {
	s       *Store
	h       runHeader
	buf     []byte
	blocks  int    // full blocks in buf
	last    record // held back, to join zeros across regions
	entries uint64
	slots   []extent
}

func (w *runWriter) add(r *record) error {
	if r.Kind == kindZero && w.last.Kind == kindZero && w.last.Block+w.last.Slot == r.Block {
		w.last.Slot += r.Slot
		return nil
	}
	err := w.put()
	w.last = *r
	return err
}

func (w *runWriter) put() error {
	if w.last.Kind == 0 {
		return nil
	}
	p := w.buf[w.blocks<<blockShift:][:blockSize]
	encodeRunEntry(p[runHeaderSize+w.h.Count*runEntrySize:], &w.last)
	w.last.Kind = 0
	w.h.Count++
	w.entries++
	if w.h.Count == entriesPerRun {
		w.sealBlock()
		if w.blocks == runBatch {
			return w.write()
		}
	}
	return nil
}

func (w *runWriter) sealBlock() {
	w.h.encode(w.buf[w.blocks<<blockShift:][:blockSize])
	w.h.Index++
	w.h.Count = 0
	w.blocks++
}

func (w *runWriter) finish() error {
	if err := w.put(); err != nil {
		return err
	}
	if w.h.Count > 0 {
		w.sealBlock()
	}
	return w.write()
}

func (w *runWriter) write() error {
	exts, ok := w.s.slots.alloc(nil, w.blocks, 0)
	if !ok {
		return fmt.Errorf("%d blocks: %w", w.blocks, ErrNoSpace)
	}
	p := w.buf
	for _, e := range exts {
		n := int(e.Count) << blockShift
		if _, err := w.s.disk.WriteAt(p[:n], w.s.sb.slotOffset(e.Slot)); err != nil {
			return err
		}
		p = p[n:]
		w.slots = appendExtent(w.slots, e.Slot, e.Count)
	}
	w.blocks = 0
	return nil
}

// writeState writes a catalog of the layers as they are and then the superblocks, which make it and logStart the
// state that a recovery begins from. The caller holds mu, or has the store to itself. B is durable
// before A is touched, so one of them is whole at any time; what the old state named is
// free only when both name the new one.
func (s *Store) writeState(logStart uint64) error {
	entries := make([]layerEntry, 0, len(s.layers))
	for _, l := range s.layers {
		entries = append(entries, l.entry)
	}
	enc := encodeCatalog(entries)
	n := catalogBlockCount(len(enc))
	if n > maxCatalogBlocks {
		return fmt.Errorf("write catalog: %d layers with fragmented runs take %d blocks, at most %d fit: %w", len(entries), n, maxCatalogBlocks, ErrNoSpace)
	}
	exts, ok := s.slots.alloc(nil, n, 0)
	if !ok {
		return fmt.Errorf("write catalog: %w", ErrNoSpace)
	}
	next := s.sb
	next.Generation++
	next.CatalogGeneration = next.Generation
	next.CatalogSlot = exts[0].Slot
	next.CatalogBlocks = uint32(n)
	next.LogStart = logStart
	if err := s.writeCatalog(enc, exts, &next); err != nil {
		s.releaseAll(exts)
		return fmt.Errorf("write catalog: %w", err)
	}
	if err := s.writeSuperblocks(&next); err != nil {
		return fmt.Errorf("write superblock: %w", err)
	}
	// What requests read of sb, without mu, never changes.
	s.sb.Generation, s.sb.LogStart = next.Generation, next.LogStart
	s.sb.CatalogSlot, s.sb.CatalogBlocks, s.sb.CatalogGeneration = next.CatalogSlot, next.CatalogBlocks, next.CatalogGeneration
	s.releaseAll(s.catalogSlots)
	s.catalogSlots = exts
	return nil
}

func (s *Store) releaseAll(exts []extent) {
	for _, e := range exts {
		s.slots.release(e.Slot, e.Count)
	}
}

func (s *Store) writeCatalog(enc []byte, exts []extent, sb *superblock) error {
	var slots []uint64
	for _, e := range exts {
		for i := range uint64(e.Count) {
			slots = append(slots, e.Slot+i)
		}
	}
	p := catalogBlocks(enc, sb.UUID, sb.CatalogGeneration, slots)
	for _, e := range exts {
		n := int(e.Count) << blockShift
		if _, err := s.disk.WriteAt(p[:n], sb.slotOffset(e.Slot)); err != nil {
			return err
		}
		p = p[n:]
	}
	return s.disk.Sync()
}

func (s *Store) writeSuperblocks(sb *superblock) error {
	p := alignedBuffer(blockSize)
	sb.encode(p)
	for _, block := range [...]int64{superBBlock, superABlock} {
		if _, err := s.disk.WriteAt(p, block<<blockShift); err != nil {
			return err
		}
		if err := s.disk.Sync(); err != nil {
			return err
		}
	}
	return nil
}
