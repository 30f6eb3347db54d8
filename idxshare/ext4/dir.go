package ext4

import (
	"bytes"
	"context"
	"fmt"
)

// DirEntry is one name in a directory. Name is valid until the function that got it returns.
type DirEntry struct {
	Name  []byte
	Inode uint32
	Type  uint32 // ModeDir, ModeRegular, …; 0 where the directory does not say
}

const (
	dirReadBytes  = 64 << 10
	dirTailSize   = 12 // an entry without a name that holds a block's checksum
	dirTailType   = 0xDE
	dirIndexEntry = 8 // bytes of an entry of a hash tree's node
)

// dirTypes are the kinds of file by file_type.
var dirTypes = [8]uint32{0, ModeRegular, ModeDir, ModeChar, ModeBlock, ModeFIFO, ModeSocket, ModeSymlink}

// ReadDir calls fn for the names in a directory, without "." and "..", in the order of its blocks. A name is 1 to 255 bytes, any but "/" and zero;
// in an encrypted directory any at all, as they are stored. Whether inodes that names lead to are in use, it does not look at. An error of fn ends it and is returned as it is.
func (fs *FS) ReadDir(ctx context.Context, i *Inode, fn func(DirEntry) error) error {
	d := dirWalk{fs: fs, inode: i, fn: fn}
	switch {
	case i.Type() != ModeDir:
		return fmt.Errorf("inode %d is no directory: its mode is %#o", i.Number, i.Mode)
	case i.Flags&FlagInlineData != 0:
		return d.inline()
	}
	bs := int64(fs.super.blockSize)
	if i.Size%bs != 0 {
		return d.bad("its size is %d, not a multiple of a block's", i.Size)
	}
	blocks := i.Size / bs
	next := int64(0)
	var buffer []byte
	err := fs.Extents(ctx, i, func(e Extent) error {
		if e.Kind != ExtentData || next == blocks {
			return nil
		}
		if e.Logical != next || e.Unwritten {
			return d.bad("its block %d has no content", next)
		}
		length := min(e.Length, blocks-next)
		if buffer == nil {
			buffer = make([]byte, max(bs, min(dirReadBytes, i.Size)))
		}
		for done := int64(0); done < length; {
			if err := cause(ctx); err != nil {
				return err
			}
			n := min(int64(len(buffer))/bs, length-done)
			if err := fs.readBlocks(uint64(e.Physical+done), buffer[:n*bs]); err != nil {
				return fmt.Errorf("directory %d: %w", i.Number, err)
			}
			for k := range n {
				if err := d.block(buffer[k*bs:(k+1)*bs], next+k, e.Physical+done+k); err != nil {
					return err
				}
			}
			done, next = done+n, next+n
		}
		return nil
	})
	if err == nil && next != blocks {
		err = d.bad("its block %d has no content", next)
	}
	return err
}

type dirWalk struct {
	fs    *FS
	inode *Inode
	fn    func(DirEntry) error
}

func (d *dirWalk) bad(format string, args ...any) error {
	return corrupt("directory", fmt.Sprintf("inode %d", d.inode.Number), format, args...)
}

func blockWhere(physical int64) string {
	if physical < 0 {
		return "in the inode"
	}
	return fmt.Sprintf("in block %d", physical)
}

// block reads one block of names. Nodes of a hash tree look like blocks with one unused entry, the root like one with "." and ".." alone.
func (d *dirWalk) block(b []byte, logical, physical int64) error {
	if d.fs.super.hasMetaCsum && !d.fs.unchecked {
		var err error
		if node := d.inode.Flags&FlagIndex != 0 && (logical == 0 || le.Uint32(b) == 0 && d.recLen(b) == len(b)); node {
			err = d.checkNode(b, logical, physical)
		} else {
			err = d.checkLeaf(b, physical)
		}
		if err != nil {
			return err
		}
	}
	return d.entries(b, physical)
}

func (d *dirWalk) checkLeaf(b []byte, physical int64) error {
	tail := b[len(b)-dirTailSize:]
	if le.Uint32(tail) != 0 || le.Uint16(tail[4:]) != dirTailSize || tail[6] != 0 || tail[7] != dirTailType {
		return d.bad("block %d has no checksum at its end", physical)
	}
	if want, got := le.Uint32(tail[8:]), crc32c(d.inode.seed, b[:len(b)-dirTailSize]); want != got {
		return d.bad("the checksum of block %d is %#08x, its bytes give %#08x", physical, want, got)
	}
	return nil
}

// checkNode compares the checksum of a hash tree's node: it covers what is before the entries, the entries in use, and half of what it lies in.
func (d *dirWalk) checkNode(b []byte, logical, physical int64) error {
	counts := 8
	if logical == 0 {
		// Behind "." and "..", a reserved word and the description of the root, whose length it tells.
		counts = 24 + 8
		if length := b[24+5]; length != 8 {
			return d.bad("block %d: the root of its hash tree has %d bytes of description, not 8", physical, length)
		}
	}
	limit, count := int(le.Uint16(b[counts:])), int(le.Uint16(b[counts+2:]))
	tail := counts + limit*dirIndexEntry
	if count > limit || tail+8 > len(b) {
		return d.bad("block %d: a node of its hash tree would have %d entries of %d", physical, count, limit)
	}
	got := crc32c(d.inode.seed, b[:counts+count*dirIndexEntry])
	got = crc32c(got, b[tail:tail+4])
	got = crc32c(got, []byte{0, 0, 0, 0})
	if want := le.Uint32(b[tail+4:]); want != got {
		return d.bad("the checksum of block %d, a node of its hash tree, is %#08x, its bytes give %#08x", physical, want, got)
	}
	return nil
}

// recLen is the length of the entry that b begins with. Blocks of 64 KiB have lengths that 16 bits do not hold: the low two bits, always zero, hold the high ones.
func (d *dirWalk) recLen(b []byte) int {
	n := int(le.Uint16(b[4:]))
	if d.fs.super.blockSize < 1<<16 {
		return n
	}
	if n == 0 || n == 0xFFFF {
		return d.fs.super.blockSize
	}
	return n&^3 | n&3<<16
}

// entries reads the entries of a block, or of a part of a directory that lies in its inode, for which physical is -1.
func (d *dirWalk) entries(b []byte, physical int64) error {
	for at := 0; at < len(b); {
		if len(b)-at < 8 {
			return d.bad("%s, byte %d: no room for an entry", blockWhere(physical), at)
		}
		e := b[at:]
		length, nameLen := d.recLen(e), int(e[6])
		kind := e[7]
		if !d.fs.super.hasFiletype {
			nameLen, kind = int(le.Uint16(e[6:])), 0
		}
		if length < 12 && !(length == 8 && nameLen == 0) || length%4 != 0 || length > len(e) || 8+nameLen > length || nameLen > nameMax {
			return d.bad("%s, byte %d: an entry of %d bytes, of %d that are left, with a name of %d", blockWhere(physical), at, length, len(e), nameLen)
		}
		at += length
		inode, name := le.Uint32(e), e[8:8+nameLen]
		if inode == 0 || string(name) == "." || string(name) == ".." {
			continue
		}
		if uint64(inode) > d.fs.super.inodes {
			return d.bad("%s: the name %q leads to inode %d of %d", blockWhere(physical), name, inode, d.fs.super.inodes)
		}
		if len(name) == 0 || bytes.ContainsAny(name, "/\x00") && !d.inode.Encrypted() {
			return d.bad("%s: %q is no name", blockWhere(physical), name)
		}
		entry := DirEntry{Name: name, Inode: inode}
		if int(kind) < len(dirTypes) {
			entry.Type = dirTypes[kind]
		}
		if err := d.fn(entry); err != nil {
			return err
		}
	}
	return nil
}

// inline reads a directory that lies in its inode: the parent's number and entries in place of the block map, further entries in an attribute.
func (d *dirWalk) inline() error {
	if d.inode.Size < 4 {
		return d.bad("it lies in its inode and has %d bytes", d.inode.Size)
	}
	content, err := d.fs.inlineContent(d.inode)
	if err != nil {
		return err
	}
	if err := d.entries(content[4:min(len(content), inlineRoot)], -1); err != nil {
		return err
	}
	return d.entries(content[min(len(content), inlineRoot):], -1)
}
