package ext4

import (
	"fmt"
	"slices"
	"sort"
)

// PlaceKind says what a block is for, as far as the layout of the file system tells it.
type PlaceKind int

const (
	// PlaceOther is content, directories, maps, attributes, the journal, or free: which, inodes tell.
	PlaceOther PlaceKind = iota
	PlaceSuper
	// PlaceDescriptors are the group descriptors, their copies, and the blocks that are kept for more of them.
	PlaceDescriptors
	PlaceBlockBitmap
	PlaceInodeBitmap
	PlaceInodeTable
)

func (k PlaceKind) String() string {
	names := [...]string{"other", "superblock", "group descriptors", "block bitmap", "inode bitmap", "inode table"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("kind %d", int(k))
}

// Place is what a block is.
type Place struct {
	Kind  PlaceKind
	Group uint32 // of all but PlaceOther; of a PlaceInodeTable, the one that the table is of

	// Of a PlaceInodeTable: the first inode of which bytes lie in the block, and how many, those that were never made included.
	FirstInode, Inodes uint32
}

// region is a run of blocks that are for one thing.
type region struct {
	first, count uint64
	kind         PlaceKind
	group        uint32
}

// Place tells what a block of the file system is. The first call sorts where all groups' parts lie: 32 bytes of memory for each.
func (fs *FS) Place(block uint64) Place {
	fs.regionsOnce.Do(fs.sortRegions)
	n := sort.Search(len(fs.regions), func(n int) bool { return fs.regions[n].first > block })
	if n == 0 {
		return Place{}
	}
	r := fs.regions[n-1]
	if block-r.first >= r.count {
		return Place{}
	}
	place := Place{Kind: r.kind, Group: r.group}
	if r.kind == PlaceInodeTable {
		s := fs.super
		perBlock := uint32(s.blockSize / s.inodeSize)
		index := uint32(block-r.first) * perBlock
		place.FirstInode = r.group*s.inodesPerGroup + index + 1
		place.Inodes = min(perBlock, s.inodesPerGroup-index)
	}
	return place
}

func (fs *FS) sortRegions() {
	s := fs.super
	perBlock := uint64(s.blockSize / s.descSize)
	metaFirst := s.descBlocks()
	if s.incompat(incompatMetaBG) {
		metaFirst = min(metaFirst, uint64(s.firstMetaBG))
	}
	for n, g := range fs.groups {
		number := uint32(n)
		add := func(kind PlaceKind, first, count uint64) {
			if count > 0 {
				fs.regions = append(fs.regions, region{first: first, count: count, kind: kind, group: number})
			}
		}
		start := s.groupFirst(uint64(n))
		if s.hasSuper(uint64(n)) {
			if n == 0 {
				start = s.superBlock()
			}
			add(PlaceSuper, start, 1)
			add(PlaceDescriptors, start+1, metaFirst+s.reservedDesc)
		}
		// Under meta_bg the descriptors of a run of groups lie in its first, second and last group.
		if run := uint64(n) / perBlock; run >= metaFirst && s.incompat(incompatMetaBG) {
			switch in := uint64(n) % perBlock; in {
			case 0:
				add(PlaceDescriptors, s.descBlock(run), 1)
			case 1, perBlock - 1:
				copyAt := s.groupFirst(uint64(n))
				if s.hasSuper(uint64(n)) {
					copyAt++
				}
				add(PlaceDescriptors, copyAt, 1)
			}
		}
		add(PlaceBlockBitmap, g.blockBitmap, 1)
		add(PlaceInodeBitmap, g.inodeBitmap, 1)
		add(PlaceInodeTable, g.inodeTable, s.tableBlocks)
	}
	slices.SortFunc(fs.regions, func(a, b region) int {
		switch {
		case a.first < b.first:
			return -1
		case a.first > b.first:
			return 1
		}
		return 0
	})
}

// Regions calls fn for the runs of blocks that are for something else than [PlaceOther], in order: those of one kind that adjoin each other as one.
func (fs *FS) Regions(fn func(first, count uint64, kind PlaceKind) error) error {
	fs.regionsOnce.Do(fs.sortRegions)
	var run region
	tell := func() error {
		if run.count == 0 {
			return nil
		}
		return fn(run.first, run.count, run.kind)
	}
	for _, r := range fs.regions {
		if r.first >= fs.super.blocks {
			break
		}
		r.count = min(r.count, fs.super.blocks-r.first)
		if r.kind == run.kind && r.first == run.first+run.count {
			run.count += r.count
			continue
		}
		if err := tell(); err != nil {
			return err
		}
		run = r
	}
	return tell()
}
