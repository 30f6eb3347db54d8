package ext4

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"github.com/google/uuid"
)

var le = binary.LittleEndian

// superblock is what of the superblock is used. Counts are in blocks of the file system where nothing else is said.
type superblock struct {
	inodes, blocks               uint64
	freeBlocks, freeInodes       uint64
	firstData                    uint64
	blockSize, clusterSize       int
	blocksPerGroup               uint64
	inodesPerGroup               uint32
	inodeSize, descSize          int
	firstIno                     uint32
	state, errors                uint16
	features                     [3]uint32 // compat, incompat, ro_compat
	uuid                         uuid.UUID
	label, lastMounted           string
	journalIno, journalDev       uint32
	firstMetaBG                  uint32
	backupGroups                 [2]uint32
	quota                        [3]uint32 // inodes of user, group and project quota; 0: none
	orphanIno                    uint32
	reservedDesc                 uint64 // blocks kept for further descriptors after those in use
	seed                         uint32 // of metadata_csum
	groups                       uint64
	tableBlocks                  uint64 // of one group's inode table
	writeSeconds, mkfsSeconds    uint32
	hasGroupCsum, hasMetaCsum    bool
	is64, hasFiletype, largeDirs bool
}

func (s *superblock) compat(f uint32) bool   { return s.features[0]&f != 0 }
func (s *superblock) incompat(f uint32) bool { return s.features[1]&f != 0 }
func (s *superblock) ro(f uint32) bool       { return s.features[2]&f != 0 }

// parseSuper reads a superblock and holds it against the size of the device in bytes. unchecked leaves out its checksum, for tests that mutate what is behind it.
func parseSuper(b []byte, size int64, unchecked bool) (*superblock, error) {
	if le.Uint16(b[0x38:]) != superMagic {
		return nil, fmt.Errorf("no superblock at byte %d: magic number %#x where %#x belongs: %w", superOffset, le.Uint16(b[0x38:]), superMagic, ErrNotExt4)
	}
	s := &superblock{
		inodes:         uint64(le.Uint32(b)),
		blocks:         uint64(le.Uint32(b[0x4:])),
		freeBlocks:     uint64(le.Uint32(b[0xC:])),
		freeInodes:     uint64(le.Uint32(b[0x10:])),
		firstData:      uint64(le.Uint32(b[0x14:])),
		blocksPerGroup: uint64(le.Uint32(b[0x20:])),
		inodesPerGroup: le.Uint32(b[0x28:]),
		writeSeconds:   le.Uint32(b[0x30:]),
		state:          le.Uint16(b[0x3A:]),
		errors:         le.Uint16(b[0x3C:]),
		firstIno:       goodOldFirstIno,
		inodeSize:      goodOldInodeSize,
		descSize:       minDescSize,
		mkfsSeconds:    le.Uint32(b[0x108:]),
	}
	if le.Uint32(b[0x4C:]) > 0 { // s_rev_level: what follows exists from revision 1 on
		s.firstIno = le.Uint32(b[0x54:])
		s.inodeSize = int(le.Uint16(b[0x58:]))
		s.features = [3]uint32{le.Uint32(b[0x5C:]), le.Uint32(b[0x60:]), le.Uint32(b[0x64:])}
		copy(s.uuid[:], b[0x68:0x78])
		s.label = cString(b[0x78:0x88])
		s.lastMounted = cString(b[0x88:0xC8])
		s.reservedDesc = uint64(le.Uint16(b[0xCE:]))
		s.journalIno, s.journalDev = le.Uint32(b[0xE0:]), le.Uint32(b[0xE4:])
		s.firstMetaBG = le.Uint32(b[0x104:])
		s.backupGroups = [2]uint32{le.Uint32(b[0x24C:]), le.Uint32(b[0x250:])}
		s.quota = [3]uint32{le.Uint32(b[0x240:]), le.Uint32(b[0x244:]), le.Uint32(b[0x26C:])}
		s.orphanIno = le.Uint32(b[0x280:])
	}
	s.is64, s.hasFiletype, s.largeDirs = s.incompat(incompat64Bit), s.incompat(incompatFiletype), s.incompat(incompatLargedir)
	s.hasMetaCsum = s.ro(roMetadataCsum)
	s.hasGroupCsum = s.hasMetaCsum || s.ro(roGDTCsum)
	if s.is64 {
		s.blocks |= uint64(le.Uint32(b[0x150:])) << 32
		s.freeBlocks |= uint64(le.Uint32(b[0x158:])) << 32
		s.descSize = int(le.Uint16(b[0xFE:]))
	}
	if err := s.checkFeatures(); err != nil {
		return nil, err
	}
	if s.hasMetaCsum {
		if kind := b[0x175]; kind != 1 {
			return nil, unsupported("superblock: checksums of type %d", kind)
		}
		if want, got := le.Uint32(b[0x3FC:]), crc32c(^uint32(0), b[:0x3FC]); want != got && !unchecked {
			return nil, s.corrupt("its checksum is %#08x, its bytes give %#08x", want, got)
		}
		s.seed = crc32c(^uint32(0), s.uuid[:])
		if s.incompat(incompatCsumSeed) {
			s.seed = le.Uint32(b[0x270:])
		}
	}
	return s, s.checkShape(le.Uint32(b[0x18:]), le.Uint32(b[0x1C:]), size)
}

func (s *superblock) corrupt(format string, args ...any) error {
	return corrupt("superblock", fmt.Sprintf("at byte %d", superOffset), format, args...)
}

func (s *superblock) checkFeatures() error {
	if s.incompat(incompatJournalDev) {
		return unsupported("the device holds the journal of another file system and no files")
	}
	if unknown := s.features[1] &^ incompatRead; unknown != 0 {
		names := featureList(1, unknown)
		return unsupported("the file system has the features %s, without which it cannot be read", strings.Join(names, ", "))
	}
	return nil
}

// checkShape works out what follows from the sizes, and refuses what no file system can have: everything after it relies on these bounds.
func (s *superblock) checkShape(logBlock, logCluster uint32, size int64) error {
	if logBlock > 6 {
		return s.corrupt("a block would have 2^%d bytes, and 64 KiB is the most", uint64(logBlock)+10)
	}
	s.blockSize = 1024 << logBlock
	s.clusterSize = s.blockSize
	bs := uint64(s.blockSize)
	if s.ro(roBigalloc) {
		if logCluster < logBlock || logCluster > 20 {
			return s.corrupt("a cluster would have 2^%d bytes", uint64(logCluster)+10)
		}
		s.clusterSize = 1024 << logCluster
	}
	ratio := uint64(s.clusterSize / s.blockSize)
	switch {
	case s.inodeSize < goodOldInodeSize || s.inodeSize > s.blockSize || bits.OnesCount(uint(s.inodeSize)) != 1:
		return s.corrupt("an inode would have %d bytes", s.inodeSize)
	case s.is64 && (s.descSize < minDescSize64 || s.descSize > 1024 || bits.OnesCount(uint(s.descSize)) != 1):
		return s.corrupt("a group descriptor would have %d bytes", s.descSize)
	case s.firstData >= s.blocks || s.firstData > 1:
		return s.corrupt("the first data block would be %d of %d", s.firstData, s.blocks)
	case s.blocks > uint64(size)/bs:
		return s.corrupt("the file system has %d blocks of %d bytes, the device has room for %d: it was cut short, or is not the whole device", s.blocks, bs, uint64(size)/bs)
	case s.blocksPerGroup == 0 || s.blocksPerGroup > bs*8*ratio || s.blocksPerGroup%8 != 0:
		return s.corrupt("a group would have %d blocks", s.blocksPerGroup)
	case s.inodesPerGroup == 0 || uint64(s.inodesPerGroup) > bs*8:
		return s.corrupt("a group would have %d inodes", s.inodesPerGroup)
	}
	s.groups = (s.blocks - s.firstData + s.blocksPerGroup - 1) / s.blocksPerGroup
	s.tableBlocks = (uint64(s.inodesPerGroup)*uint64(s.inodeSize) + bs - 1) / bs
	switch {
	case s.groups > maxGroups:
		return unsupported("the file system has %d groups; more than %d are not read", s.groups, maxGroups)
	case s.groups*uint64(s.inodesPerGroup) != s.inodes:
		return s.corrupt("%d groups of %d inodes do not make %d inodes", s.groups, s.inodesPerGroup, s.inodes)
	case s.tableBlocks >= s.blocksPerGroup:
		return s.corrupt("the inode table of a group would have %d blocks, and the group %d", s.tableBlocks, s.blocksPerGroup)
	case s.groups*uint64(s.descSize) > s.blocks*bs:
		return s.corrupt("the descriptors of %d groups are longer than the file system", s.groups)
	}
	return nil
}

// groupFirst is the first block of a group.
func (s *superblock) groupFirst(group uint64) uint64 { return s.firstData + group*s.blocksPerGroup }

// hasSuper tells whether a group begins with a copy of the superblock.
func (s *superblock) hasSuper(group uint64) bool {
	switch {
	case group == 0:
		return true
	case s.compat(compatSparseSuper2):
		return slices.Contains(s.backupGroups[:], uint32(group))
	case !s.ro(roSparseSuper) || group == 1:
		return true
	}
	for _, base := range []uint64{3, 5, 7} {
		power := base
		for power < group {
			power *= base
		}
		if power == group {
			return true
		}
	}
	return false
}

// superBlock is the block that the first superblock lies in.
func (s *superblock) superBlock() uint64 { return uint64(superOffset / s.blockSize) }

// descBlocks is the number of blocks that the descriptors of all groups need.
func (s *superblock) descBlocks() uint64 {
	perBlock := uint64(s.blockSize / s.descSize)
	return (s.groups + perBlock - 1) / perBlock
}

// descBlock is where block n of the descriptors lies: all of them behind the superblock, or, from s_first_meta_bg on under the feature meta_bg,
// each at the beginning of the groups that it describes.
func (s *superblock) descBlock(n uint64) uint64 {
	if !s.incompat(incompatMetaBG) || n < uint64(s.firstMetaBG) {
		return s.superBlock() + 1 + n
	}
	group := n * uint64(s.blockSize/s.descSize)
	block := s.groupFirst(group)
	if s.hasSuper(group) {
		block++
	}
	if group == 0 && s.superBlock() > s.firstData {
		block++ // blocks of 1 KiB in a file system that counts from 0, as bigalloc does
	}
	return block
}

func featureList(word int, features uint32) []string {
	var names []string
	for bit := uint32(1); bit != 0; bit <<= 1 {
		if features&bit == 0 {
			continue
		}
		name, ok := featureNames[word][bit]
		if !ok {
			name = fmt.Sprintf("FEATURE_%c%d", "CIR"[word], bits.TrailingZeros32(bit))
		}
		names = append(names, name)
	}
	return names
}

// cString is the text up to the first zero byte.
func cString(b []byte) string {
	text, _, _ := bytes.Cut(b, []byte{0})
	return string(text)
}
