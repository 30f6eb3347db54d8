package idxshare

import "fmt"

// Header says what was indexed.
type Header struct {
	// Source identifies the content: an image's content root as its digest is written, or what pins a raw root.
	Source string
	// Size is that of the device in bytes.
	Size int64
	// Digests says that every regular file has its digest.
	Digests bool
	// Delta says that this is what changed against the index of Base, and not an index of everything.
	Delta bool
	// Base is the Source of the index that a delta stands on.
	Base string
	// Generation is how far of the leaf's modification log a delta knows.
	Generation uint64
}

// Volume is one file system of the device.
type Volume struct {
	ID        int    // 0 to 255, chosen by who writes the index, the same in a delta as in its base
	Partition int    // its number in the partition table; 0: the whole device
	Start     int64  // bytes in the device
	Length    int64  // bytes
	Type      string // as mount knows it: ext4, xfs, …
	UUID      string
	Label     string
	BlockSize int    // bytes; extents are counted in it
	Root      uint64 // inode of the root directory; 0 stands for 2, as ext4 has it
	// Mapped says that the extents of all files are in the index: what none of them has is free, or metadata of the file system.
	Mapped bool
}

// File is an inode.
type File struct {
	Volume     int
	Inode      uint64 // at most [MaxInode]
	Generation uint32
	Mode       uint32 // st_mode: type and permissions
	UID, GID   uint32
	Size       int64 // bytes
	Links      uint32
	Blocks     int64 // 512-byte units
	Rdev       uint64
	// Times are nanoseconds since 1970; Crtime is 0 where the file system has none.
	Atime, Mtime, Ctime, Crtime int64
	Target                      []byte // of a symbolic link
	Digest                      []byte // SHA-256 of the content; nil: not computed
}

// The types of files in the mode.
const (
	ModeType      = 0o170000
	ModeFIFO      = 0o010000
	ModeCharacter = 0o020000
	ModeDirectory = 0o040000
	ModeBlock     = 0o060000
	ModeRegular   = 0o100000
	ModeSymlink   = 0o120000
	ModeSocket    = 0o140000
)

// IsDirectory tells whether the inode is a directory.
func (f *File) IsDirectory() bool { return f.Mode&ModeType == ModeDirectory }

// Name is an entry of a directory.
type Name struct {
	Volume int
	Parent uint64 // inode of the directory
	Name   []byte // 1 to 1,024 bytes, none of them a slash or NUL; neither "." nor ".."
	Inode  uint64
}

// ExtentKind says what a file has in an extent.
type ExtentKind uint8

// The kinds of extents. The numbers are those of the format, and never used for something else.
const (
	ExtentData      ExtentKind = 0 // content, of a regular file or a symbolic link
	ExtentDirectory ExtentKind = 1 // entries of a directory
	ExtentTree      ExtentKind = 2 // where the file's other extents are: blocks of an extent tree, indirect blocks
	ExtentXattr     ExtentKind = 3 // extended attributes
	ExtentMetadata  ExtentKind = 4 // of the file system itself; the inode is 0
)

// String returns the kind's name.
func (k ExtentKind) String() string {
	switch k {
	case ExtentData:
		return "data"
	case ExtentDirectory:
		return "directory"
	case ExtentTree:
		return "tree"
	case ExtentXattr:
		return "xattr"
	case ExtentMetadata:
		return "metadata"
	}
	return fmt.Sprintf("kind-%d", uint8(k))
}

// Extent is a run of blocks that a file has. Several files may have the same blocks.
type Extent struct {
	Volume int
	Inode  uint64
	Kind   ExtentKind
	// Logical is where in the file the run begins, Physical where in the volume, Length how long it is: in blocks of the file system. Logical is 0 for
	// what is no content.
	Logical, Physical, Length int64
	// Unwritten says that the blocks are allocated, and read as zeros.
	Unwritten bool
}

const (
	// MaxInode is the largest number of an inode that an index takes.
	MaxInode = 1<<56 - 1
	// MaxVolumes is how many volumes a disk may have.
	MaxVolumes = 256

	maxName    = 1024
	maxTarget  = 1 << 16
	digestSize = 32
)
