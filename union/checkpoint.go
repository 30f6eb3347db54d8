package union

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"slices"
)

// Checkpoint writes what changed of every sector map and of the bitmap of slots, and moves the log's start to the
// records that came after. Requests go on meanwhile: what it writes may hold mappings newer than its
// start, which the log then repeats. The flush before the checkpoint counts covers all of their records, so that map and bitmap,
// written at different moments, agree once the log has been repeated.
func (s *Store) Checkpoint() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.checkpointLocked()
}

func (s *Store) checkpointLocked() error {
	s.checkpointBegins()
	defer s.checkpointEnds()
	l := s.log
	l.mu.Lock()
	if l.failed {
		l.mu.Unlock()
		return fmt.Errorf("checkpoint: %w", errFailed)
	}
	l.cut()
	start, settled := l.next, l.appended
	if seeded(bugStartMovedEarly) {
		l.start = start
	}
	l.mu.Unlock()

	old, err := s.writeMaps()
	if seeded(bugMapFreedEarly) {
		s.releaseAll(old)
		old = nil
	}
	if seeded(bugStartTooLate) {
		l.mu.Lock()
		start = l.next
		l.mu.Unlock()
	}
	if err == nil {
		err = s.writeState(start)
	}
	if err != nil {
		err = fmt.Errorf("checkpoint: %w", err)
		s.fail(err)
		return err
	}
	s.releaseAll(old)
	// Requests that found a map before it was given up may be loading parts of it still.
	s.epochs.retire(s.stale)
	s.stale = nil
	l.mu.Lock()
	l.start, l.settled = start, settled
	var ready opList
	ready.take(&l.stalled)
	l.mu.Unlock()
	resumeAll(ready)
	return nil
}

// writeMaps returns the slots that nothing names any more when the checkpoint is done.
func (s *Store) writeMaps() (old []extent, err error) {
	s.pager.pins.Add(1)
	defer s.pager.pins.Add(-1)
	if s.tidying.Load() {
		s.cramped = 0
	}
	for _, layer := range s.inOrder() {
		for _, m := range [...]*sectorMap{layer.m, layer.flat} {
			if m == nil {
				continue
			}
			replaced, err := s.writeMap(m)
			if err != nil {
				return nil, fmt.Errorf("write map of layer %q: %w", layer.entry.Name, err)
			}
			old = append(old, replaced...)
		}
		layer.flatStored = layer.flatDone
	}
	replaced, err := s.writeBitmap()
	if err != nil {
		return nil, fmt.Errorf("write bitmap: %w", err)
	}
	return append(old, replaced...), nil
}

// inOrder lists the layers by their numbers, so that two stores with the same history are the same.
func (s *Store) inOrder() []*Layer {
	return slices.SortedFunc(maps.Values(s.layers), func(a, b *Layer) int { return cmp.Compare(a.entry.Number, b.entry.Number) })
}

// checkpointNeed is how many slots a checkpoint takes at most before it gives any back, once more blocks have been written.
func (s *Store) checkpointNeed(more int) uint64 {
	p := s.pager
	return s.needFor(more, p.dirtyRegions.Load(), p.dirtyBytes.Load(), p.dirtyPages.Load(), s.slots.dirty.Load())
}

// roomForCheckpoint fails with [ErrNoSpace] where the store may lack the slots that a checkpoint takes, and those that the change takes for
// whose sake it is to be made: one that finds too few fails the store, so who can refuse the change asks before. The caller holds mu.
func (s *Store) roomForCheckpoint(more uint64) error {
	for committed := false; ; committed = true {
		free, need := s.slots.freeSlots(), s.checkpointNeed(0)+more
		if free >= need {
			return nil
		}
		if committed {
			return fmt.Errorf("%d slots are free, and a checkpoint may take %d: %w", free, need, ErrNoSpace)
		}
		// What requests have superseded comes back.
		if err := s.commit(); err != nil {
			return err
		}
		s.epochs.collect()
	}
}

// cleanNeed is checkpointNeed after a checkpoint.
func (s *Store) cleanNeed(more int) uint64 { return s.needFor(more, 0, 0, 0, 0) }

func (s *Store) needFor(more int, dirtyRegions, dirtyBytes, dirtyPages, dirtyBitmap int64) uint64 {
	p := s.pager
	regions := dirtyRegions + int64(more+regionBlocks-1)/regionBlocks + 1
	bytes := dirtyBytes + int64(more*regionEntrySize) + 2*maxRegionBytes
	segments := bytes/mapPayload + min(regions, p.count.Load()) + 1
	pages := min(dirtyPages+regions, p.pages.Load()+2)
	bitmap := min(dirtyBitmap+int64(more)/(pageGroups*groupSlots)+2, s.slots.bitmapPages())
	return uint64(segments+pages+bitmap) + s.catalogNeed.Load()
}

// fail lets the store take no more writes, and all who wait for one go on, to fail.
func (s *Store) fail(cause error) {
	s.log.mu.Lock()
	first := !s.log.failed
	s.log.fail()
	ready := s.log.drop()
	s.log.mu.Unlock()
	resumeAll(ready)
	if first {
		s.tellFailure(cause)
	}
}

// tellFailure tells of the first failure, which all that come after it follow from.
func (s *Store) tellFailure(cause error) {
	slog.Error("write to a store failed: it takes no more of them until it is opened again", "store", s.path, "error", cause)
}

// writeState writes a catalog of the layers as they are and then the superblocks, which make it and logStart the
// state that a recovery begins from. The caller holds mu, or has the store to itself. B is durable
// before A is touched, so one of them is whole at any time; what the old state named is
// free only when both name the new one.
func (s *Store) writeState(logStart uint64) error {
	entries := s.describe()
	enc := encodeCatalog(s.slots.bitmapEntries(), entries)
	n := catalogBlockCount(len(enc))
	if n > maxCatalogBlocks {
		return fmt.Errorf("write catalog: %d layers with fragmented maps take %d blocks, at most %d fit: %w", len(entries), n, maxCatalogBlocks, ErrNoSpace)
	}
	if seeded(bugCatalogFreedEarly) {
		s.releaseAll(s.catalogSlots)
		s.catalogSlots = nil
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
	s.catalogNeed.Store(uint64(n) + 2)
	s.measure(entries)
	return nil
}

// describe is what the catalog is to say of the layers. The caller holds mu, or has the store to itself.
func (s *Store) describe() []layerEntry {
	entries := make([]layerEntry, 0, len(s.layers))
	for _, l := range s.inOrder() {
		entries = append(entries, l.describe())
	}
	return entries
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
	if err := s.writeExtents(p, exts); err != nil {
		return err
	}
	if seeded(bugCheckpointNoFlush) {
		return nil
	}
	return s.flushState()
}

func (s *Store) writeSuperblocks(sb *superblock) error {
	p := alignedBuffer(blockSize)
	sb.encode(p)
	for _, block := range [...]int64{superBBlock, superABlock} {
		if seeded(bugOneSuperblock) && block == superABlock {
			continue
		}
		if _, err := s.disk.WriteAt(p, block<<blockShift); err != nil {
			return err
		}
		if seeded(bugSuperblocksTogether) && block == superBBlock {
			continue
		}
		if err := s.flushState(); err != nil {
			return err
		}
	}
	return nil
}

// flushState flushes, with what was written to it, the log: the records of all that maps and bitmap may have captured.
func (s *Store) flushState() error {
	if seeded(bugCheckpointWithoutLog) {
		return s.disk.Sync()
	}
	return s.flush()
}
