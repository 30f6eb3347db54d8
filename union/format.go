package union

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"

	"github.com/google/uuid"
)

// Leaf store format, version 1. All integers are little-endian, all structures are
// whole 4 KiB blocks, and each block that is not a data slot carries the CRC-32C of itself
// with the checksum field as zero. Data slots are covered by the CRC-32C in the record or map
// entry that maps them; pages of the slot bitmap by the one in the catalog.
//
//	block 0          superblock A
//	block 16         superblock B
//	block 24         lease
//	block 256        log, copy A: n blocks
//	block 256+n+256  log, copy B: n blocks, at least 1 MiB away from copy A
//	after copy B     the region of a block cache, if one was reserved; then slots, to the end of the store
//
// What lies in the region of a cache is not the store's: it is never read or written here, and no checksum covers it.
//
// Torn writes: a superblock is written to B, flushed, then to A, flushed, and nothing that
// the older one names is reused before both are done. A log block that tore is either not yet
// covered by a flush, or there is its other copy. Slots, maps, bitmaps and catalogs are only ever
// written where nothing live is.
const (
	blockSize  = 4096
	blockShift = 12

	formatVersion = 1

	superABlock = 0
	superBBlock = 16
	logABlock   = 256
	logGap      = 256

	minLogBlocks = 4 << 20 >> blockShift
	maxLogBlocks = 64 << 20 >> blockShift
	// maxPendingBlocks is the greatest size of the ring of pending blocks in memory: 4 MiB, some 129,000
	// records. It divides the blocks of a log copy where that has more, so that both wrap together.
	maxPendingBlocks = minLogBlocks

	// What Format makes is much larger than what a reader accepts: crash tests want small stores.
	smallestStore = 128
	smallestLog   = 8

	// MinStoreBytes is the smallest store that can be formatted, without the region of a cache.
	MinStoreBytes = 32 << 20
	// MinCacheBytes is the smallest region that can be reserved for a block cache.
	MinCacheBytes = 16 << 20

	// maxBlock bounds block numbers: 4 PiB of 4 KiB blocks.
	maxBlock = 1<<40 - 1
	// maxSlots bounds slot numbers, which sector maps store in 36 bits: 256 TiB of 4 KiB blocks.
	maxSlots = 1 << 36
)

// superBlocks are the places of the superblock's copies A and B.
var superBlocks = [2]int64{superABlock, superBBlock}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(p []byte) uint32 { return crc32.Update(0, castagnoli, p) }

// blockChecksum is the CRC-32C of a block with the four bytes at field taken as zero.
func blockChecksum(p []byte, field int) uint32 {
	var zero [4]byte
	c := crc32.Update(0, castagnoli, p[:field])
	c = crc32.Update(c, castagnoli, zero[:])
	return crc32.Update(c, castagnoli, p[field+4:blockSize])
}

var le = binary.LittleEndian

// superblock names everything else in the store.
//
//	  0  8  magic "COPPLEAF"
//	  8  2  version
//	 10  2  zero
//	 12  4  CRC-32C of the block
//	 16  8  incompat bits: a reader that does not know one refuses the store
//	 24  8  compat bits: a reader that does not know one may ignore it
//	 32 16  UUID of the store
//	 48  8  generation, one more at each write
//	 56  8  size of the store in blocks
//	 64  8  blocks of one log copy
//	 72  8  first block of log copy A
//	 80  8  first block of log copy B
//	 88  8  block of slot 0
//	 96  8  number of slots
//	104  8  log start: the first sequence number that a recovery applies
//	112  8  slot of the first catalog block
//	120  4  number of catalog blocks
//	124  4  next layer number
//	128  8  generation of the catalog
//	136 16  boot id of an opener with a run directory, zero after a clean close
//	152  8  blocks between log copy B and slot 0 that are reserved for a block cache
//	160     zero to the end
type superblock struct {
	Incompat, Compat  uint64
	UUID              uuid.UUID
	Generation        uint64
	SizeBlocks        uint64
	LogBlocks         uint64
	LogA, LogB        uint64
	SlotBase          uint64
	Slots             uint64
	LogStart          uint64
	CatalogSlot       uint64
	CatalogBlocks     uint32
	NextLayer         uint32
	CatalogGeneration uint64
	BootID            uuid.UUID
	CacheBlocks       uint64
}

var superMagic = [8]byte{'C', 'O', 'P', 'P', 'L', 'E', 'A', 'F'}

const superSumField = 12

func (s *superblock) encode(p []byte) {
	clear(p[:blockSize])
	copy(p, superMagic[:])
	le.PutUint16(p[8:], formatVersion)
	le.PutUint64(p[16:], s.Incompat)
	le.PutUint64(p[24:], s.Compat)
	copy(p[32:], s.UUID[:])
	le.PutUint64(p[48:], s.Generation)
	le.PutUint64(p[56:], s.SizeBlocks)
	le.PutUint64(p[64:], s.LogBlocks)
	le.PutUint64(p[72:], s.LogA)
	le.PutUint64(p[80:], s.LogB)
	le.PutUint64(p[88:], s.SlotBase)
	le.PutUint64(p[96:], s.Slots)
	le.PutUint64(p[104:], s.LogStart)
	le.PutUint64(p[112:], s.CatalogSlot)
	le.PutUint32(p[120:], s.CatalogBlocks)
	le.PutUint32(p[124:], s.NextLayer)
	le.PutUint64(p[128:], s.CatalogGeneration)
	copy(p[136:], s.BootID[:])
	le.PutUint64(p[152:], s.CacheBlocks)
	le.PutUint32(p[superSumField:], blockChecksum(p, superSumField))
}

// decode fails with [ErrNotFormatted] where the magic is missing, [ErrVersion] for what a
// later release wrote, and a [CorruptError] otherwise.
func (s *superblock) decode(p []byte, off int64) error {
	if !bytes.Equal(p[:8], superMagic[:]) {
		return ErrNotFormatted
	}
	if got, want := blockChecksum(p, superSumField), le.Uint32(p[superSumField:]); got != want {
		return &CorruptError{"superblock", off, fmt.Sprintf("checksum %#08x, stored %#08x", got, want)}
	}
	if v := le.Uint16(p[8:]); v != formatVersion {
		return fmt.Errorf("version %d, this program knows %d: %w", v, formatVersion, ErrVersion)
	}
	s.Incompat = le.Uint64(p[16:])
	s.Compat = le.Uint64(p[24:])
	copy(s.UUID[:], p[32:])
	s.Generation = le.Uint64(p[48:])
	s.SizeBlocks = le.Uint64(p[56:])
	s.LogBlocks = le.Uint64(p[64:])
	s.LogA = le.Uint64(p[72:])
	s.LogB = le.Uint64(p[80:])
	s.SlotBase = le.Uint64(p[88:])
	s.Slots = le.Uint64(p[96:])
	s.LogStart = le.Uint64(p[104:])
	s.CatalogSlot = le.Uint64(p[112:])
	s.CatalogBlocks = le.Uint32(p[120:])
	s.NextLayer = le.Uint32(p[124:])
	s.CatalogGeneration = le.Uint64(p[128:])
	copy(s.BootID[:], p[136:])
	s.CacheBlocks = le.Uint64(p[152:])
	if s.Incompat != 0 {
		return fmt.Errorf("incompatible features %#x: %w", s.Incompat, ErrVersion)
	}
	return s.validate(off)
}

// validate keeps a superblock with a right checksum and wrong numbers from
// reaching beyond the store or from asking for absurd amounts of memory.
func (s *superblock) validate(off int64) error {
	bad := func(what string) error { return &CorruptError{"superblock", off, what} }
	switch {
	case s.SizeBlocks < smallestStore || s.SizeBlocks > maxBlock:
		return bad("size out of range")
	case s.LogBlocks < smallestLog || s.LogBlocks > maxLogBlocks || s.LogBlocks%s.pendingBlocks() != 0:
		return bad("log size out of range")
	case s.CacheBlocks > s.SizeBlocks:
		return bad("region of the cache beyond the end of the store")
	case s.LogA <= superBBlock || s.LogA > logABlock || s.LogB < s.LogA+s.LogBlocks ||
		s.LogB > s.LogA+s.LogBlocks+logGap || s.SlotBase != s.cacheBlock()+s.CacheBlocks:
		return bad("regions out of place")
	case s.Slots == 0 || s.Slots > maxSlots || s.SlotBase >= s.SizeBlocks || s.Slots > s.SizeBlocks-s.SlotBase:
		return bad("slots beyond the end of the store")
	case s.CatalogBlocks == 0 || s.CatalogBlocks > maxCatalogBlocks || s.CatalogSlot >= s.Slots:
		return bad("catalog out of range")
	case s.LogStart == 0:
		return bad("log start is zero")
	}
	return nil
}

// layout divides a store of the given size.
func layout(sizeBytes int64) superblock {
	blocks := uint64(sizeBytes) >> blockShift
	n := min(max(blocks/64, minLogBlocks), maxLogBlocks) / maxPendingBlocks * maxPendingBlocks
	return layoutOf(blocks, n, logABlock, logGap)
}

// withCache divides a store of the given size, of which some bytes, a multiple of 4 KiB, are reserved for a block cache.
func withCache(sizeBytes, cacheBytes int64) superblock {
	s := layout(sizeBytes - cacheBytes)
	s.CacheBlocks = uint64(cacheBytes) >> blockShift
	s.SizeBlocks += s.CacheBlocks
	s.SlotBase += s.CacheBlocks
	s.fillSlots()
	return s
}

// layoutOf divides a store of blocks into log copies of n blocks, the first of which begins at block a, gap blocks apart, and slots.
func layoutOf(blocks, n, a, gap uint64) superblock {
	s := superblock{SizeBlocks: blocks, LogBlocks: n, LogA: a, LogStart: 1, NextLayer: 1}
	s.LogB = s.LogA + n + gap
	s.SlotBase = s.LogB + n
	s.fillSlots()
	return s
}

// cacheBlock is the first block of the region of a block cache, where there is one.
func (s *superblock) cacheBlock() uint64 { return s.LogB + s.LogBlocks }

// fillSlots makes slots of all blocks behind the log.
func (s *superblock) fillSlots() { s.Slots = min(s.SizeBlocks-s.SlotBase, maxSlots) }

// pendingBlocks is the size of the ring of pending blocks in memory.
func (s *superblock) pendingBlocks() uint64 { return min(s.LogBlocks, maxPendingBlocks) }

func (s *superblock) slotOffset(slot uint64) int64 { return int64(s.SlotBase+slot) << blockShift }

// logHeader begins each log block.
//
//	 0  4  magic "CLOG"
//	 4  4  CRC-32C of the block
//	 8 16  UUID of the store
//	24  8  sequence number of the block; it lies at index seq mod n of both copies
//	32  8  durable: all blocks up to this one were covered by a completed flush when this was sealed
//	40  2  number of records
//	42     zero to 64
//	64     records of 32 bytes
//
// Sequence numbers are never used twice: a recovery continues beyond all that the ring can hold.
type logHeader struct {
	UUID    uuid.UUID
	Seq     uint64
	Durable uint64
	Count   int
}

const (
	logMagic      = uint32('C') | uint32('L')<<8 | uint32('O')<<16 | uint32('G')<<24
	logSumField   = 4
	logHeaderSize = 64
	recordSize    = 32
	recordsPerLog = (blockSize - logHeaderSize) / recordSize
)

func (h *logHeader) encode(p []byte) {
	le.PutUint32(p, logMagic)
	copy(p[8:24], h.UUID[:])
	le.PutUint64(p[24:], h.Seq)
	le.PutUint64(p[32:], h.Durable)
	le.PutUint16(p[40:], uint16(h.Count))
	clear(p[42:logHeaderSize])
}

func sealLogBlock(p []byte) { le.PutUint32(p[logSumField:], blockChecksum(p, logSumField)) }

// decodeLogFields reads the header without looking at the checksum. It is for the pending ring of a
// process that died, whose last block is not sealed.
func (h *logHeader) decodeFields(p []byte, id uuid.UUID) bool {
	if le.Uint32(p) != logMagic || !bytes.Equal(p[8:24], id[:]) {
		return false
	}
	h.UUID = id
	h.Seq = le.Uint64(p[24:])
	h.Durable = le.Uint64(p[32:])
	h.Count = int(le.Uint16(p[40:]))
	return h.Count <= recordsPerLog && h.Durable < h.Seq
}

// decode reports whether p is an intact log block of the store.
func (h *logHeader) decode(p []byte, id uuid.UUID) bool {
	return h.decodeFields(p, id) && blockChecksum(p, logSumField) == le.Uint32(p[logSumField:])
}

// Kinds of records and map entries. Numbers are never used again for another meaning.
const (
	kindData  = 1 // block is in a slot
	kindZero  = 2 // count blocks from block on read as zeros
	kindSeal  = 3 // what the layer holds so far becomes a sealed layer, its parent; text records follow
	kindText  = 4 // 24 bytes of the record before it
	kindMerge = 5 // the layer and its sealed parent become one again
)

// record is one entry of the modification log.
//
//	 0  1  kind
//	 1  3  zero
//	 4  4  layer number
//	 8  8  block: 4 KiB block of the device; number of the sealed layer (seal, merge)
//	16  8  slot (data), count of blocks (zero), or time in Unix seconds (seal)
//	24  4  CRC-32C of the slot's content (data), or bytes of text that follow (seal)
//	28  4  zero
//
// A text record has 24 bytes of text from byte 8 on. Seal and its text lie in one log block. The text is
// the UUID of the sealed layer and then its name.
type record struct {
	Kind  uint8
	Layer uint32
	Block uint64
	Slot  uint64 // slot, or count for kindZero
	CRC   uint32
}

func (r *record) encode(p []byte) {
	_ = p[recordSize-1]
	le.PutUint32(p, uint32(r.Kind))
	le.PutUint32(p[4:], r.Layer)
	le.PutUint64(p[8:], r.Block)
	le.PutUint64(p[16:], r.Slot)
	le.PutUint64(p[24:], uint64(r.CRC))
}

func (r *record) decode(p []byte) {
	_ = p[recordSize-1]
	r.Kind = p[0]
	r.Layer = le.Uint32(p[4:])
	r.Block = le.Uint64(p[8:])
	r.Slot = le.Uint64(p[16:])
	r.CRC = le.Uint32(p[24:])
}

// valid bounds the numbers of a record by the store's and a layer's size.
func (r *record) valid(slots, layerBlocks uint64) bool {
	switch r.Kind {
	case kindData:
		return r.Slot < slots && r.Block < layerBlocks
	case kindZero:
		return r.Block < layerBlocks && r.Slot > 0 && r.Slot <= layerBlocks-r.Block
	case kindSeal, kindMerge:
		return r.Block > 0 && r.Block <= math.MaxUint32
	}
	return false
}

// blocks is how many blocks of the device a data or zero record is about.
func (r *record) blocks() uint64 {
	if r.Kind == kindZero {
		return r.Slot
	}
	return 1
}

const textPerRecord = recordSize - 8

func encodeText(p []byte, layer uint32, text []byte) {
	clear(p[:recordSize])
	le.PutUint32(p, kindText)
	le.PutUint32(p[4:], layer)
	copy(p[8:recordSize], text)
}
