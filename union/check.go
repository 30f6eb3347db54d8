package union

import (
	"errors"
	"fmt"

	"github.com/google/uuid"
)

// CheckOptions say how to check a store.
type CheckOptions struct {
	// Repair writes again what one copy of a superblock or of the log holds and the other does not.
	Repair bool
	// NoData leaves the content of data slots unread: the structures only.
	NoData bool
}

// Problem is one thing that a check found.
type Problem struct {
	Structure  string `json:"structure"`
	Offset     int64  `json:"offset"` // bytes from the start of the store; -1: no single place
	Detail     string `json:"detail"`
	Repairable bool   `json:"repairable"` // another copy has it
}

func (p Problem) String() string {
	s := p.Structure
	if p.Offset >= 0 {
		s += fmt.Sprintf(" at byte %d", p.Offset)
	}
	s += ": " + p.Detail
	if p.Repairable {
		s += " (another copy is good)"
	}
	return s
}

// CheckReport is what a check found. The store is sound if Problems is empty; Repaired lists what
// Problems held before a repair.
type CheckReport struct {
	Path       string    `json:"path"`
	Store      StoreInfo `json:"store"`
	DataBlocks uint64    `json:"data_blocks"` // read and compared with their checksums
	Problems   []Problem `json:"problems"`
	Repaired   []Problem `json:"repaired"`

	opener uuid.UUID // boot in which the store was opened and not closed
}

// maxProblems bounds a report on a store that is damaged all over.
const maxProblems = 1000

// Check reads a store that nobody has open: superblocks, catalog, runs, both copies of the log, who owns
// each slot, and every data block against its checksum. It writes nothing unless it is to repair. The error is for
// what kept it from checking; what it found is in the report.
func Check(path string, o CheckOptions) (*CheckReport, error) {
	d, err := openDisk(path, true)
	if err != nil {
		return nil, fmt.Errorf("check store: %w", err)
	}
	rep, err := checkDisk(path, d, o)
	if err := errors.Join(err, d.Close()); err != nil {
		return nil, fmt.Errorf("check store %s: %w", path, err)
	}
	if !o.Repair || len(rep.Problems) == 0 {
		return rep, nil
	}
	for _, p := range rep.Problems {
		if !p.Repairable {
			return rep, nil
		}
	}
	return repair(path, rep, o)
}

// repair opens the store for writing, which writes every superblock and an empty log again. That would outdate
// the pending records of a process of this boot that did not close the store.
func repair(path string, found *CheckReport, o CheckOptions) (*CheckReport, error) {
	boot, err := bootID()
	if err != nil {
		return nil, fmt.Errorf("repair: read boot id: %w", err)
	}
	if found.opener == boot {
		return nil, fmt.Errorf("repair %s: a daemon of this boot had it open and did not close it, and may have left acknowledged writes "+
			"in its run directory: start the daemon on it, which repairs it too", path)
	}
	s, err := OpenStore(path, StoreOptions{})
	if err != nil {
		return nil, fmt.Errorf("repair: %w", err)
	}
	if err := s.Close(); err != nil {
		return nil, fmt.Errorf("repair: %w", err)
	}
	again, err := Check(path, CheckOptions{NoData: o.NoData})
	if err != nil {
		return nil, fmt.Errorf("check after repair: %w", err)
	}
	again.Repaired = found.Problems
	return again, nil
}

func checkDisk(path string, d disk, o CheckOptions) (*CheckReport, error) {
	rep := &CheckReport{Path: path, Problems: []Problem{}, Repaired: []Problem{}}
	s := &Store{path: path, disk: d, readOnly: true, pager: newPager(), layers: map[string]*Layer{}}
	s.space.setUp(StoreOptions{})
	if err := s.recover(StoreOptions{ReadOnly: true}); err != nil {
		var c *CorruptError
		if !errors.As(err, &c) {
			return nil, err
		}
		rep.add(Problem{c.Structure, c.Offset, c.Detail, false})
		return rep, nil
	}
	s.findSpace()
	rep.Store = s.Info()
	rep.opener = s.sb.BootID
	rep.checkSuperblocks(s)
	if err := rep.checkLogCopies(s); err != nil {
		return nil, err
	}
	if err := rep.checkOwners(s); err != nil {
		return nil, err
	}
	for _, l := range s.inOrder() {
		if err := rep.checkFlat(s, l); err != nil {
			return nil, err
		}
	}
	if !o.NoData {
		if err := rep.checkData(s); err != nil {
			return nil, err
		}
	}
	return rep, nil
}

func (rep *CheckReport) add(p Problem) {
	if len(rep.Problems) < maxProblems {
		rep.Problems = append(rep.Problems, p)
	}
}

func (rep *CheckReport) checkSuperblocks(s *Store) {
	buf := alignedBuffer(blockSize)
	for i, block := range superBlocks {
		off := block << blockShift
		var sb superblock
		if _, err := s.disk.ReadAt(buf, off); err != nil {
			rep.add(Problem{"superblock", off, err.Error(), true})
			continue
		}
		err := sb.decode(buf, off)
		switch {
		case err != nil:
			rep.add(Problem{"superblock", off, fmt.Sprintf("copy %c: %v", 'A'+i, err), true})
		case sb.Generation != s.sb.Generation:
			rep.add(Problem{"superblock", off, fmt.Sprintf("copy %c: generation %d, the other has %d", 'A'+i, sb.Generation, s.sb.Generation), true})
		}
	}
}

// checkLogCopies compares the two copies of every live block.
func (rep *CheckReport) checkLogCopies(s *Store) error {
	sources, release, err := s.readLog()
	if err != nil {
		return err
	}
	defer release()
	live := make(map[uint64]bool)
	var h logHeader
	for pass := range 2 {
		for c, src := range sources {
			first := [...]uint64{s.sb.LogA, s.sb.LogB}[c]
			for i := range src.blocks {
				ok := h.decode(src.mem[i<<blockShift:][:blockSize], s.sb.UUID) && h.Seq >= s.sb.LogStart && h.Seq%src.blocks == i
				switch {
				case pass == 0 && ok:
					live[i] = true
				case pass == 1 && !ok && live[i]:
					rep.add(Problem{"log", int64(first+i) << blockShift, fmt.Sprintf("copy %c lacks a block that the other has", 'A'+c), true})
				}
			}
		}
	}
	return nil
}

// eachMapped calls f for what a map of the layer says. What of it cannot be read is a problem of the store's.
func (rep *CheckReport) eachMapped(s *Store, l *Layer, m *sectorMap, f func(e *record)) error {
	var failure error
	_ = m.touched(func(region, _ uint64) error {
		records, err := s.records(m, region, nil)
		var c *CorruptError
		switch {
		case errors.As(err, &c):
			rep.add(Problem{c.Structure, c.Offset, fmt.Sprintf("layer %q, device bytes %d to %d: %s", l.entry.Name,
				region<<(regionShift+blockShift), (region+1)<<(regionShift+blockShift)-1, c.Detail), false})
			return nil
		case err != nil:
			failure = err
			return err
		}
		for i := range records {
			f(&records[i])
		}
		return nil
	})
	return failure
}

// checkOwners compares the bitmap of owned slots with what the maps of the layers own.
func (rep *CheckReport) checkOwners(s *Store) error {
	seen := newSlotAllocator(s.sb.Slots)
	var named uint64
	unread := len(rep.Problems)
	for _, l := range s.layers {
		err := rep.eachMapped(s, l, l.m, func(e *record) {
			if e.Kind != kindData {
				return
			}
			off := s.sb.slotOffset(e.Slot)
			switch {
			case !seen.claim(e.Slot):
				rep.add(Problem{"map", off, fmt.Sprintf("layer %q block %d: slot %d has two owners", l.entry.Name, e.Block, e.Slot), false})
			case !s.slots.isOwned(e.Slot):
				rep.add(Problem{"bitmap", off, fmt.Sprintf("layer %q block %d: slot %d is owned by nobody", l.entry.Name, e.Block, e.Slot), false})
			default:
				named++
			}
		})
		if err != nil {
			return err
		}
	}
	if owned := s.slots.ownedSlots(); owned != named && len(rep.Problems) == unread {
		rep.add(Problem{"bitmap", -1, fmt.Sprintf("%d slots are owned by no layer", owned-named), false})
	}
	return nil
}

// checkFlat compares the flat map of a sealed layer with the layers that it was made from.
func (rep *CheckReport) checkFlat(s *Store, l *Layer) error {
	if l.flat == nil {
		return nil
	}
	var maps [1]mapping
	var sums [1]uint32
	compare := func(block uint64, to mapping, sum uint32) {
		maps[0], sums[0] = mapAbsent, 0
		if err := l.resolveBelow(block, maps[:], sums[:]); err != nil {
			return // the layer's own map tells
		}
		if maps[0] != to || to.isData() && sums[0] != sum {
			rep.add(Problem{"map", -1, fmt.Sprintf("layer %q block %d: its flat map differs from the layers below", l.entry.Name, block), false})
		}
	}
	return rep.eachMapped(s, l, l.flat, func(e *record) {
		if e.Kind == kindData {
			compare(e.Block, dataMapping(e.Slot), e.CRC)
			return
		}
		for b := e.Block; b < e.Block+e.Slot; b++ {
			compare(b, mapZero, 0)
		}
	})
}

// resolveBelow resolves blocks that no layer above holds, by the layers' own maps until there are views.
func (l *Layer) resolveBelow(first uint64, out []mapping, sums []uint32) error {
	return l.store.untilLoaded(func() missing { return l.fill(first, out, sums) })
}
