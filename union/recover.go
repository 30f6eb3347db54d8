package union

import (
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// recover brings the store from what lies on its disk (and, after the death of a process of this
// boot, in its pending ring) into memory, and unless it is read-only writes the recovered state back before anything
// else is written: the next recovery then begins there.
func (s *Store) recover(o StoreOptions) error {
	began := time.Now()
	if err := s.readSuperblocks(); err != nil {
		return err
	}
	if err := s.loadCatalog(); err != nil {
		return err
	}
	boot := o.boot
	if boot == uuid.Nil && !(o.ReadOnly && o.RunDir == "") {
		var err error
		if boot, err = bootID(); err != nil {
			return fmt.Errorf("read boot id: %w", err)
		}
	}
	pending, err := readPending(o.RunDir, &s.sb, boot)
	if err != nil {
		return err
	}
	if !o.ReadOnly && pending == nil && s.sb.BootID == boot && !openingWasCut(o.RunDir, s.sb.UUID) {
		return fmt.Errorf("%w: a process of this boot had it open and did not close it, and the records that it acknowledged last are not in %q: "+
			"start the daemon with the run directory that it had then; after a reboot the store opens without them", ErrPendingLost, o.RunDir)
	}
	seen, err := s.replay(pending)
	if err != nil {
		return err
	}
	if !o.ReadOnly {
		if err := s.dropUnfinished(); err != nil {
			return err
		}
	}
	if err := s.claimSlots(); err != nil {
		return err
	}
	if o.ReadOnly {
		s.log = newModLog(s.sb.UUID, s.sb.LogBlocks, make([]byte, s.sb.pendingBlocks()<<blockShift), s.sb.LogStart)
		s.recovery.DurationSeconds = time.Since(began).Seconds()
		return nil
	}
	s.keepSuperseded()
	if err := s.levelSuperblocks(); err != nil {
		return fmt.Errorf("write superblock: %w", err)
	}
	s.pending, err = newPendingRing(o.RunDir, &s.sb, boot)
	if err != nil {
		return err
	}
	// Beyond all that the ring can hold: a sequence number is never used twice.
	next := max(seen, s.sb.LogStart) + s.sb.LogBlocks + 1
	s.log = newModLog(s.sb.UUID, s.sb.LogBlocks, s.pending.ring(), next)
	s.sb.BootID = uuid.Nil
	if o.RunDir != "" {
		s.sb.BootID = boot
	}
	if err := s.Checkpoint(); err != nil {
		// The ring's file stays: the superblock may say by now that this boot had the store open.
		return errors.Join(fmt.Errorf("write recovered state: %w", err), s.pending.close())
	}
	if err := s.pending.publish(); err != nil {
		return errors.Join(fmt.Errorf("publish pending records: %w", err), s.pending.close())
	}
	s.recovery.DurationSeconds = time.Since(began).Seconds()
	return nil
}

// readSuperblocks takes the newer of the two, and notes which copy does not hold it.
func (s *Store) readSuperblocks() error {
	if s.disk.Size() < smallestStore<<blockShift {
		return fmt.Errorf("%d bytes, a store has at least %d: %w", s.disk.Size(), MinStoreBytes, ErrNotFormatted)
	}
	var sbs [2]superblock
	var errs [2]error
	buf := alignedBuffer(blockSize)
	for i, block := range superBlocks {
		if _, err := s.disk.ReadAt(buf, block<<blockShift); err != nil {
			errs[i] = fmt.Errorf("read superblock: %w", err)
			continue
		}
		errs[i] = sbs[i].decode(buf, block<<blockShift)
	}
	if err := s.chooseSuperblock(sbs, errs); err != nil {
		return err
	}
	if have := uint64(s.disk.Size()) >> blockShift; s.sb.SizeBlocks > have {
		return fmt.Errorf("store has %d blocks of 4 KiB, but only %d are there: %w", s.sb.SizeBlocks, have, ErrTooSmall)
	}
	return nil
}

func (s *Store) chooseSuperblock(sbs [2]superblock, errs [2]error) error {
	choose := func(i int) {
		s.sb = sbs[i]
		s.behind = []int64{superBlocks[1-i]}
	}
	for _, err := range errs {
		// Also where the other copy is of this version: it is the older state, and going back to it would
		// undo what the later release did.
		if errors.Is(err, ErrVersion) {
			return err
		}
	}
	switch {
	case errs[0] == nil && errs[1] == nil:
		if sbs[0].UUID != sbs[1].UUID {
			return &CorruptError{"superblock", -1, "the two copies are of different stores"}
		}
		switch {
		case sbs[0].Generation > sbs[1].Generation:
			choose(0)
		case sbs[0].Generation < sbs[1].Generation:
			choose(1)
		default:
			s.sb = sbs[0]
		}
	case errs[0] == nil:
		choose(0)
		s.recovery.Repaired++
	case errs[1] == nil:
		choose(1)
		s.recovery.Repaired++
	case errors.Is(errs[0], ErrNotFormatted) && errors.Is(errs[1], ErrNotFormatted):
		return fmt.Errorf("%w: make one with 'coppice store format'", ErrNotFormatted)
	default:
		return fmt.Errorf("both superblocks are damaged, nothing was written: %w", errors.Join(errs[0], errs[1]))
	}
	return nil
}

// levelSuperblocks writes the chosen superblock to the copy that does not hold it. It comes before anything else is
// written: what only the older copy names counts as free from here on, so that copy must never be
// needed again.
func (s *Store) levelSuperblocks() error {
	p := alignedBuffer(blockSize)
	s.sb.encode(p)
	for _, block := range s.behind {
		if _, err := s.disk.WriteAt(p, block<<blockShift); err != nil {
			return err
		}
		if err := s.disk.Sync(); err != nil {
			return err
		}
	}
	s.behind = nil
	return nil
}

func (s *Store) loadCatalog() error {
	var enc []byte
	buf := alignedBuffer(blockSize)
	slot := s.sb.CatalogSlot
	for i := range s.sb.CatalogBlocks {
		if slot >= s.sb.Slots {
			return &CorruptError{"catalog", -1, fmt.Sprintf("block %d lies beyond the store", i)}
		}
		off := s.sb.slotOffset(slot)
		if _, err := s.disk.ReadAt(buf, off); err != nil {
			return fmt.Errorf("read catalog: %w", err)
		}
		data, next, err := decodeCatalogBlock(buf, &s.sb, i, off)
		if err != nil {
			return err
		}
		enc = append(enc, data...)
		s.catalogSlots = appendExtent(s.catalogSlots, slot, 1)
		slot = next
	}
	if slot != noSlot {
		return &CorruptError{"catalog", -1, "chain goes on beyond its length"}
	}
	entries, err := decodeCatalog(enc, s.sb.Slots)
	if err != nil {
		return err
	}
	byNumber := make(map[uint32]*Layer, len(entries))
	for _, e := range entries {
		l := newLayer(s, e)
		if err := s.loadRun(l); err != nil {
			return fmt.Errorf("layer %q: %w", e.Name, err)
		}
		s.layers[e.Name] = l
		byNumber[e.Number] = l
	}
	for _, l := range s.layers {
		l.parent = byNumber[l.entry.Parent]
	}
	return nil
}

func nothingFreed(uint64) {}

func (s *Store) loadRun(l *Layer) error {
	var longest uint32
	for _, e := range l.entry.Run {
		longest = max(longest, e.Count)
	}
	buf := alignedBuffer(int(min(longest, runBatch)) << blockShift)
	var index uint32
	var entries, after uint64
	for _, e := range l.entry.Run {
		for done := uint32(0); done < e.Count; {
			n := min(e.Count-done, runBatch)
			off := s.sb.slotOffset(e.Slot + uint64(done))
			p := buf[:n<<blockShift]
			if _, err := s.disk.ReadAt(p, off); err != nil {
				return fmt.Errorf("read run: %w", err)
			}
			for len(p) > 0 {
				count, err := s.loadRunBlock(l, p[:blockSize], index, &after, off)
				if err != nil {
					return err
				}
				entries += uint64(count)
				index++
				off += blockSize
				p = p[blockSize:]
			}
			done += n
		}
	}
	if entries != l.entry.RunEntries {
		return &CorruptError{"run", -1, fmt.Sprintf("%d entries, the catalog says %d", entries, l.entry.RunEntries)}
	}
	return nil
}

func (s *Store) loadRunBlock(l *Layer, p []byte, index uint32, after *uint64, off int64) (int, error) {
	var h runHeader
	if err := h.decode(p, off); err != nil {
		return 0, err
	}
	want := runHeader{s.sb.UUID, l.entry.RunLayer, index, l.entry.RunGeneration, h.Count}
	if h != want {
		return 0, &CorruptError{"run", off, "block of another run"}
	}
	var r record
	for i := range h.Count {
		decodeRunEntry(p[runHeaderSize+i*runEntrySize:], &r)
		if r.Kind > kindZero || !r.valid(s.sb.Slots, l.m.blocks) || r.Block < *after {
			return 0, &CorruptError{"run", off, fmt.Sprintf("entry %d out of range or out of order", i)}
		}
		l.m.apply(&r, nothingFreed)
		*after = r.Block + 1
		if r.Kind == kindZero {
			*after = r.Block + r.Slot
		}
	}
	return h.Count, nil
}

// logSource is one copy of the log's ring.
type logSource struct {
	mem    []byte
	blocks uint64
	live   bool // written by a process of this boot: its open block has no checksum yet
}

// replay applies the records of the log and returns the highest sequence number in it. All
// blocks up to the highest that any block calls durable must be there: one that is missing in both
// copies is damage, and the store is refused. Beyond, a missing block was never covered by a flush, and
// records there count only if their data has arrived.
func (s *Store) replay(pending []byte) (seen uint64, err error) {
	sources, release, err := s.readLog()
	if err != nil {
		return 0, err
	}
	defer release()
	if pending != nil {
		sources = append(sources, logSource{pending, s.sb.pendingBlocks(), true})
	}
	best := make(map[uint64][]byte)
	copies := make(map[uint64]int)
	durable := s.sb.LogStart - 1
	var h logHeader
	for _, src := range sources {
		for i := range src.blocks {
			p := src.mem[i<<blockShift:][:blockSize]
			ok := h.decode(p, s.sb.UUID) || src.live && h.decodeFields(p, s.sb.UUID)
			if !ok || h.Seq%src.blocks != i {
				continue
			}
			seen = max(seen, h.Seq)
			if h.Seq < s.sb.LogStart || h.Count == 0 {
				continue
			}
			if h.Seq-s.sb.LogStart >= s.sb.LogBlocks {
				return 0, &CorruptError{"log", -1, fmt.Sprintf("block %d is further from the start %d than the log is long: the superblocks are older than the log",
					h.Seq, s.sb.LogStart)}
			}
			durable = max(durable, h.Durable)
			if best[h.Seq] == nil && src.live {
				s.recovery.FromProcess++
			}
			if !src.live {
				copies[h.Seq]++
			}
			best[h.Seq] = p
		}
	}
	for seq := s.sb.LogStart; seq <= durable; seq++ {
		if best[seq] == nil {
			return 0, &CorruptError{"log", s.logOffset(s.sb.LogA, seq),
				fmt.Sprintf("block %d is missing in both copies though a flush covered it; 'coppice store dump' shows what is left", seq)}
		}
		if copies[seq] == 1 {
			s.recovery.Repaired++
		}
	}
	arrived := durable
	if pending != nil {
		// Data lay in its slot before its record was made, and no power was cut since. A block that cannot be read now must
		// not fall back to what it held before.
		arrived = seen
	}
	return seen, s.applyLog(best, arrived, seen)
}

// logMemory is memory that a large log gives back to the system at once.
func logMemory(n int) (mem []byte, release func(), err error) {
	if n <= minLogBlocks<<blockShift {
		return alignedBuffer(n), func() {}, nil
	}
	mem, err = unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	return mem, func() { _ = unix.Munmap(mem) }, err
}

func (s *Store) readLog() (sources []logSource, release func(), err error) {
	size := int(s.sb.LogBlocks) << blockShift
	mem, release, err := logMemory(2 * size)
	if err != nil {
		return nil, nil, fmt.Errorf("map log: %w", err)
	}
	for i, first := range [...]uint64{s.sb.LogA, s.sb.LogB} {
		p := mem[i*size : (i+1)*size]
		if err := s.readCopy(p, int64(first)<<blockShift); err != nil {
			release()
			return nil, nil, fmt.Errorf("read log: %w", err)
		}
		sources = append(sources, logSource{p, s.sb.LogBlocks, false})
	}
	return sources, release, nil
}

// readCopy reads a copy of the log. A block that cannot be read stays zero: the other copy
// may have it.
func (s *Store) readCopy(p []byte, off int64) error {
	const piece = 1 << 20
	for len(p) > 0 {
		n := min(piece, len(p))
		if _, err := s.disk.ReadAt(p[:n], off); err != nil {
			for i := 0; i < n; i += blockSize {
				if _, err := s.disk.ReadAt(p[i:i+blockSize], off+int64(i)); err != nil {
					clear(p[i : i+blockSize])
				}
			}
		}
		p = p[n:]
		off += int64(n)
	}
	return nil
}

func (s *Store) applyLog(best map[uint64][]byte, durable, seen uint64) error {
	byNumber := make(map[uint32]*Layer, len(s.layers))
	for _, l := range s.layers {
		byNumber[l.entry.Number] = l
	}
	data := alignedBuffer(blockSize)
	var h logHeader
	var r record
	for seq := s.sb.LogStart; seq <= seen; seq++ {
		p := best[seq]
		if p == nil {
			continue
		}
		h.decodeFields(p, s.sb.UUID)
		s.recovery.LogBlocks++
		for i := range h.Count {
			r.decode(p[logHeaderSize+i*recordSize:])
			l := byNumber[r.Layer]
			if l == nil { // removed since
				continue
			}
			if r.Kind == kindText {
				continue
			}
			if !r.valid(s.sb.Slots, l.m.blocks) {
				return &CorruptError{"log", s.logOffset(s.sb.LogA, seq), fmt.Sprintf("record %d out of range", i)}
			}
			if r.Kind == kindSeal || r.Kind == kindMerge {
				if err := s.replayLayers(l, &r, p[logHeaderSize+(i+1)*recordSize:][:(h.Count-i-1)*recordSize], byNumber); err != nil {
					return err
				}
				s.recovery.Records++
				continue
			}
			if seq > durable && r.Kind == kindData && !s.arrived(&r, data) {
				s.recovery.Dropped++
				continue
			}
			l.m.apply(&r, s.supersededInLog)
			l.dirty = true
			s.recovery.Records++
		}
	}
	return nil
}

// replayLayers repeats a change of layers. rest is what follows its record in the block: the text.
func (s *Store) replayLayers(l *Layer, r *record, rest []byte, byNumber map[uint32]*Layer) error {
	if r.Kind == kindMerge {
		return s.replayMerge(l, r, byNumber)
	}
	var text []byte
	for n := int(r.CRC); n > 0; n -= textPerRecord {
		if len(rest) < recordSize || rest[0] != kindText {
			return &CorruptError{"log", -1, fmt.Sprintf("name of sealed layer %d cut short", r.Block)}
		}
		text = append(text, rest[8:8+min(n, textPerRecord)]...)
		rest = rest[recordSize:]
	}
	return s.replaySeal(l, r, text, byNumber)
}

// arrived tells whether the data of a record has reached its slot. Where that cannot be read it counts as there: a FUA
// write may have covered it, and reading the block will fail, instead of bringing old content back.
func (s *Store) arrived(r *record, buf []byte) bool {
	for range 3 {
		if _, err := s.disk.ReadAt(buf, s.sb.slotOffset(r.Slot)); err == nil {
			return checksum(buf) == r.CRC
		}
	}
	return true
}

// supersededInLog notes a slot that a record of the log replaced.
func (s *Store) supersededInLog(slot uint64) { s.superseded = appendExtent(s.superseded, slot, 1) }

// keepSuperseded keeps the slots that replayed records replaced from being used before the recovered state is durable. After
// the death of the process those records may be in its pending ring alone: if the power fails now, what they replaced is live again.
func (s *Store) keepSuperseded() {
	for _, e := range s.superseded {
		for i := range uint64(e.Count) {
			if s.slots.claim(e.Slot + i) { // or a later record uses it again
				s.staleRuns = appendExtent(s.staleRuns, e.Slot+i, 1)
			}
		}
	}
	s.superseded = nil
}

// claimSlots builds the slot bitmap from everything that names slots. Two owners of one slot are damage.
func (s *Store) claimSlots() error {
	s.slots = newSlotAllocator(s.sb.Slots)
	s.epochs = newEpochs(s.slots.release)
	claim := func(what string, exts []extent) error {
		for _, e := range exts {
			for i := range uint64(e.Count) {
				if !s.slots.claim(e.Slot + i) {
					return &CorruptError{what, s.sb.slotOffset(e.Slot + i), fmt.Sprintf("slot %d has two owners", e.Slot+i)}
				}
			}
		}
		return nil
	}
	if err := claim("catalog", s.catalogSlots); err != nil {
		return err
	}
	if err := claim("run", s.staleRuns); err != nil {
		return err
	}
	for _, l := range s.layers {
		if err := claim("run", l.entry.Run); err != nil {
			return err
		}
		if err := l.eachSlot(func(slot uint64) error { return claim("data", []extent{{slot, 1}}) }); err != nil {
			return err
		}
	}
	return nil
}
