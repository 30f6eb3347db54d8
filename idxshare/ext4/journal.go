package ext4

import (
	"context"
	"encoding/binary"
	"fmt"
	"sort"
)

var be = binary.BigEndian

// The journal's own format, of jbd2: big-endian, in blocks of the file system's size.
const (
	journalMagic     = 0xC03B3998
	journalHeader    = 12 // magic, type, transaction
	blockDescriptor  = 1
	blockCommit      = 2
	blockSuperV1     = 3
	blockSuperV2     = 4
	blockRevoke      = 5
	journalCompatSum = 0x1

	journalRevoke      = 0x1
	journal64Bit       = 0x2
	journalAsyncCommit = 0x4
	journalCsumV2      = 0x8
	journalCsumV3      = 0x10
	journalFastCommit  = 0x20

	tagEscape   = 0x1
	tagSameUUID = 0x2
	tagLast     = 0x8

	fastCommitBlocks = 256 // for fast commits at the journal's end, where its superblock does not say
	fastTagPad       = 0x6
	fastTagTail      = 0x8
	fastTagHead      = 0x9
	fastTagHeader    = 4 // tag, length; little-endian, unlike the rest of the journal
)

// logged is a block that a journal replaces: where its newest copy lies, and whether its first four bytes, which are the journal's magic number, were blanked there.
type logged struct {
	block   uint64
	escaped bool
}

func (fs *FS) readLogged(from logged, p []byte) error {
	if err := ReadFull(fs.r, p, int64(from.block)*int64(fs.super.blockSize)); err != nil {
		return fmt.Errorf("copy in the journal: %w", err)
	}
	if from.escaped {
		be.PutUint32(p, journalMagic)
	}
	return nil
}

// replay reads the journal of a file system that was not unmounted, and leaves in fs what Open goes on with: the overlay of blocks that it replaces, and the superblock as it
// is with them. As the kernel and e2fsck do, it takes whole transactions up to the first that was not completed. The list of deleted files that were open is left as it is: they have
// no name and no links.
func (fs *FS) replay(size int64) error {
	s := fs.super
	if !s.compat(compatHasJournal) {
		return s.corrupt("a journal is to be replayed, and the file system has none")
	}
	if s.journalIno == 0 {
		return unsupported("the journal lies on another device (number %#x): mount the file system once, or run e2fsck, so that it is replayed", s.journalDev)
	}
	if uint64(s.journalIno) > s.inodes {
		return s.corrupt("its journal is inode %d of %d", s.journalIno, s.inodes)
	}
	// The journal is found by what is on the device, as the kernel finds it.
	if err := fs.readGroups(int((s.journalIno-1)/s.inodesPerGroup) + 1); err != nil {
		return err
	}
	l, err := fs.openJournal()
	if err != nil || l.start == 0 {
		return err
	}
	if err := l.scan(); err != nil {
		return err
	}
	fs.overlay = l.overlay
	fs.journal = Journal{Replayed: true, Transactions: l.committed, Blocks: len(l.overlay)}
	return fs.rereadSuper(size)
}

// rereadSuper reads the superblock again, which the journal may have replaced.
func (fs *FS) rereadSuper(size int64) error {
	b := make([]byte, superSize)
	if err := fs.readBytes(b, superOffset); err != nil {
		return fmt.Errorf("superblock: %w", err)
	}
	super, err := parseSuper(b, size, fs.unchecked)
	if err != nil {
		return fmt.Errorf("superblock from the journal: %w", err)
	}
	if super.blockSize != fs.super.blockSize {
		return super.corrupt("the one in the journal has blocks of %d bytes, not %d", super.blockSize, fs.super.blockSize)
	}
	super.features[1] &^= incompatRecover
	fs.super = super
	return nil
}

// journalLog is a journal while it is read.
type journalLog struct {
	fs      *FS
	data    []Extent
	size    uint64 // blocks of the inode
	first   uint64 // block that the log comes back to
	last    uint64 // first block behind the log
	total   uint64
	start   uint64 // of the oldest transaction; 0: there is none
	begins  uint32 // number of that transaction
	compat  uint32
	feature uint32
	seed    uint32

	overlay   map[uint64]logged
	revoked   map[uint64]uint32
	committed int
	block     []byte
}

func (l *journalLog) bad(block uint64, format string, args ...any) error {
	return corrupt("journal", fmt.Sprintf("block %d", block), format, args...)
}

// physical is where a block of the journal lies.
func (l *journalLog) physical(block uint64) (uint64, error) {
	n := sort.Search(len(l.data), func(n int) bool { return uint64(l.data[n].Logical+l.data[n].Length) > block })
	if n == len(l.data) || uint64(l.data[n].Logical) > block {
		return 0, l.bad(block, "it was never allocated")
	}
	return uint64(l.data[n].Physical) + block - uint64(l.data[n].Logical), nil
}

func (l *journalLog) read(block uint64, p []byte) (physical uint64, err error) {
	physical, err = l.physical(block)
	if err != nil {
		return 0, err
	}
	return physical, ReadFull(l.fs.r, p, int64(physical)*int64(l.fs.super.blockSize))
}

func (fs *FS) openJournal() (*journalLog, error) {
	ctx := context.Background() // a journal is read within Open
	inode, err := fs.Inode(ctx, fs.super.journalIno)
	if err != nil {
		return nil, err
	}
	if !inode.InUse() || inode.Type() != ModeRegular {
		return nil, corrupt("journal", fmt.Sprintf("inode %d", inode.Number), "it is no file: mode %#o, %d links", inode.Mode, inode.Links)
	}
	content, err := fs.content(ctx, inode)
	if err != nil {
		return nil, err
	}
	bs := fs.super.blockSize
	l := &journalLog{fs: fs, data: content.data, size: uint64(inode.Size) / uint64(bs), overlay: map[uint64]logged{}, block: make([]byte, bs)}
	b := make([]byte, bs)
	if _, err := l.read(0, b); err != nil {
		return nil, err
	}
	kind := be.Uint32(b[4:])
	if be.Uint32(b) != journalMagic || kind != blockSuperV1 && kind != blockSuperV2 {
		return nil, l.bad(0, "it is no superblock of a journal: magic number %#x, type %d", be.Uint32(b), kind)
	}
	l.total, l.first = uint64(be.Uint32(b[0x10:])), uint64(be.Uint32(b[0x14:]))
	l.begins, l.start = be.Uint32(b[0x18:]), uint64(be.Uint32(b[0x1C:]))
	l.last = l.total
	if kind == blockSuperV2 {
		l.compat, l.feature = be.Uint32(b[0x24:]), be.Uint32(b[0x28:])
	}
	const known = journalRevoke | journal64Bit | journalCsumV2 | journalCsumV3 | journalFastCommit
	if l.feature&journalAsyncCommit != 0 {
		return nil, unsupported("the journal has asynchronous commits: mount the file system once, or run e2fsck, so that it is replayed")
	}
	if unknown := l.feature &^ known; unknown != 0 {
		return nil, unsupported("the journal has the features %#x, without which it cannot be replayed", unknown)
	}
	if l.feature&journalFastCommit != 0 {
		fast := uint64(be.Uint32(b[0x54:]))
		if fast == 0 {
			fast = fastCommitBlocks
		}
		if fast < l.total {
			l.last -= fast
		}
	}
	switch {
	case int(be.Uint32(b[0xC:])) != bs:
		return nil, l.bad(0, "its blocks have %d bytes, those of the file system %d", be.Uint32(b[0xC:]), bs)
	case l.total > l.size || l.first == 0 || l.first >= l.last || l.start != 0 && (l.start < l.first || l.start >= l.last):
		return nil, l.bad(0, "the log has blocks %d to %d and begins with %d, of %d in its file", l.first, l.last, l.start, l.size)
	}
	if l.checksums() {
		if kind := b[0x50]; kind != 4 {
			return nil, unsupported("the journal has checksums of type %d", kind)
		}
		sum := be.Uint32(b[0xFC:])
		clear(b[0xFC:0x100])
		if got := crc32c(^uint32(0), b[:1024]); got != sum && !fs.unchecked {
			return nil, l.bad(0, "the checksum of its superblock is %#08x, its bytes give %#08x", sum, got)
		}
		l.seed = crc32c(^uint32(0), b[0x30:0x40])
	}
	return l, nil
}

func (l *journalLog) checksums() bool { return l.feature&(journalCsumV2|journalCsumV3) != 0 }

// next is the block of the log after a number of further ones.
func (l *journalLog) next(block, count uint64) uint64 {
	return l.first + (block-l.first+count)%(l.last-l.first)
}

// blockSum compares the checksum at byte at of a block of the journal, which is over the block with zeros there.
func (l *journalLog) blockSum(b []byte, at int) bool {
	if l.fs.unchecked {
		return true
	}
	got := crc32c(l.seed, b[:at])
	got = crc32c(got, []byte{0, 0, 0, 0})
	return crc32c(got, b[at+4:]) == be.Uint32(b[at:])
}

// scan finds the transactions that were completed. A block that a later transaction revoked must not be brought back from an earlier one, so that revocations of all of them
// are known before any block is taken.
func (l *journalLog) scan() error {
	end, err := l.walk(l.begins, nil, nil)
	if err != nil {
		return err
	}
	l.committed = int(end - l.begins)
	l.revoked = map[uint64]uint32{}
	if _, err := l.walk(l.begins, &end, l.revoke); err != nil {
		return err
	}
	if _, err := l.walk(l.begins, &end, l.take); err != nil {
		return err
	}
	return l.refuseFastCommits(end)
}

// visit is called for each block of a completed transaction that describes others. at is its place in the log.
type visit func(b []byte, kind uint32, at uint64, transaction uint32) error

// walk goes along the log from its start, and returns the number of the first transaction that was not completed: where end is nil, the first with no commit block, or with a
// wrong checksum in a block that describes it; else *end.
func (l *journalLog) walk(from uint32, end *uint32, fn visit) (uint32, error) {
	transaction, at := from, l.start
	sum := ^uint32(0) // of a transaction's blocks, where its commit block has one
	for steps := uint64(0); steps < l.last-l.first; {
		if end != nil && transaction == *end {
			return transaction, nil
		}
		if _, err := l.read(at, l.block); err != nil {
			return 0, err
		}
		if be.Uint32(l.block) != journalMagic || be.Uint32(l.block[8:]) != transaction {
			break
		}
		kind, length := be.Uint32(l.block[4:]), uint64(1)
		switch kind {
		case blockDescriptor:
			if l.checksums() && !l.blockSum(l.block, len(l.block)-4) {
				return l.ends(transaction, end, at)
			}
			tags := uint64(len(l.tags(l.block)))
			length += tags
			if end == nil && l.compat&journalCompatSum != 0 && !l.checksums() {
				var err error
				if sum, err = l.sumOf(sum, at, tags); err != nil {
					return 0, err
				}
			}
		case blockRevoke:
			if l.checksums() && !l.blockSum(l.block, len(l.block)-4) {
				return l.ends(transaction, end, at)
			}
		case blockCommit:
			if l.checksums() && !l.blockSum(l.block, 0x10) || end == nil && !l.commitSum(sum) {
				return l.ends(transaction, end, at)
			}
			sum = ^uint32(0)
		default:
			return l.ends(transaction, end, at)
		}
		if fn != nil {
			if err := fn(l.block, kind, at, transaction); err != nil {
				return 0, err
			}
		}
		if kind == blockCommit {
			transaction++
		}
		at = l.next(at, length)
		steps += length
	}
	return l.ends(transaction, end, at)
}

// ends gives the transaction at which the log ends, unless a pass before found it to end later.
func (l *journalLog) ends(transaction uint32, end *uint32, at uint64) (uint32, error) {
	if end != nil && transaction != *end {
		return 0, l.bad(at, "transaction %d, which was complete, is not any more", transaction)
	}
	return transaction, nil
}

// tag is one block that a descriptor block describes.
type tag struct {
	block    uint64
	checksum uint32
	escaped  bool
}

// tags are the blocks that follow a descriptor block, in order.
func (l *journalLog) tags(b []byte) []tag {
	limit := len(b)
	if l.checksums() {
		limit -= 4
	}
	size := 8
	if l.feature&journal64Bit != 0 {
		size = 12
	}
	v3 := l.feature&journalCsumV3 != 0
	if v3 {
		size = 16
	} else if l.feature&journalCsumV2 != 0 {
		size += 2
	}
	var tags []tag
	for offset := journalHeader; offset+size <= limit; {
		t := b[offset:]
		offset += size
		var flags uint32
		one := tag{block: uint64(be.Uint32(t))}
		if v3 {
			flags, one.checksum = be.Uint32(t[4:]), be.Uint32(t[12:])
		} else {
			flags, one.checksum = uint32(be.Uint16(t[6:])), uint32(be.Uint16(t[4:]))
		}
		if l.feature&journal64Bit != 0 {
			one.block |= uint64(be.Uint32(t[8:])) << 32
		}
		one.escaped = flags&tagEscape != 0
		tags = append(tags, one)
		if flags&tagLast != 0 {
			return tags
		}
		if flags&tagSameUUID == 0 {
			offset += 16
		}
	}
	return tags
}

func (l *journalLog) revoke(b []byte, kind uint32, at uint64, transaction uint32) error {
	if kind != blockRevoke {
		return nil
	}
	used, size := int(be.Uint32(b[12:])), 4
	if l.feature&journal64Bit != 0 {
		size = 8
	}
	limit := len(b)
	if l.checksums() {
		limit -= 4
	}
	if used > limit || used < 16 {
		return l.bad(at, "its revocations would have %d bytes of %d", used, limit)
	}
	for offset := 16; offset+size <= used; offset += size {
		block := uint64(be.Uint32(b[offset:]))
		if size == 8 {
			block = be.Uint64(b[offset:])
		}
		if len(l.revoked) >= maxOverlay {
			return unsupported("the journal revokes more than %d blocks", maxOverlay)
		}
		l.revoked[block] = transaction
	}
	return nil
}

// take puts the blocks behind a descriptor block into the overlay, unless the same or a later transaction revoked them.
func (l *journalLog) take(b []byte, kind uint32, at uint64, transaction uint32) error {
	if kind != blockDescriptor {
		return nil
	}
	var number [4]byte
	be.PutUint32(number[:], transaction)
	data := make([]byte, l.fs.super.blockSize)
	for n, t := range l.tags(b) {
		if t.block >= l.fs.super.blocks {
			return l.bad(at, "it replaces block %d of %d", t.block, l.fs.super.blocks)
		}
		place := l.next(at, uint64(n)+1)
		if by, ok := l.revoked[t.block]; ok && int32(transaction-by) <= 0 {
			continue
		}
		physical, err := l.physical(place)
		if err != nil {
			return err
		}
		if l.checksums() && !l.fs.unchecked {
			if _, err := l.read(place, data); err != nil {
				return err
			}
			got := crc32c(crc32c(l.seed, number[:]), data)
			if l.feature&journalCsumV3 == 0 {
				got &= 0xFFFF
			}
			if got != t.checksum {
				return l.bad(place, "the checksum of the copy of block %d, in transaction %d, is %#08x, its bytes give %#08x", t.block, transaction, t.checksum, got)
			}
		}
		if len(l.overlay) >= maxOverlay {
			return unsupported("the journal replaces more than %d blocks", maxOverlay)
		}
		l.overlay[t.block] = logged{block: physical, escaped: t.escaped}
	}
	return nil
}

// sumOf goes on with the checksum of a transaction over a descriptor block and the count blocks after it.
func (l *journalLog) sumOf(sum uint32, at, count uint64) (uint32, error) {
	data := make([]byte, l.fs.super.blockSize)
	for n := range count + 1 {
		if _, err := l.read(l.next(at, n), data); err != nil {
			return 0, err
		}
		sum = crc32be(sum, data)
	}
	return sum, nil
}

// commitSum compares the checksum of a whole transaction, which commit blocks have under the journal's oldest feature for it, in l.block.
func (l *journalLog) commitSum(sum uint32) bool {
	const crc32Type, crc32Size = 1, 4
	b := l.block
	if l.compat&journalCompatSum == 0 || l.checksums() || l.fs.unchecked {
		return true
	}
	stored := be.Uint32(b[0x10:])
	return b[0xC] == crc32Type && b[0xD] == crc32Size && stored == sum || b[0xC] == 0 && b[0xD] == 0 && stored == 0
}

// crc32be goes on with a checksum of the polynomial of Ethernet with its bits not reflected, as the kernel's crc32_be does.
func crc32be(sum uint32, p []byte) uint32 {
	for _, b := range p {
		sum ^= uint32(b) << 24
		for range 8 {
			if sum&(1<<31) != 0 {
				sum = sum<<1 ^ 0x04C11DB7
			} else {
				sum <<= 1
			}
		}
	}
	return sum
}

// refuseFastCommits looks behind the log for commits of the feature fast_commit that go on where it ends: they tell changes of files, not of blocks, and are not replayed.
func (l *journalLog) refuseFastCommits(transaction uint32) error {
	if l.feature&journalFastCommit == 0 {
		return nil
	}
	sum := uint32(0)
	for at := l.last + 1; at < l.total; at++ {
		if _, err := l.read(at, l.block); err != nil {
			return err
		}
		b := l.block
		for first := at == l.last+1; len(b) >= fastTagHeader; first = false {
			kind, length := le.Uint16(b), int(le.Uint16(b[2:]))
			if length > len(b)-fastTagHeader || first && kind != fastTagHead {
				return nil
			}
			value := b[fastTagHeader : fastTagHeader+length]
			switch {
			case kind == fastTagHead && (length < 8 || le.Uint32(value[4:]) != transaction):
				return nil
			case kind == fastTagTail:
				if length >= 8 && le.Uint32(value) == transaction && (l.fs.unchecked || crc32c(sum, b[:fastTagHeader+4]) == le.Uint32(value[4:])) {
					return unsupported("the journal has fast commits: mount the file system once, or run e2fsck, so that they are replayed")
				}
				return nil
			case kind == 0 || kind > fastTagHead:
				return nil
			}
			sum = crc32c(sum, b[:fastTagHeader+length])
			b = b[fastTagHeader+length:]
		}
	}
	return nil
}
