package ext4

import (
	"context"
	"fmt"
	"math"
)

// ExtentKind says what the blocks of an extent hold.
type ExtentKind int

const (
	// ExtentData is the content of a file, or the names of a directory.
	ExtentData ExtentKind = iota
	// ExtentTree is a block of the map itself: of an extent tree, or of pointers in a file of ext2 or ext3. Its Logical is the first block that it maps.
	ExtentTree
	// ExtentXattr is the block of extended attributes, which several inodes may share. Its Logical is 0.
	ExtentXattr
)

func (k ExtentKind) String() string {
	switch k {
	case ExtentData:
		return "data"
	case ExtentTree:
		return "tree"
	case ExtentXattr:
		return "xattr"
	}
	return fmt.Sprintf("kind %d", int(k))
}

// Extent is a run of blocks of an inode. Logical counts from the beginning of the file, Physical from that of the file system.
type Extent struct {
	Kind      ExtentKind
	Logical   int64
	Physical  int64
	Length    int64
	Unwritten bool // allocated, and reads as zeros
}

const (
	extentMagic     = 0xF30A
	extentSize      = 12 // bytes of a header, an index or an extent
	extentUnwritten = 1 << 15
)

// Extents calls fn for the runs of blocks that an inode has: the block of its attributes first, then data in order of Logical, each block of the map before what
// it maps. A file whose content lies in its inode has none. An error of fn ends it and is returned as it is.
//
// No block of a map is read twice and none maps to an end that lies behind the file system's, so that time and memory are bounded by the file system's size.
func (fs *FS) Extents(ctx context.Context, i *Inode, fn func(Extent) error) error {
	if i.xattrBlock != 0 {
		if !fs.hasBlocks(i.xattrBlock, 1) {
			return corrupt("inode", fmt.Sprint(i.Number), "its attributes would lie in block %d of %d", i.xattrBlock, fs.super.blocks)
		}
		if err := fn(Extent{Kind: ExtentXattr, Physical: int64(i.xattrBlock), Length: 1}); err != nil {
			return err
		}
	}
	if !i.hasMap() {
		return nil
	}
	if i.Flags&FlagExtents != 0 {
		w := extentWalk{fs: fs, ctx: ctx, inode: i, fn: fn}
		return w.node(i.blockMap[:], "", -1, math.MaxUint32+1)
	}
	w := blockWalk{fs: fs, ctx: ctx, inode: i, fn: fn}
	return w.all()
}

// hasMap tells whether the bytes of blockMap are a map: not in devices, pipes and sockets, and not where they are the content.
func (i *Inode) hasMap() bool {
	switch i.Type() {
	case ModeRegular, ModeDir:
		return i.Flags&FlagInlineData == 0
	case ModeSymlink:
		return i.Flags&FlagInlineData == 0 && !i.fastSymlink()
	}
	return false
}

// fastSymlink tells whether a symbolic link's target lies in place of its block map, as e2fsprogs does: some kernels gave short ones blocks.
func (i *Inode) fastSymlink() bool {
	return i.Type() == ModeSymlink && i.Size < inlineRoot && i.Flags&(FlagExtents|FlagInlineData) == 0
}

// extentWalk goes over an extent tree, depth first.
type extentWalk struct {
	fs    *FS
	ctx   context.Context
	inode *Inode
	fn    func(Extent) error

	next    uint64 // the first logical block that may come
	visited uint64
	blocks  [extentDepthMax + 1][]byte // one of each depth
}

func (w *extentWalk) bad(where, format string, args ...any) error {
	if where == "" {
		return corrupt("extent tree", fmt.Sprintf("of inode %d", w.inode.Number), format, args...)
	}
	return corrupt("extent block", fmt.Sprintf("%s of inode %d", where, w.inode.Number), format, args...)
}

// node goes over the header and entries in b. depth is what its parent says that it is, or -1 for the root; what it maps lies before logical block end.
func (w *extentWalk) node(b []byte, where string, depth int, end uint64) error {
	if magic := le.Uint16(b); magic != extentMagic {
		return w.bad(where, "its magic number is %#04x, not %#04x", magic, extentMagic)
	}
	entries, most, own := int(le.Uint16(b[2:])), int(le.Uint16(b[4:])), int(le.Uint16(b[6:]))
	switch {
	case most == 0 || most > len(b)/extentSize-1 || entries > most:
		return w.bad(where, "it would have %d entries of at most %d, and has room for %d", entries, most, len(b)/extentSize-1)
	case depth >= 0 && own != depth:
		return w.bad(where, "its depth is %d where %d belongs", own, depth)
	case own > extentDepthMax:
		return w.bad(where, "its depth is %d, and %d is the most", own, extentDepthMax)
	case own > 0 && entries == 0:
		return w.bad(where, "it is at depth %d and has no entry", own)
	}
	if where != "" && w.fs.super.hasMetaCsum && !w.fs.unchecked {
		tail := extentSize * (most + 1)
		if tail+4 > len(b) {
			return w.bad(where, "%d entries leave no room for its checksum", most)
		}
		if want, got := le.Uint32(b[tail:]), crc32c(w.inode.seed, b[:tail]); want != got {
			return w.bad(where, "its checksum is %#08x, its bytes give %#08x", want, got)
		}
	}
	for n := range entries {
		e := b[extentSize*(n+1):]
		logical := uint64(le.Uint32(e))
		if logical < w.next || logical >= end {
			return w.bad(where, "entry %d maps logical block %d, where one from %d to %d belongs", n, logical, w.next, end-1)
		}
		if own == 0 {
			if err := w.extent(e, where, n, end); err != nil {
				return err
			}
			continue
		}
		limit := end
		if n+1 < entries {
			limit = uint64(le.Uint32(e[extentSize:]))
		}
		w.next = logical
		if err := w.child(uint64(le.Uint32(e[4:]))|uint64(le.Uint16(e[8:]))<<32, logical, own-1, where, limit); err != nil {
			return err
		}
		w.next = max(w.next, logical+1)
	}
	return nil
}

func (w *extentWalk) extent(e []byte, where string, n int, end uint64) error {
	logical, length := uint64(le.Uint32(e)), uint64(le.Uint16(e[4:]))
	physical := uint64(le.Uint32(e[8:])) | uint64(le.Uint16(e[6:]))<<32
	unwritten := length > extentUnwritten
	if unwritten {
		length -= extentUnwritten
	}
	switch {
	case length == 0 || logical+length > end:
		return w.bad(where, "entry %d maps %d blocks from logical block %d on, and %d is the end", n, length, logical, end)
	case !w.fs.hasBlocks(physical, length):
		return w.bad(where, "entry %d maps to blocks %d to %d, and the file system ends before %d", n, physical, physical+length-1, w.fs.super.blocks)
	}
	w.next = logical + length
	return w.fn(Extent{Kind: ExtentData, Logical: int64(logical), Physical: int64(physical), Length: int64(length), Unwritten: unwritten})
}

func (w *extentWalk) child(block, logical uint64, depth int, parent string, end uint64) error {
	if err := cause(w.ctx); err != nil {
		return err
	}
	if !w.fs.hasBlocks(block, 1) {
		return w.bad(parent, "it leads to block %d of %d", block, w.fs.super.blocks)
	}
	if w.visited++; w.visited > w.fs.super.blocks {
		return w.bad(parent, "the tree has more blocks than the file system")
	}
	if err := w.fn(Extent{Kind: ExtentTree, Logical: int64(logical), Physical: int64(block), Length: 1}); err != nil {
		return err
	}
	if w.blocks[depth] == nil {
		w.blocks[depth] = make([]byte, w.fs.super.blockSize)
	}
	if err := w.fs.readBlocks(block, w.blocks[depth]); err != nil {
		return fmt.Errorf("extent block %d of inode %d: %w", block, w.inode.Number, err)
	}
	return w.node(w.blocks[depth], fmt.Sprint(block), depth, end)
}

// blockWalk goes over the pointers of a file of ext2 or ext3: twelve to blocks, one each to a block of pointers, to a block of pointers to such, and so once more.
type blockWalk struct {
	fs    *FS
	ctx   context.Context
	inode *Inode
	fn    func(Extent) error

	run     Extent // not told yet
	logical uint64
	mapped  uint64 // blocks, of data and of the map
	levels  [3][]byte
}

func (w *blockWalk) all() error {
	for n := range directBlocks {
		if err := w.data(uint64(le.Uint32(w.inode.blockMap[4*n:]))); err != nil {
			return err
		}
	}
	for level := range w.levels {
		if err := w.indirect(uint64(le.Uint32(w.inode.blockMap[4*(directBlocks+level):])), level); err != nil {
			return err
		}
	}
	return w.flush()
}

func (w *blockWalk) bad(format string, args ...any) error {
	return corrupt("block map", fmt.Sprintf("of inode %d", w.inode.Number), format, args...)
}

// count refuses a map that has more blocks than there are: each pointer of a good one leads to another block.
func (w *blockWalk) count(block uint64) error {
	if !w.fs.hasBlocks(block, 1) {
		return w.bad("logical block %d is mapped by block %d of %d", w.logical, block, w.fs.super.blocks)
	}
	if w.mapped++; w.mapped > w.fs.super.blocks {
		return w.bad("it has more blocks than the file system")
	}
	return nil
}

func (w *blockWalk) data(block uint64) error {
	if block == 0 {
		w.logical++
		return nil
	}
	if err := w.count(block); err != nil {
		return err
	}
	r := &w.run
	if r.Length == 0 || r.Logical+r.Length != int64(w.logical) || r.Physical+r.Length != int64(block) {
		if err := w.flush(); err != nil {
			return err
		}
		*r = Extent{Kind: ExtentData, Logical: int64(w.logical), Physical: int64(block)}
	}
	r.Length++
	w.logical++
	return nil
}

func (w *blockWalk) flush() error {
	if w.run.Length == 0 {
		return nil
	}
	run := w.run
	w.run = Extent{}
	return w.fn(run)
}

// indirect goes over a block of pointers: at level 0 to data, else to blocks of the level below.
func (w *blockWalk) indirect(block uint64, level int) error {
	pointers := uint64(w.fs.super.blockSize / 4)
	if block == 0 {
		span := uint64(1)
		for range level + 1 {
			span *= pointers
		}
		w.logical += span
		return nil
	}
	if err := cause(w.ctx); err != nil {
		return err
	}
	if err := w.count(block); err != nil {
		return err
	}
	if err := w.flush(); err != nil {
		return err
	}
	if err := w.fn(Extent{Kind: ExtentTree, Logical: int64(w.logical), Physical: int64(block), Length: 1}); err != nil {
		return err
	}
	if w.levels[level] == nil {
		w.levels[level] = make([]byte, w.fs.super.blockSize)
	}
	b := w.levels[level]
	if err := w.fs.readBlocks(block, b); err != nil {
		return fmt.Errorf("block %d of pointers of inode %d: %w", block, w.inode.Number, err)
	}
	for n := range pointers {
		pointer := uint64(le.Uint32(b[4*n:]))
		if level > 0 {
			if err := w.indirect(pointer, level-1); err != nil {
				return err
			}
		} else if err := w.data(pointer); err != nil {
			return err
		}
	}
	return nil
}
