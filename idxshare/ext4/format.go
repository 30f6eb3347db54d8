package ext4

import "hash/crc32"

// What lies where on the device: the pages of the kernel's documentation are super.rst, group_descr.rst, inodes.rst, ifork.rst, directory.rst, attributes.rst, inlinedata.rst, journal.rst and checksums.rst.
// All numbers of ext4 are little-endian, those of its journal big-endian.

const (
	superOffset = 1024 // bytes from the beginning of the device, whatever the size of a block
	superSize   = 1024
	superMagic  = 0xEF53

	rootInode = 2

	goodOldInodeSize = 128 // the part of an inode that all revisions have
	goodOldFirstIno  = 11
	minDescSize      = 32
	minDescSize64    = 64
	nameMax          = 255
	extentDepthMax   = 5
	directBlocks     = 12
	inlineRoot       = 60 // bytes of an inode's block map

	// maxGroups bounds the memory for descriptors: 128 TiB in groups of 128 MiB.
	maxGroups = 1 << 20
	// maxOverlay bounds the memory for blocks that a journal brings: 16 GiB in blocks of 4 KiB, where a journal of default size has at most 1 GiB.
	maxOverlay = 4 << 20
)

// Features that an implementation must know to read a file system at all (s_feature_incompat).
const (
	incompatCompression = 0x1
	incompatFiletype    = 0x2
	incompatRecover     = 0x4
	incompatJournalDev  = 0x8
	incompatMetaBG      = 0x10
	incompatExtents     = 0x40
	incompat64Bit       = 0x80
	incompatMMP         = 0x100
	incompatFlexBG      = 0x200
	incompatEAInode     = 0x400
	incompatDirdata     = 0x1000
	incompatCsumSeed    = 0x2000
	incompatLargedir    = 0x4000
	incompatInlineData  = 0x8000
	incompatEncrypt     = 0x10000
	incompatCasefold    = 0x20000

	incompatRead = incompatFiletype | incompatRecover | incompatMetaBG | incompatExtents | incompat64Bit | incompatMMP | incompatFlexBG | incompatEAInode |
		incompatCsumSeed | incompatLargedir | incompatInlineData | incompatEncrypt | incompatCasefold
)

// Features that an implementation must know to write (s_feature_ro_compat), and those that may be ignored (s_feature_compat), as far as they matter here.
const (
	roSparseSuper  = 0x1
	roHugeFile     = 0x8
	roGDTCsum      = 0x10
	roBigalloc     = 0x200
	roMetadataCsum = 0x400
	roSharedBlocks = 0x4000

	compatHasJournal   = 0x4
	compatSparseSuper2 = 0x200
	compatOrphanFile   = 0x1000
)

// featureNames are the names that e2fsprogs gives to features, by word and bit.
var featureNames = [3]map[uint32]string{
	{
		0x1: "dir_prealloc", 0x2: "imagic_inodes", 0x4: "has_journal", 0x8: "ext_attr", 0x10: "resize_inode", 0x20: "dir_index", 0x40: "lazy_bg",
		0x100: "snapshot_bitmap", 0x200: "sparse_super2", 0x400: "fast_commit", 0x800: "stable_inodes", 0x1000: "orphan_file",
	},
	{
		0x1: "compression", 0x2: "filetype", 0x4: "needs_recovery", 0x8: "journal_dev", 0x10: "meta_bg", 0x40: "extent", 0x80: "64bit", 0x100: "mmp",
		0x200: "flex_bg", 0x400: "ea_inode", 0x1000: "dirdata", 0x2000: "metadata_csum_seed", 0x4000: "large_dir", 0x8000: "inline_data",
		0x10000: "encrypt", 0x20000: "casefold",
	},
	{
		0x1: "sparse_super", 0x2: "large_file", 0x8: "huge_file", 0x10: "uninit_bg", 0x20: "dir_nlink", 0x40: "extra_isize", 0x80: "has_snapshot",
		0x100: "quota", 0x200: "bigalloc", 0x400: "metadata_csum", 0x800: "replica", 0x1000: "read-only", 0x2000: "project", 0x4000: "shared_blocks",
		0x8000: "verity", 0x10000: "orphan_present",
	},
}

// Flags of a group (bg_flags). They and the count of unused inodes mean something only where descriptors have checksums.
const groupInodeUninit = 0x1

// Flags of an inode (i_flags) that a reader meets.
const (
	FlagEncrypt    = 0x800
	FlagIndex      = 0x1000 // a directory with a hash tree
	FlagHugeFile   = 0x40000
	FlagExtents    = 0x80000
	FlagVerity     = 0x100000
	FlagEAInode    = 0x200000 // holds the value of an extended attribute, has no name
	FlagInlineData = 0x10000000
	FlagCasefold   = 0x40000000
)

// Kinds of file in Mode, as in stat(2).
const (
	ModeType    = 0o170000
	ModeFIFO    = 0o010000
	ModeChar    = 0o020000
	ModeDir     = 0o040000
	ModeBlock   = 0o060000
	ModeRegular = 0o100000
	ModeSymlink = 0o120000
	ModeSocket  = 0o140000
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crc32c goes on with a checksum as the kernel's crc32c does: with no inversion before or after.
func crc32c(seed uint32, p []byte) uint32 { return ^crc32.Update(^seed, castagnoli, p) }

// crc16 is the checksum of descriptors under the feature uninit_bg: polynomial 0x8005, bits reflected.
func crc16(crc uint16, p []byte) uint16 {
	for _, b := range p {
		crc ^= uint16(b)
		for range 8 {
			if crc&1 != 0 {
				crc = crc>>1 ^ 0xA001
			} else {
				crc >>= 1
			}
		}
	}
	return crc
}
