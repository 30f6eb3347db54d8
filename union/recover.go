package union

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"
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
	if !o.ReadOnly && !seeded(bugReplayUnflushed) {
		// What a process that died left in the device's cache is read below, and counts as durable from then on.
		if err := s.disk.Sync(); err != nil {
			return fmt.Errorf("flush: %w", err)
		}
	}
	if seeded(bugRingForgotten) {
		pending = nil
	}
	seen, err := s.replay(pending, pending == nil && wasClosed(o.RunDir, &s.sb, boot))
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
	if err := s.levelSuperblocks(); err != nil {
		return fmt.Errorf("write superblock: %w", err)
	}
	s.pending, err = newPendingRing(o.RunDir, &s.sb, boot)
	if err != nil {
		return err
	}
	// Beyond all that the ring can hold: a sequence number is never used twice.
	next := max(seen, s.sb.LogStart) + s.sb.LogBlocks + 1
	if seeded(bugSequenceReuse) {
		next = s.sb.LogStart
	}
	s.log = newModLog(s.sb.UUID, s.sb.LogBlocks, s.pending.ring(), next)
	s.sb.BootID = uuid.Nil
	if o.RunDir != "" {
		s.sb.BootID = boot
	}
	if seeded(bugPublishEarly) {
		_ = s.pending.publish()
	}
	if err := s.Checkpoint(); err != nil {
		// The ring's file stays: the superblock may say by now that this boot had the store open.
		return errors.Join(fmt.Errorf("write recovered state: %w", err), s.pending.close())
	}
	if err := s.pending.publish(); err != nil && !seeded(bugPublishEarly) {
		return errors.Join(fmt.Errorf("publish pending records: %w", err), s.pending.close())
	}
	s.recovery.DurationSeconds = time.Since(began).Seconds()
	return nil
}

// Identify returns the UUID of the store at path, of which it reads the superblocks alone. It fails with [ErrNotFormatted] where no store is,
// and with another error where one is that cannot be used.
func Identify(path string) (uuid.UUID, error) {
	d, err := openDisk(path, true)
	if err != nil {
		return uuid.Nil, fmt.Errorf("identify store: %w", err)
	}
	sb, err := readSuperblock(d)
	if err := errors.Join(err, d.Close()); err != nil {
		return uuid.Nil, fmt.Errorf("identify store %s: %w", path, err)
	}
	return sb.UUID, nil
}

// readSuperblock is the newest superblock of the store on a disk, which it leaves as it is.
func readSuperblock(d disk) (superblock, error) {
	s := Store{disk: d}
	err := s.readSuperblocks()
	return s.sb, err
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
		if seeded(bugOldSuperblock) && errs[1-i] == nil {
			i = 1 - i
		}
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
	case errors.Is(errs[0], ErrNotFormatted) && errors.Is(errs[1], ErrNotFormatted) && s.hasLog():
		return &CorruptError{"superblock", -1, "neither copy is there, but the log of a store is; nothing was written"}
	case errors.Is(errs[0], ErrNotFormatted) && errors.Is(errs[1], ErrNotFormatted):
		return fmt.Errorf("%w: make one with 'coppice store format'", ErrNotFormatted)
	default:
		return fmt.Errorf("both superblocks are damaged, nothing was written: %w", errors.Join(errs[0], errs[1]))
	}
	return nil
}

// hasLog tells whether a block of a log lies where every store of the usual geometry has its first.
func (s *Store) hasLog() bool {
	const blocks = 64
	p := alignedBuffer(blocks << blockShift)
	if _, err := s.disk.ReadAt(p, logABlock<<blockShift); err != nil {
		return false
	}
	for ; len(p) > 0; p = p[blockSize:] {
		if le.Uint32(p) == logMagic && blockChecksum(p, logSumField) == le.Uint32(p[logSumField:]) {
			return true
		}
	}
	return false
}

// levelSuperblocks writes the chosen superblock to the copy that does not hold it. It comes before anything else is
// written: what only the older copy names counts as free from here on, so that copy must never be
// needed again.
func (s *Store) levelSuperblocks() error {
	if seeded(bugNotLevelled) {
		s.behind = nil
	}
	p := alignedBuffer(blockSize)
	s.sb.encode(p)
	for _, block := range s.behind {
		if _, err := s.disk.WriteAt(p, block<<blockShift); err != nil {
			return err
		}
		if seeded(bugLevelledNoFlush) {
			continue
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
	bitmap, entries, err := decodeCatalog(enc, s.sb.Slots)
	if err != nil {
		return err
	}
	s.catalogNeed.Store(uint64(s.sb.CatalogBlocks) + 2)
	if err := s.readBitmap(bitmap); err != nil {
		return fmt.Errorf("read bitmap: %w", err)
	}
	byNumber := make(map[uint32]*Layer, len(entries))
	for _, e := range entries {
		l := newLayer(s, e)
		if err := l.openMaps(); err != nil {
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

// openMaps reads the directories of the layer's maps. A flat map that is not complete is made anew.
func (l *Layer) openMaps() (err error) {
	e := &l.entry
	if l.m, err = l.store.openMap(&e.Map, l.blocks()); err != nil {
		return err
	}
	if e.Flat.Number == 0 {
		return nil
	}
	if !e.FlatDone {
		l.store.stale = append(l.store.stale, e.Flat.slots()...)
		return nil
	}
	l.flatDone, l.flatStored = true, true
	l.flat, err = l.store.openMap(&e.Flat, l.blocks())
	return err
}

func nothingFreed(uint64) {}

// logSource is one copy of the log's ring.
type logSource struct {
	mem    []byte
	blocks uint64
	live   bool // written by a process of this boot: its open block has no checksum yet
}

// replay applies the records of the log and returns the highest sequence number in it. All
// blocks up to the highest that any block calls durable must be there: one that is missing in both
// copies is damage, and the store is refused. Beyond, a missing block was never covered by a flush, and
// records there count only if their data has arrived. Of a store that was closed in order, the log is not read: it may have 128 MiB, and nothing in it counts.
func (s *Store) replay(pending []byte, closed bool) (seen uint64, err error) {
	if closed {
		return s.sb.LogStart, nil
	}
	sources, release, err := s.readLog()
	if err != nil {
		return 0, err
	}
	defer release()
	if pending != nil {
		sources = append(sources, logSource{pending, s.sb.pendingBlocks(), true})
	}
	best := logBlocks{s, s.sb.LogStart, make([][]byte, s.sb.LogBlocks)}
	copies := make([]uint8, s.sb.LogBlocks) // of each of them, on the disk
	durable := s.sb.LogStart - 1
	var h logHeader
	for _, src := range sources {
		for i := range src.blocks {
			p := src.mem[i<<blockShift:][:blockSize]
			ok := h.decode(p, s.sb.UUID) || src.live && h.decodeFields(p, s.sb.UUID)
			if !ok || h.Seq%src.blocks != i {
				continue
			}
			if h.Seq > s.sb.LogStart && h.Seq-s.sb.LogStart >= s.sb.LogBlocks {
				return 0, &CorruptError{"log", -1, fmt.Sprintf("block %d is further from the start %d than the log is long: the superblocks are older than the log",
					h.Seq, s.sb.LogStart)}
			}
			seen = max(seen, h.Seq)
			if h.Seq < s.sb.LogStart || h.Count == 0 {
				continue
			}
			if !seeded(bugDurableIgnored) {
				durable = max(durable, h.Durable)
			}
			at := h.Seq - s.sb.LogStart
			if best.blocks[at] == nil {
				s.recovery.LogBlocks++
				if src.live {
					s.recovery.FromProcess++
				}
			}
			if !src.live {
				copies[at]++
			}
			best.blocks[at] = p
		}
	}
	for seq := s.sb.LogStart; seq <= durable; seq++ {
		if best.block(seq) == nil {
			return 0, &CorruptError{"log", s.logOffset(s.sb.LogA, seq),
				fmt.Sprintf("block %d is missing in both copies though a flush covered it; 'coppice store dump' shows what is left", seq)}
		}
		if copies[seq-s.sb.LogStart] == 1 {
			s.recovery.Repaired++
		}
	}
	arrived := durable
	if pending != nil {
		// Data lay in its slot before its record was made, and no power was cut since. A block that cannot be read now must
		// not fall back to what it held before.
		arrived = seen
	}
	p := s.newReplayer(best)
	if err := s.loadForReplay(best, p.again()); err != nil {
		return 0, err
	}
	return seen, s.applyLog(best, p, func(seq uint64) bool { return copies[seq-s.sb.LogStart] == 0 }, arrived)
}

// replayer applies the records of the log in their order, which the owners of slots depend on.
type replayer struct {
	s        *Store
	byNumber map[uint32]*Layer
	// seals are, by number of the layer that was sealed, the sealed layers that the catalog has already and whose seal lies
	// ahead in the log. Records before it belong to them.
	seals map[uint32][]*Layer
}

// newReplayer looks for seals in the log that the catalog knows.
func (s *Store) newReplayer(blocks logBlocks) *replayer {
	p := &replayer{s: s, byNumber: make(map[uint32]*Layer, len(s.layers)), seals: map[uint32][]*Layer{}}
	for _, l := range s.layers {
		p.byNumber[l.entry.Number] = l
	}
	_ = blocks.each(func(_ uint64, r *record, _ []byte) error {
		if sealed := p.byNumber[uint32(r.Block)]; r.Kind == kindSeal && r.Block <= math.MaxUint32 && sealed != nil {
			p.seals[r.Layer] = append(p.seals[r.Layer], sealed)
		}
		return nil
	})
	return p
}

// again returns a replayer that stands at the beginning of the log, as p does.
func (p *replayer) again() *replayer { return &replayer{p.s, p.byNumber, maps.Clone(p.seals)} }

// target is the map that a layer's records go to at this point of the log.
func (p *replayer) target(l *Layer) *sectorMap {
	if ahead := p.seals[l.entry.Number]; len(ahead) > 0 {
		return ahead[0].m
	}
	return l.m
}

// logBlocks are the blocks of the log to apply.
type logBlocks struct {
	s      *Store
	first  uint64   // sequence number
	blocks [][]byte // from there on; nil: not there
}

// block returns a block, or nil where it is not there.
func (b *logBlocks) block(seq uint64) []byte {
	if i := seq - b.first; i < uint64(len(b.blocks)) {
		return b.blocks[i]
	}
	return nil
}

// each calls f for each record, with what follows it in its block.
func (b *logBlocks) each(f func(seq uint64, r *record, rest []byte) error) error {
	var h logHeader
	var r record
	for i, p := range b.blocks {
		if p == nil {
			continue
		}
		h.decodeFields(p, b.s.sb.UUID)
		records := p[logHeaderSize:][:h.Count*recordSize]
		for len(records) > 0 {
			r.decode(records)
			records = records[recordSize:]
			if r.Kind == kindText {
				continue
			}
			if err := f(b.first+uint64(i), &r, records); err != nil {
				return err
			}
		}
	}
	return nil
}

// loadForReplay loads the regions that records of the log are about, many at once.
func (s *Store) loadForReplay(blocks logBlocks, p *replayer) error {
	wanted := map[replayRegion]struct{}{}
	last := replayRegion{}
	_ = blocks.each(func(_ uint64, r *record, _ []byte) error {
		l := p.byNumber[r.Layer]
		switch {
		case l == nil || !r.valid(s.sb.Slots, l.m.blocks):
		case r.Kind == kindSeal:
			p.passSeal(l, r)
		case r.Kind == kindData:
			x := replayRegion{p.target(l), r.Block >> regionShift}
			if x != last && r.Block < x.m.blocks && x.m.word(x.region)>>wordState == wordPaged {
				wanted[x] = struct{}{}
			}
			last = x
		}
		return nil
	})
	return s.loadMany(slices.Collect(maps.Keys(wanted)))
}

// passSeal notes that a seal which the catalog knows lies behind, and reports whether this is one, or one that was undone before
// the next.
func (p *replayer) passSeal(l *Layer, r *record) bool {
	ahead := p.seals[r.Layer]
	if len(ahead) == 0 {
		return false
	}
	if p.byNumber[uint32(r.Block)] == ahead[0] {
		p.seals[r.Layer] = ahead[1:]
	}
	return true
}

type replayRegion struct {
	m      *sectorMap
	region uint64
}

// loadMany loads regions, several at a time: from segments of which it wants much by reading them from end to end, from others
// in the order in which the records lie on the store.
func (s *Store) loadMany(wanted []replayRegion) error {
	at := func(x replayRegion) place { return place(x.m.word(x.region) & placeMask) }
	slices.SortFunc(wanted, func(a, b replayRegion) int {
		if c := cmp.Compare(a.m.number, b.m.number); c != 0 {
			return c
		}
		return cmp.Compare(at(a), at(b))
	})
	var segments []*segment
	bySegment := map[*segment][]replayRegion{}
	for _, x := range wanted {
		e, ok := x.m.store.find(at(x).slot())
		if !ok {
			continue
		}
		if bySegment[e.seg] == nil {
			segments = append(segments, e.seg)
		}
		bySegment[e.seg] = append(bySegment[e.seg], x)
	}
	var jobs []func() error
	for _, seg := range segments {
		regions := bySegment[seg]
		if len(regions) > int(seg.records/8) {
			jobs = append(jobs, func() error { return s.loadSegment(regions[0].m, seg, regions) })
			continue
		}
		for part := range slices.Chunk(regions, 256) {
			jobs = append(jobs, func() error {
				for _, x := range part {
					if err := s.load(x.m, x.region); err != nil {
						return err
					}
				}
				return nil
			})
		}
	}
	return s.inParallel(jobs)
}

func (s *Store) inParallel(jobs []func() error) error {
	const workers = 8
	var next atomic.Int64
	var group sync.WaitGroup
	errs := make([]error, min(workers, len(jobs)))
	group.Add(len(errs))
	for w := range errs {
		s.spawn(func() {
			defer group.Done()
			for errs[w] == nil {
				i := int(next.Add(1)) - 1
				if i >= len(jobs) {
					return
				}
				errs[w] = jobs[i]()
			}
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

// loadSegment loads regions whose records lie in a segment by reading all of it.
func (s *Store) loadSegment(m *sectorMap, seg *segment, regions []replayRegion) error {
	want := make(map[uint64]bool, len(regions))
	for _, x := range regions {
		want[x.region] = true
	}
	r := segmentReader{s: s, m: m, seg: seg}
	for {
		at, record, err := r.next()
		if err != nil || record.b == nil {
			return err
		}
		region := record.region()
		if !want[region] {
			continue
		}
		m.mu.Lock()
		w := m.word(region)
		if w>>wordState == wordPaged && place(w&placeMask)>>11 == at>>11 {
			if err = m.checkRecord(&record, region, place(w&placeMask), s.sb.Slots); err == nil {
				m.fill(region, place(w&placeMask), record)
			}
		}
		m.mu.Unlock()
		if err != nil {
			return &CorruptError{"map", s.sb.slotOffset(at.slot()), err.Error()}
		}
	}
}

func (s *Store) readLog() (sources []logSource, release func(), err error) {
	size := int(s.sb.LogBlocks) << blockShift
	mem, release, err := logMemory(2 * size)
	if err != nil {
		return nil, nil, fmt.Errorf("map log: %w", err)
	}
	var jobs []func() error
	for i, first := range [...]uint64{s.sb.LogA, s.sb.LogB} {
		p, off := mem[i*size:(i+1)*size], int64(first)<<blockShift
		sources = append(sources, logSource{p, s.sb.LogBlocks, false})
		for piece := range slices.Chunk(p, logPiece) {
			at := off
			jobs = append(jobs, func() error { s.readCopy(piece, at); return nil })
			off += int64(len(piece))
		}
	}
	_ = s.inParallel(jobs) // none fails
	return sources, release, nil
}

// logMemory is memory that a large log gives back to the system at once.
func logMemory(n int) (mem []byte, release func(), err error) {
	if n <= minLogBlocks<<blockShift {
		return alignedBuffer(n), func() {}, nil
	}
	mem, err = unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	return mem, func() { _ = unix.Munmap(mem) }, err
}

// logPiece is how much of the log is read at a time.
const logPiece = 1 << 20

// readCopy reads a part of a copy of the log. A block that cannot be read becomes zero: the other copy may have it.
func (s *Store) readCopy(p []byte, off int64) {
	for piece := range slices.Chunk(p, logPiece) {
		if _, err := s.disk.ReadAt(piece, off); err != nil {
			s.readBlocks(piece, off)
		}
		off += int64(len(piece))
	}
}

// readBlocks is readCopy block by block.
func (s *Store) readBlocks(p []byte, off int64) {
	for block := range slices.Chunk(p, blockSize) {
		if _, err := s.disk.ReadAt(block, off); err != nil {
			clear(block)
		}
		off += blockSize
	}
}

// applyLog applies the records of the blocks. Those that are pending are in the memory of a process that died, and nowhere else.
func (s *Store) applyLog(blocks logBlocks, p *replayer, pending func(seq uint64) bool, durable uint64) error {
	data := alignedBuffer(blockSize)
	return blocks.each(func(seq uint64, r *record, rest []byte) error {
		l := p.byNumber[r.Layer]
		if l == nil { // removed since
			return nil
		}
		if !r.valid(s.sb.Slots, l.m.blocks) {
			return &CorruptError{"log", s.logOffset(s.sb.LogA, seq), "record out of range"}
		}
		s.volatile = pending(seq)
		switch {
		case r.Kind == kindSeal || r.Kind == kindMerge:
			if err := p.layers(l, r, rest); err != nil {
				return err
			}
		case (seq > durable && !seeded(bugTrustsFirstBlock) || seq > durable+1) && r.Kind == kindData && !s.arrived(r, data):
			s.recovery.Dropped++
			// The bitmap may have been written when the record counted, and another may have superseded it since.
			s.slots.disown(r.Slot)
			return nil
		default:
			if err := s.replayRecord(p.target(l), r); err != nil {
				return err
			}
		}
		s.recovery.Records++
		return nil
	})
}

// replayRecord repeats a write or a zeroing.
func (s *Store) replayRecord(m *sectorMap, r *record) error {
	if err := s.loadAll(m, r.Block, r.blocks()); err != nil {
		return err
	}
	m.apply(r, s.supersede)
	if r.Kind == kindData && !seeded(bugReplayOwnsNothing) {
		s.slots.own(r.Slot)
	}
	return nil
}

// supersede notes a slot that a replayed record leaves without an owner. Where the record was pending, nothing may be written
// there before the recovered state is durable: until then another recovery may begin from the old one, without it.
func (s *Store) supersede(slot uint64) {
	s.slots.disown(slot)
	if s.volatile && !seeded(bugReplayFreesSuperseded) {
		s.superseded = append(s.superseded, slot)
	}
}

// layers repeats a change of layers. rest is what follows its record in the block: the text.
func (p *replayer) layers(l *Layer, r *record, rest []byte) error {
	if r.Kind == kindMerge {
		return p.s.replayMerge(l, r, p.byNumber)
	}
	if sealed := p.byNumber[uint32(r.Block)]; sealed == l || sealed != nil && sealed.m.blocks != l.m.blocks {
		return &CorruptError{"log", -1, fmt.Sprintf("layer %d was sealed as layer %d, which is another", r.Layer, r.Block)}
	}
	if p.passSeal(l, r) {
		return nil
	}
	var text []byte
	for n := int(r.CRC); n > 0; n -= textPerRecord {
		if len(rest) < recordSize || rest[0] != kindText {
			return &CorruptError{"log", -1, fmt.Sprintf("name of sealed layer %d cut short", r.Block)}
		}
		text = append(text, rest[8:8+min(n, textPerRecord)]...)
		rest = rest[recordSize:]
	}
	return p.s.replaySeal(l, r, text, p.byNumber)
}

// arrived tells whether the data of a record has reached its slot. Where that cannot be read it counts as there: a FUA
// write may have covered it, and reading the block will fail, instead of bringing old content back.
func (s *Store) arrived(r *record, buf []byte) bool {
	for range 3 {
		if _, err := s.disk.ReadAt(buf, s.sb.slotOffset(r.Slot)); err == nil {
			return checksum(buf) == r.CRC || seeded(bugNoDataCheck)
		}
	}
	return true
}

// claimSlots builds the bitmap of used slots: those that maps own, as the bitmap on the store and the log have it, and those that
// hold the store's own structures. Two owners of one slot are damage.
func (s *Store) claimSlots() error {
	s.slots.useOwned()
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
	for _, p := range s.slots.bitmapEntries() {
		if p.Slot == noSlot {
			continue
		}
		if err := claim("bitmap", []extent{{p.Slot, 1}}); err != nil {
			return err
		}
	}
	if err := claim("map", s.stale); err != nil {
		return err
	}
	for _, l := range s.layers {
		for _, m := range [...]*sectorMap{l.m, l.flat} {
			if m == nil {
				continue
			}
			e := m.entry()
			if err := claim("map", e.slots()); err != nil {
				return err
			}
		}
	}
	for _, slot := range s.superseded {
		if s.slots.claim(slot) {
			s.stale = appendExtent(s.stale, slot, 1)
		}
	}
	s.superseded = nil
	return nil
}
