package ext4

import (
	"context"
	"fmt"
)

// scanBytes is how much of an inode table is read at once.
const scanBytes = 1 << 20

// Scan calls fn for every inode in use, in order of their numbers: of the user's files and directories and of those that the file system keeps for itself.
// It reads the inode tables only, front to back, and leaves out what no inode was ever made in. An error of fn ends it and is returned as it is.
func (fs *FS) Scan(ctx context.Context, fn func(*Inode) error) error {
	buffer := make([]byte, max(scanBytes, fs.super.blockSize))
	for g := range fs.groups {
		if err := fs.scanGroup(ctx, uint32(g), 0, fs.groups[g].initialised, buffer, fn); err != nil {
			return err
		}
	}
	return nil
}

// ScanRange calls fn for those of count inodes from first on that are in use, as [FS.Scan] does.
func (fs *FS) ScanRange(ctx context.Context, first, count uint32, fn func(*Inode) error) error {
	s := fs.super
	if count == 0 {
		return nil
	}
	if first == 0 || uint64(first)+uint64(count)-1 > s.inodes {
		return corrupt("reference to inodes", fmt.Sprintf("%d and %d more", first, count-1), "inodes are numbered from 1 to %d", s.inodes)
	}
	buffer := make([]byte, min(uint64(max(scanBytes, s.blockSize)), (uint64(count)*uint64(s.inodeSize)/uint64(s.blockSize)+2)*uint64(s.blockSize)))
	for next, end := uint64(first-1), uint64(first-1)+uint64(count); next < end; {
		g := uint32(next / uint64(s.inodesPerGroup))
		from := uint32(next % uint64(s.inodesPerGroup))
		to := uint32(min(uint64(s.inodesPerGroup), uint64(from)+end-next))
		if err := fs.scanGroup(ctx, g, from, min(to, fs.groups[g].initialised), buffer, fn); err != nil {
			return err
		}
		next += uint64(to - from)
	}
	return nil
}

// scanGroup goes over inodes from up to, but not including, to of a group's table, with a buffer of whole blocks.
func (fs *FS) scanGroup(ctx context.Context, g, from, to uint32, buffer []byte, fn func(*Inode) error) error {
	s := fs.super
	perBlock := uint32(s.blockSize / s.inodeSize)
	for at := from - from%perBlock; at < to; {
		if err := cause(ctx); err != nil {
			return err
		}
		block := fs.groups[g].inodeTable + uint64(at/perBlock)
		blocks := min(uint32(len(buffer)/s.blockSize), (to-at+perBlock-1)/perBlock)
		b := buffer[:int(blocks)*s.blockSize]
		if err := fs.readBlocks(block, b); err != nil {
			return fmt.Errorf("inode table of group %d: %w", g, err)
		}
		for end := min(to, at+blocks*perBlock); at < end; at++ {
			raw := b[:s.inodeSize]
			b = b[s.inodeSize:]
			if at < from || le.Uint16(raw[0x1A:]) == 0 {
				continue
			}
			inode, err := fs.parseInode(g*s.inodesPerGroup+at+1, fs.groups[g].inodeTable+uint64(at/perBlock), raw)
			if err != nil {
				return err
			}
			if err := fn(inode); err != nil {
				return err
			}
		}
	}
	return nil
}
