package tree

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"coppice/image"
)

// The layout of ext4 is that of the kernel's Documentation/filesystems/ext4.
const (
	superAt    = 1024
	superSize  = 1024
	ext4Magic  = 0xef53
	rootInode  = 2
	inodeBase  = 128 // of an inode, in its first version
	blockMap   = 0x28
	mapSize    = 60
	descSize   = 32
	wideDesc   = 64
	maxSymlink = 4096
	// longestPath bounds how deep directories are in each other.
	longestPath = 64 << 10
	// fastSymlink is the length from which a target needs a block.
	fastSymlink = mapSize

	compatJournal      = 0x4
	incompatFileType   = 0x2
	incompatRecover    = 0x4
	incompatExtents    = 0x40
	incompat64bit      = 0x80
	incompatFlexGroups = 0x200
	incompatSeed       = 0x2000
	incompatLargeDir   = 0x4000
	incompatKnown      = incompatFileType | incompatExtents | incompat64bit | incompatFlexGroups | incompatSeed | incompatLargeDir
	// fewestBlocks is the least that a group has.
	fewestBlocks = 256
	// roCompatKnown: sparse superblocks, large and huge files, checksums of groups and of all metadata, many subdirectories, room in inodes.
	roCompatKnown = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x40 | 0x400

	flagExtents = 0x80000
	flagInline  = 0x10000000
	flagEncrypt = 0x800
)

var le = binary.LittleEndian

// corrupt says that a file system is not what it should be. It matches [image.ErrCorrupt].
func corrupt(format string, args ...any) error {
	return &image.CorruptError{What: "file system", Place: "ext4", Detail: fmt.Sprintf(format, args...)}
}

// ext4 reads a file system that nobody writes.
type ext4 struct {
	r              io.ReaderAt
	size           int64
	blockSize      int64
	blocks         uint64
	freeBlocks     uint64
	inodes         uint32
	inodesPerGroup uint32
	inodeSize      int64
	tables         []uint64 // the block at which the inodes of each group begin
	clean          bool
}

// errNoExt4 is for what is no ext4 file system at all.
var errNoExt4 = fmt.Errorf("holds no ext4 file system, or one behind a partition table: %w", image.ErrBadOption)

func openExt4(r io.ReaderAt, size int64) (*ext4, error) {
	p := make([]byte, superSize)
	if _, err := r.ReadAt(p, superAt); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errNoExt4
		}
		return nil, err
	}
	if le.Uint16(p[0x38:]) != ext4Magic {
		return nil, errNoExt4
	}
	incompat, roCompat := le.Uint32(p[0x60:]), le.Uint32(p[0x64:])
	if unknown := incompat &^ (incompatKnown | incompatRecover); unknown != 0 || roCompat&^roCompatKnown != 0 {
		return nil, fmt.Errorf("its ext4 file system has features that are not understood here (incompat %#x, ro_compat %#x): %w",
			unknown, roCompat&^roCompatKnown, image.ErrBadOption)
	}
	f := &ext4{r: r, size: size, inodes: le.Uint32(p), inodesPerGroup: le.Uint32(p[0x28:]), inodeSize: int64(le.Uint16(p[0x58:])),
		blocks: uint64(le.Uint32(p[4:])), freeBlocks: uint64(le.Uint32(p[0xc:])), clean: incompat&incompatRecover == 0 && le.Uint16(p[0x3a:])&3 == 1}
	logBlock, perGroup, first := le.Uint32(p[0x18:]), le.Uint32(p[0x20:]), le.Uint32(p[0x14:])
	desc := int64(descSize)
	if incompat&incompat64bit != 0 {
		desc = int64(le.Uint16(p[0xfe:]))
		f.blocks |= uint64(le.Uint32(p[0x150:])) << 32
		f.freeBlocks |= uint64(le.Uint32(p[0x158:])) << 32
	}
	if logBlock > 6 || perGroup < fewestBlocks || first > 1 || desc < descSize || desc > superSize || f.inodesPerGroup == 0 ||
		f.inodeSize < inodeBase || f.inodeSize > 1024 || f.inodes < rootInode {
		return nil, corrupt("the superblock makes no sense")
	}
	f.blockSize = 1024 << logBlock
	if f.blocks <= uint64(first) || f.blocks > uint64(size/f.blockSize) {
		return nil, corrupt("it has %d blocks of %d bytes, in %d bytes", f.blocks, f.blockSize, size)
	}
	groups := (f.blocks - uint64(first) + uint64(perGroup) - 1) / uint64(perGroup)
	if uint64(f.inodes/f.inodesPerGroup) != groups || f.inodes%f.inodesPerGroup != 0 {
		return nil, corrupt("%d groups of %d inodes are not %d", groups, f.inodesPerGroup, f.inodes)
	}
	return f, f.readGroups(int64(first)+1, groups, desc)
}

func (f *ext4) readGroups(at int64, groups uint64, desc int64) error {
	p := make([]byte, desc)
	for g := range int64(groups) {
		if _, err := f.r.ReadAt(p, at*f.blockSize+g*desc); err != nil {
			return err
		}
		table := uint64(le.Uint32(p[8:]))
		if desc >= wideDesc {
			table |= uint64(le.Uint32(p[0x28:])) << 32
		}
		f.tables = append(f.tables, table)
	}
	return nil
}

// readBlocks reads from the beginning of a block on.
func (f *ext4) readBlocks(p []byte, block uint64) error {
	if block == 0 || block >= f.blocks || uint64(len(p)) > (f.blocks-block)*uint64(f.blockSize) {
		return corrupt("block %d is referred to, of %d", block, f.blocks)
	}
	_, err := f.r.ReadAt(p, int64(block)*f.blockSize)
	return err
}

// inode reads an inode as it is stored.
func (f *ext4) inode(number uint64) ([]byte, error) {
	if number == 0 || number > uint64(f.inodes) {
		return nil, corrupt("inode %d is referred to, of %d", number, f.inodes)
	}
	group, index := (number-1)/uint64(f.inodesPerGroup), int64((number-1)%uint64(f.inodesPerGroup))
	block := f.tables[group] + uint64(index*f.inodeSize/f.blockSize)
	if block >= f.blocks {
		return nil, corrupt("the inodes of group %d lie at block %d, of %d", group, block, f.blocks)
	}
	p := make([]byte, f.inodeSize)
	_, err := f.r.ReadAt(p, int64(f.tables[group])*f.blockSize+index*f.inodeSize)
	return p, err
}

// Open lists an ext4 file system that has size bytes and was not mounted when it was copied, without what e2fsprogs put there: lost+found,
// where it is empty.
func Open(ctx context.Context, r io.ReaderAt, size int64) (*Tree, error) {
	f, err := openExt4(r, size)
	if err != nil {
		return nil, err
	}
	return f.tree(ctx)
}

func (f *ext4) tree(ctx context.Context) (*Tree, error) {
	t := &Tree{Label: "ext4", open: f.open}
	w := &ext4Walk{ext4: f, tree: t, nodes: map[uint64]*Node{}, left: f.blocks}
	root, err := w.node(rootInode)
	if err == nil && !root.isDir() {
		err = corrupt("the root is no directory")
	}
	if err == nil {
		err = w.directory(ctx, "", root)
	}
	if err != nil {
		return nil, err
	}
	t.finish()
	return t, nil
}

type ext4Walk struct {
	*ext4
	tree  *Tree
	nodes map[uint64]*Node
	left  uint64 // blocks of directories that can still come, unless some are had twice
}

func (w *ext4Walk) node(number uint64) (*Node, error) {
	if n := w.nodes[number]; n != nil {
		return n, nil
	}
	p, err := w.inode(number)
	if err != nil {
		return nil, err
	}
	n, err := w.decode(p)
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", number, err)
	}
	n.at = number
	w.nodes[number] = n
	return n, nil
}

func (w *ext4Walk) directory(ctx context.Context, path string, dir *Node) error {
	w.tree.names = append(w.tree.names, name{path, dir})
	return w.eachEntry(dir, func(number uint64, base string) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		below := base
		if path != "" {
			below = path + "/" + base
		}
		if len(below) > longestPath {
			return corrupt("a path has more than %d bytes", longestPath)
		}
		_, seen := w.nodes[number]
		n, err := w.node(number)
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", show(below), err)
		case n.isDir() && seen:
			return corrupt("directory %s is in two places", show(below))
		case n.isDir():
			return w.directory(ctx, below, n)
		}
		w.tree.names = append(w.tree.names, name{below, n})
		return nil
	})
}

// eachEntry calls do for each entry of a directory, but for . and ..
func (w *ext4Walk) eachEntry(dir *Node, do func(number uint64, base string) error) error {
	p, err := w.inode(dir.at)
	if err != nil {
		return err
	}
	size := int64(le.Uint32(p[4:])) | int64(le.Uint32(p[0x6c:]))<<32
	extents, err := w.extents(p)
	if err != nil {
		return err
	}
	block := make([]byte, w.blockSize)
	for _, e := range extents {
		for i := range e.count {
			if int64(e.logical+i)*w.blockSize >= size || e.unwritten {
				break
			}
			if err := spend(&w.left); err != nil {
				return err
			}
			if err := w.readBlocks(block, e.physical+i); err != nil {
				return err
			}
			if err := eachInBlock(block, do); err != nil {
				return err
			}
		}
	}
	return nil
}

// spend fails where a file system refers to the same blocks again and again, so that there is no end.
func spend(left *uint64) error {
	if *left == 0 {
		return corrupt("blocks are referred to several times")
	}
	*left--
	return nil
}

func eachInBlock(p []byte, do func(number uint64, base string) error) error {
	for len(p) > 0 {
		if len(p) < 8 {
			return corrupt("an entry of a directory ends early")
		}
		number, n, length := uint64(le.Uint32(p)), int(le.Uint16(p[4:])), int(p[6])
		if n == 0xffff || n == 0 && len(p) == 64<<10 {
			n = len(p)
		}
		if n < 8 || n > len(p) || 8+length > n {
			return corrupt("an entry of a directory has %d bytes", n)
		}
		base := string(p[8 : 8+length])
		p = p[n:]
		if number == 0 || base == "." || base == ".." {
			continue
		}
		if base == "" || bytes.ContainsAny([]byte(base), "/\x00") {
			return corrupt("a directory has the name %.80q", base)
		}
		if err := do(number, base); err != nil {
			return err
		}
	}
	return nil
}

func (f *ext4) decode(p []byte) (*Node, error) {
	flags, extra := le.Uint32(p[0x20:]), extraOf(p)
	n := &Node{
		Mode: uint32(le.Uint16(p)), UID: uint32(le.Uint16(p[2:])) | uint32(le.Uint16(p[0x78:]))<<16, GID: uint32(le.Uint16(p[0x18:])) | uint32(le.Uint16(p[0x7a:]))<<16,
		Seconds: int64(int32(le.Uint32(p[0x10:]))),
	}
	if extra >= 12 {
		more := le.Uint32(p[0x88:])
		n.Seconds += int64(more&3) << 32
		n.Nanoseconds = more >> 2
	}
	if flags&(flagInline|flagEncrypt) != 0 {
		return nil, fmt.Errorf("files with flags %#x are not understood: %w", flags, image.ErrBadOption)
	}
	size := int64(le.Uint32(p[4:])) | int64(le.Uint32(p[0x6c:]))<<32
	var err error
	switch n.kind() {
	case unix.S_IFREG:
		if n.Size = size; size < 0 || size > 1<<44 {
			err = corrupt("a file has %d bytes", size)
		}
	case unix.S_IFLNK:
		n.Target, err = f.target(p, size, flags)
	case unix.S_IFCHR, unix.S_IFBLK:
		n.Major, n.Minor = device(p)
	case unix.S_IFDIR, unix.S_IFIFO, unix.S_IFSOCK:
	default:
		err = corrupt("a file has mode %#o", n.Mode)
	}
	if err == nil {
		n.extra = le.Uint32(p[0x68:]) != 0 || le.Uint16(p[0x76:]) != 0
		n.Xattrs, err = f.xattrs(p)
	}
	return n, err
}

// extraOf is how much of what is behind the first 128 bytes of an inode is fields.
func extraOf(p []byte) int {
	if len(p) <= inodeBase+4 {
		return 0
	}
	return min(int(le.Uint16(p[inodeBase:])), len(p)-inodeBase)
}

func (f *ext4) target(p []byte, size int64, flags uint32) (string, error) {
	switch {
	case size <= 0 || size > maxSymlink:
		return "", corrupt("a symbolic link has %d bytes", size)
	case flags&flagExtents == 0 && size < fastSymlink:
		return string(p[blockMap:][:size]), nil
	}
	r, err := f.reader(p, size)
	if err != nil {
		return "", err
	}
	target, err := io.ReadAll(r)
	return string(target), err
}

func device(p []byte) (major, minor uint32) {
	if old := le.Uint32(p[blockMap:]); old != 0 {
		return old >> 8 & 0xff, old & 0xff
	}
	dev := le.Uint32(p[blockMap+4:])
	return dev >> 8 & 0xfff, dev&0xff | dev>>12&0xfff00
}
