package ext4

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
)

// FS is one file system. It is safe for concurrent use if its reader is.
type FS struct {
	r         io.ReaderAt
	super     *superblock
	groups    []group
	overlay   map[uint64]logged
	journal   Journal
	unchecked bool // checksums are not compared: for tests that mutate what they cover

	regionsOnce sync.Once
	regions     []region
}

// group is what of a group descriptor is used. Numbers of blocks are the file system's.
type group struct {
	blockBitmap, inodeBitmap, inodeTable uint64
	initialised                          uint32 // inodes at the beginning of the table that have ever been used
}

// Info describes a file system.
type Info struct {
	Type                   string // ext2, ext3 or ext4, as blkid tells them apart
	UUID                   uuid.UUID
	Label                  string
	LastMounted            string
	BlockSize              int // bytes
	Blocks, FreeBlocks     uint64
	Inodes, FreeInodes     uint64
	InodeSize              int    // bytes
	FirstInode             uint32 // the first that is not reserved; 2 is the root directory
	BlocksPerGroup         uint64
	InodesPerGroup         uint32
	Groups                 int
	Features               []string // as dumpe2fs names them
	Clean                  bool     // it was unmounted, or had its journal replayed, and no error is recorded in it
	ErrorsRecorded         bool     // the kernel found errors that e2fsck has not yet looked at
	Journal                Journal
	LastWritten, MadeOn    time.Time
	Checksums, GroupChecks bool // metadata_csum; descriptors have checksums
}

// Journal says what a journal brought.
type Journal struct {
	Replayed     bool // it had to be, and was, in memory
	Transactions int
	Blocks       int // that it replaces
}

// Open reads the superblock and group descriptors of the file system that begins at the reader's byte 0 on a device of size bytes. Where the last mount ended
// without an unmount, its journal is replayed into memory: of each block that it replaces, where in the journal it lies is kept, at most 16 GiB of them.
// The reader is never written, and used as long as the FS is.
//
// The error matches [ErrNotExt4], [ErrCorrupt] or [ErrUnsupported], or is the reader's.
func Open(r io.ReaderAt, size int64) (*FS, error) { return open(r, size, false) }

func open(r io.ReaderAt, size int64, unchecked bool) (*FS, error) {
	fs := &FS{r: r, unchecked: unchecked}
	if size < superOffset+superSize {
		return nil, fmt.Errorf("a device of %d bytes has no superblock at byte %d: %w", size, superOffset, ErrNotExt4)
	}
	b := make([]byte, superSize)
	if err := ReadFull(r, b, superOffset); err != nil {
		return nil, fmt.Errorf("superblock: %w", err)
	}
	super, err := parseSuper(b, size, unchecked)
	if err != nil {
		return nil, err
	}
	fs.super = super
	if super.incompat(incompatRecover) {
		if err := fs.replay(size); err != nil {
			return nil, fmt.Errorf("replay journal: %w", err)
		}
	}
	return fs, fs.readGroups(int(fs.super.groups))
}

// ReadFull reads all of p at an offset in bytes, or fails, at the end of r with an error that wraps [io.ErrUnexpectedEOF]. A reader may say EOF together with the last byte.
func ReadFull(r io.ReaderAt, p []byte, offset int64) error {
	n, err := r.ReadAt(p, offset)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at byte %d: %w", len(p), offset, err)
}

// readBlocks reads whole blocks from the given one on, as they are with the journal replayed. The caller has checked that they exist.
func (fs *FS) readBlocks(first uint64, p []byte) error {
	bs := fs.super.blockSize
	if err := ReadFull(fs.r, p, int64(first)*int64(bs)); err != nil {
		return err
	}
	if len(fs.overlay) == 0 {
		return nil
	}
	for i := 0; i < len(p); i += bs {
		if from, ok := fs.overlay[first+uint64(i/bs)]; ok {
			if err := fs.readLogged(from, p[i:i+bs]); err != nil {
				return err
			}
		}
	}
	return nil
}

// hasBlocks tells whether a run of blocks lies in the file system and not before its first data block.
func (fs *FS) hasBlocks(first, count uint64) bool {
	return first >= fs.super.firstData && first < fs.super.blocks && count <= fs.super.blocks-first
}

// readGroups reads the descriptors of the first n groups.
func (fs *FS) readGroups(n int) error {
	s := fs.super
	fs.groups = make([]group, 0, n)
	block := make([]byte, s.blockSize)
	perBlock := s.blockSize / s.descSize
	for i := range n {
		number := s.descBlock(uint64(i / perBlock))
		if i%perBlock == 0 {
			if number >= s.blocks {
				return corrupt("group descriptor", fmt.Sprint(i), "it would lie in block %d of %d", number, s.blocks)
			}
			if err := fs.readBlocks(number, block); err != nil {
				return fmt.Errorf("group descriptors from %d on: %w", i, err)
			}
		}
		at := i % perBlock * s.descSize
		g, err := fs.parseGroup(uint32(i), number, block[at:at+s.descSize])
		if err != nil {
			return err
		}
		fs.groups = append(fs.groups, g)
	}
	return nil
}

func (fs *FS) parseGroup(number uint32, block uint64, b []byte) (group, error) {
	s := fs.super
	where := fmt.Sprintf("%d in block %d", number, block)
	if s.hasGroupCsum && !fs.unchecked {
		if want, got := le.Uint16(b[0x1E:]), s.groupChecksum(number, b); want != got {
			return group{}, corrupt("group descriptor", where, "its checksum is %#04x, its bytes give %#04x", want, got)
		}
	}
	g := group{
		blockBitmap: uint64(le.Uint32(b)),
		inodeBitmap: uint64(le.Uint32(b[0x4:])),
		inodeTable:  uint64(le.Uint32(b[0x8:])),
		initialised: s.inodesPerGroup,
	}
	unused := uint32(le.Uint16(b[0x1C:]))
	if s.is64 {
		g.blockBitmap |= uint64(le.Uint32(b[0x20:])) << 32
		g.inodeBitmap |= uint64(le.Uint32(b[0x24:])) << 32
		g.inodeTable |= uint64(le.Uint32(b[0x28:])) << 32
		unused |= uint32(le.Uint16(b[0x32:])) << 16
	}
	if s.hasGroupCsum {
		if unused > s.inodesPerGroup {
			return group{}, corrupt("group descriptor", where, "it has %d unused inodes of %d", unused, s.inodesPerGroup)
		}
		g.initialised -= unused
		if le.Uint16(b[0x12:])&groupInodeUninit != 0 {
			g.initialised = 0
		}
	}
	switch {
	case !fs.hasBlocks(g.inodeTable, s.tableBlocks):
		return group{}, corrupt("group descriptor", where, "its inode table has blocks %d to %d, the file system ends before %d", g.inodeTable, g.inodeTable+s.tableBlocks-1, s.blocks)
	case !fs.hasBlocks(g.blockBitmap, 1) || !fs.hasBlocks(g.inodeBitmap, 1):
		return group{}, corrupt("group descriptor", where, "its bitmaps would be blocks %d and %d of %d", g.blockBitmap, g.inodeBitmap, s.blocks)
	}
	return g, nil
}

func (s *superblock) groupChecksum(number uint32, b []byte) uint16 {
	var index [4]byte
	le.PutUint32(index[:], number)
	if s.hasMetaCsum {
		crc := crc32c(s.seed, index[:])
		crc = crc32c(crc, b[:0x1E])
		crc = crc32c(crc, []byte{0, 0})
		return uint16(crc32c(crc, b[0x20:]))
	}
	crc := crc16(^uint16(0), s.uuid[:])
	crc = crc16(crc, index[:])
	crc = crc16(crc, b[:0x1E])
	return crc16(crc, b[0x20:])
}

// Info describes the file system.
func (fs *FS) Info() Info {
	s := fs.super
	var features []string
	for word := range s.features {
		features = append(features, featureList(word, s.features[word])...)
	}
	return Info{
		Type: s.kind(), UUID: s.uuid, Label: s.label, LastMounted: s.lastMounted,
		BlockSize: s.blockSize, Blocks: s.blocks, FreeBlocks: s.freeBlocks, Inodes: s.inodes, FreeInodes: s.freeInodes,
		InodeSize: s.inodeSize, FirstInode: s.firstIno, BlocksPerGroup: s.blocksPerGroup, InodesPerGroup: s.inodesPerGroup, Groups: int(s.groups),
		Features: features, Clean: s.state&3 == 1, ErrorsRecorded: s.state&2 != 0, Journal: fs.journal,
		LastWritten: time.Unix(int64(s.writeSeconds), 0), MadeOn: time.Unix(int64(s.mkfsSeconds), 0),
		Checksums: s.hasMetaCsum, GroupChecks: s.hasGroupCsum,
	}
}

// kind tells ext4 from what came before it: by any feature that the older drivers do not know.
func (s *superblock) kind() string {
	const ext3Incompat = incompatFiletype | incompatRecover | incompatMetaBG
	const ext3RO = 0x1 | 0x2 | 0x4
	switch {
	case s.features[1]&^ext3Incompat != 0 || s.features[2]&^ext3RO != 0:
		return "ext4"
	case s.compat(compatHasJournal):
		return "ext3"
	}
	return "ext2"
}

// String names the file system in a message.
func (i Info) String() string {
	label := ""
	if i.Label != "" {
		label = fmt.Sprintf(" %q", i.Label)
	}
	return fmt.Sprintf("%s%s %s, %d blocks of %d bytes (%s)", i.Type, label, i.UUID, i.Blocks, i.BlockSize, strings.Join(i.Features, " "))
}

// cause tells a caller whose context ended so, and nothing otherwise.
func cause(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}
