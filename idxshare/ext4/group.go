package ext4

import "iter"

// Group is a part of the file system with an inode table of its own.
type Group struct {
	Table       uint64 // first block of its inode table
	TableBlocks uint64
	FirstInode  uint32
	Inodes      uint32 // that the table has room for
	Initialised uint32 // of them, from the first on, those that may ever have been used
}

// Group returns group n of [Info.Groups].
func (fs *FS) Group(n int) Group {
	s, g := fs.super, fs.groups[n]
	return Group{Table: g.inodeTable, TableBlocks: s.tableBlocks, FirstInode: uint32(n)*s.inodesPerGroup + 1, Inodes: s.inodesPerGroup, Initialised: g.initialised}
}

// JournalInode returns the inode whose content is the journal; 0: there is none, or it lies on another device.
func (fs *FS) JournalInode() uint32 {
	if !fs.super.compat(compatHasJournal) {
		return 0
	}
	return fs.super.journalIno
}

// Replayed goes through the blocks that the journal replaces, in no order: they are not what the reader has there.
func (fs *FS) Replayed() iter.Seq[uint64] {
	return func(yield func(uint64) bool) {
		for block := range fs.overlay {
			if !yield(block) {
				return
			}
		}
	}
}
