package ext4

import (
	"context"
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

// Inode is a file without its name. It belongs to the caller.
type Inode struct {
	Number     uint32
	Generation uint32 // changes when the number is used again for another file
	Mode       uint32 // st_mode
	UID, GID   uint32
	ProjectID  uint32
	Size       int64  // bytes
	Links      uint32 // 0: not in use, or deleted while it was open
	Blocks     int64  // allocated, in units of 512 bytes
	Rdev       uint64 // of a device: st_rdev
	Atime      Time
	Mtime      Time
	Ctime      Time
	Crtime     Time // zero where inodes have no room for it
	Flags      uint32

	xattrBlock uint64 // 0: none
	blockMap   [inlineRoot]byte
	body       []byte // extended attributes behind the fields, from their magic number on
	seed       uint32 // of checksums of what belongs to this inode
}

// Time is a moment as ext4 keeps it: from 1901 to 2446, farther than 64 bits of nanoseconds reach.
type Time struct {
	Sec  int64 // since 1970
	Nsec uint32
}

// UnixNano are the nanoseconds since 1970; what lies behind the year 2262 is told as the last nanosecond that there is.
func (t Time) UnixNano() int64 {
	if t.Sec >= math.MaxInt64/1_000_000_000 {
		return math.MaxInt64
	}
	return t.Sec*1_000_000_000 + int64(t.Nsec)
}

// Type is the kind of file: one of ModeDir, ModeRegular, …
func (i *Inode) Type() uint32 { return i.Mode & ModeType }

// InUse tells whether the inode is a file that a name may lead to.
func (i *Inode) InUse() bool { return i.Links > 0 }

// Encrypted tells that its content, or for a directory its names, are encrypted by the kernel.
func (i *Inode) Encrypted() bool { return i.Flags&FlagEncrypt != 0 }

// Internal says what an inode that the file system keeps for itself, without a name, is for; "" for a user's file.
func (fs *FS) Internal(i *Inode) string {
	s := fs.super
	switch i.Number {
	case rootInode:
		return ""
	case s.journalIno:
		return "journal"
	case s.quota[0], s.quota[1], s.quota[2]:
		return "quota"
	}
	switch {
	case s.compat(compatOrphanFile) && i.Number == s.orphanIno:
		return "orphan file"
	case i.Number < s.firstIno:
		return "reserved"
	case i.Flags&FlagEAInode != 0:
		return "value of an extended attribute"
	}
	return ""
}

// Inode reads one inode. One that is not in use, InUse tells; a number that the file system does not have is an error that matches [ErrCorrupt].
func (fs *FS) Inode(ctx context.Context, number uint32) (*Inode, error) {
	if err := cause(ctx); err != nil {
		return nil, err
	}
	s := fs.super
	if number == 0 || uint64(number) > s.inodes {
		return nil, corrupt("reference to inode", fmt.Sprint(number), "inodes are numbered from 1 to %d", s.inodes)
	}
	g, index := (number-1)/s.inodesPerGroup, (number-1)%s.inodesPerGroup
	if index >= fs.groups[g].initialised {
		return &Inode{Number: number}, nil
	}
	offset := uint64(index) * uint64(s.inodeSize)
	b := make([]byte, s.inodeSize)
	if err := fs.readBytes(b, int64(fs.groups[g].inodeTable*uint64(s.blockSize)+offset)); err != nil {
		return nil, fmt.Errorf("inode %d: %w", number, err)
	}
	return fs.parseInode(number, fs.groups[g].inodeTable+offset/uint64(s.blockSize), b)
}

// parseInode reads an inode from its bytes, which it does not keep.
func (fs *FS) parseInode(number uint32, block uint64, b []byte) (*Inode, error) {
	i := &Inode{
		Number:     number,
		Mode:       uint32(le.Uint16(b)),
		UID:        uint32(le.Uint16(b[0x2:])) | uint32(le.Uint16(b[0x78:]))<<16,
		GID:        uint32(le.Uint16(b[0x18:])) | uint32(le.Uint16(b[0x7A:]))<<16,
		Links:      uint32(le.Uint16(b[0x1A:])),
		Flags:      le.Uint32(b[0x20:]),
		Generation: le.Uint32(b[0x64:]),
		xattrBlock: uint64(le.Uint32(b[0x68:])),
	}
	if i.Links == 0 {
		return i, nil
	}
	bad := func(format string, args ...any) error {
		return corrupt("inode", fmt.Sprintf("%d in block %d", number, block), format, args...)
	}
	s := fs.super
	copy(i.blockMap[:], b[0x28:])
	extra := 0
	if s.inodeSize > goodOldInodeSize {
		extra = int(le.Uint16(b[0x80:]))
		if extra > s.inodeSize-goodOldInodeSize || extra%4 != 0 {
			return nil, bad("its fields would have %d bytes more than %d, of %d", extra, goodOldInodeSize, s.inodeSize)
		}
	}
	if s.hasMetaCsum {
		if want, got := fs.inodeChecksum(i, b, extra); want != got && !fs.unchecked {
			return nil, bad("its checksum is %#08x, its bytes give %#08x", want, got)
		}
	}
	size := uint64(le.Uint32(b[0x4:]))
	if i.Type() == ModeRegular || s.largeDirs {
		size |= uint64(le.Uint32(b[0x6C:])) << 32
	}
	if size > math.MaxInt64/2 {
		return nil, bad("its file would have %d bytes", size)
	}
	i.Size = int64(size)
	i.Blocks = int64(le.Uint32(b[0x1C:]))
	if s.ro(roHugeFile) {
		i.Blocks |= int64(le.Uint16(b[0x74:])) << 32
		if i.Flags&FlagHugeFile != 0 {
			i.Blocks *= int64(s.blockSize / 512)
		}
	}
	if s.is64 {
		i.xattrBlock |= uint64(le.Uint16(b[0x76:])) << 32
	}
	if number < s.firstIno && number != rootInode {
		i.xattrBlock = 0 // what the file system keeps for itself has no attributes, and e2fsck leaves there what was
	}
	i.setTimes(b, extra)
	if goodOldInodeSize+extra >= 0xA0 {
		i.ProjectID = le.Uint32(b[0x9C:])
	}
	switch i.Type() {
	case ModeChar, ModeBlock:
		i.Rdev = device(i.blockMap)
	case ModeFIFO, ModeDir, ModeRegular, ModeSymlink, ModeSocket:
	default:
		if number >= s.firstIno || number == rootInode {
			return nil, bad("mode %#o is of no kind of file", i.Mode)
		}
	}
	if at := goodOldInodeSize + extra; at+4 <= len(b) && le.Uint32(b[at:]) == xattrMagic && s.inodeSize > goodOldInodeSize {
		i.body = append([]byte(nil), b[at:]...)
	}
	return i, nil
}

// setTimes reads the four times. From the extra bytes come two bits more of seconds and the nanoseconds, and the time of creation.
func (i *Inode) setTimes(b []byte, extra int) {
	read := func(at, extraAt int) Time {
		t := Time{Sec: int64(int32(le.Uint32(b[at:])))}
		if goodOldInodeSize+extra >= extraAt+4 {
			more := le.Uint32(b[extraAt:])
			t.Sec += int64(more&3) << 32
			t.Nsec = min(more>>2, 999_999_999)
		}
		return t
	}
	i.Ctime, i.Mtime, i.Atime = read(0xC, 0x84), read(0x10, 0x88), read(0x8, 0x8C)
	if goodOldInodeSize+extra >= 0x94 {
		i.Crtime = read(0x90, 0x94)
	}
}

// device reads the number of a device: 16 bits, or, where the first word is zero, 32.
func device(blockMap [inlineRoot]byte) uint64 {
	if old := le.Uint32(blockMap[0:]); old != 0 {
		return unix.Mkdev(old>>8&0xFF, old&0xFF)
	}
	n := le.Uint32(blockMap[4:])
	return unix.Mkdev(n>>8&0xFFF, n&0xFF|n>>12&0xFFF00)
}

// inodeChecksum returns the checksum that an inode has and the one that its bytes give, and sets the seed of those of the inode's blocks. Inodes of 128 bytes
// have half of it.
func (fs *FS) inodeChecksum(i *Inode, b []byte, extra int) (want, got uint32) {
	var word [4]byte
	le.PutUint32(word[:], i.Number)
	i.seed = crc32c(fs.super.seed, word[:])
	i.seed = crc32c(i.seed, b[0x64:0x68])
	zero := []byte{0, 0}
	got = crc32c(i.seed, b[:0x7C])
	got = crc32c(got, zero)
	got = crc32c(got, b[0x7E:goodOldInodeSize])
	want = uint32(le.Uint16(b[0x7C:]))
	if len(b) == goodOldInodeSize {
		return want, got & 0xFFFF
	}
	got = crc32c(got, b[0x80:0x82])
	if extra < 4 {
		return want, crc32c(got, b[0x82:]) & 0xFFFF
	}
	got = crc32c(got, zero)
	return want | uint32(le.Uint16(b[0x82:]))<<16, crc32c(got, b[0x84:])
}
