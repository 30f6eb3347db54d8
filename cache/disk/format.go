package disk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/bits"

	"github.com/google/uuid"

	"coppice/cache"
)

// Disk cache format, version 1. All integers are little-endian.
//
//	block 0     header A
//	block 16    header B
//	block 17    index: P planes of one block of 4 KiB for each of the S segments
//	            plane 0: the first index block of segment 0, of segment 1, …
//	            plane 1: the second index block of each; and so on
//	block D     data: S segments of B blocks each
//
// A segment is free, or divided into slots of one size, its class: a power of two from 4 KiB to 1 MiB. A slot holds one chunk from its
// beginning on, and anything behind it. P is as many blocks as the entries of a segment of 4 KiB slots take; those of larger
// slots lie in fewer, mostly in one, so that opening a cache reads little more than plane 0.
//
// Checksums: header and index blocks carry a CRC-32C of themselves. Slots carry nothing: an entry has the CRC-32C of the
// digest and content of its chunk.
//
// Torn and lost writes: nothing is flushed, so after a power cut every block holds what some write put there, or a mixture of two at
// each 512 bytes. A header or index block that is a mixture has a wrong checksum; what it names is forgotten. An index block may be older or newer
// than the slots, as it is written seconds after them: an entry counts only as far as the checksum of what lies in its slot is right.
// Headers are written when the cache is made, and after that only to mend one that is damaged.
const (
	blockSize  = 4096
	blockShift = 12

	formatVersion = 1

	headerABlock = 0
	headerBBlock = 16
	indexBlock   = 17
	// dataAlign is what the data begins at a multiple of, in blocks.
	dataAlign = 16

	minClass = 12 // 4 KiB
	maxClass = 20 // 1 MiB
	classes  = maxClass - minClass + 1
	maxChunk = 1 << maxClass

	// A cache has at least about minSegments segments. They are no larger than maxSegmentBlocks, 8 MiB.
	minSegments       = 64
	minSegmentBlocks  = maxChunk >> blockShift
	maxSegmentBlocks  = 8 << 20 >> blockShift
	smallestSegment   = 4 // what a reader takes: tests want small caches
	maxDataBlocks     = 1 << 31
	blocksPerBucket   = 16
	maxIndexedBuckets = maxDataBlocks / blocksPerBucket

	// MinBytes is the smallest cache.
	MinBytes = 16 << 20
)

var (
	headerMagic = [8]byte{'C', 'O', 'P', 'P', 'D', 'I', 'S', 'K'}
	indexMagic  = [4]byte{'C', 'I', 'D', 'X'}
	castagnoli  = crc32.MakeTable(crc32.Castagnoli)
	le          = binary.LittleEndian
)

// blockChecksum is the CRC-32C of a block with the four bytes at field taken as zero.
func blockChecksum(p []byte, field int) uint32 {
	var zero [4]byte
	c := crc32.Update(0, castagnoli, p[:field])
	c = crc32.Update(c, castagnoli, zero[:])
	return crc32.Update(c, castagnoli, p[field+4:blockSize])
}

// chunkChecksum is what an entry has of its chunk.
func chunkChecksum(key *cache.Key, content []byte) uint32 {
	return crc32.Update(crc32.Update(0, castagnoli, key[:]), castagnoli, content)
}

// geometry says where everything is. It is what the header holds.
//
//	 0  8  magic "COPPDISK"
//	 8  2  version
//	10  2  zero
//	12  4  CRC-32C of the block
//	16 16  UUID, random for each cache that is made
//	32  8  size of the cache in blocks
//	40  4  blocks of a segment, a power of two
//	44  4  segments
//	48  8  first block of the index
//	56  8  first block of the data
//	64  4  buckets, a power of two
//	68     zero to the end
type geometry struct {
	UUID          uuid.UUID
	Blocks        uint64
	SegmentBlocks uint32
	Segments      uint32
	IndexBlock    uint64
	DataBlock     uint64
	Buckets       uint32
}

const headerSumField = 12

func (g *geometry) encode(p []byte) {
	clear(p[:blockSize])
	copy(p, headerMagic[:])
	le.PutUint16(p[8:], formatVersion)
	copy(p[16:], g.UUID[:])
	le.PutUint64(p[32:], g.Blocks)
	le.PutUint32(p[40:], g.SegmentBlocks)
	le.PutUint32(p[44:], g.Segments)
	le.PutUint64(p[48:], g.IndexBlock)
	le.PutUint64(p[56:], g.DataBlock)
	le.PutUint32(p[64:], g.Buckets)
	le.PutUint32(p[headerSumField:], blockChecksum(p, headerSumField))
}

func (g *geometry) decode(p []byte) error {
	bad := func(why string, args ...any) error { return &formatError{"header", fmt.Sprintf(why, args...)} }
	if !bytes.Equal(p[:8], headerMagic[:]) {
		return bad("magic missing")
	}
	if got, want := blockChecksum(p, headerSumField), le.Uint32(p[headerSumField:]); got != want {
		return bad("checksum %#08x, stored %#08x", got, want)
	}
	if v := le.Uint16(p[8:]); v != formatVersion {
		return bad("version %d, this program knows %d", v, formatVersion)
	}
	copy(g.UUID[:], p[16:])
	g.Blocks = le.Uint64(p[32:])
	g.SegmentBlocks = le.Uint32(p[40:])
	g.Segments = le.Uint32(p[44:])
	g.IndexBlock = le.Uint64(p[48:])
	g.DataBlock = le.Uint64(p[56:])
	g.Buckets = le.Uint32(p[64:])
	return g.validate()
}

// validate keeps a header with a right checksum and wrong numbers from reaching beyond the cache, and from asking for absurd amounts of memory.
func (g *geometry) validate() error {
	bad := func(why string) error { return &formatError{"header", why} }
	b, s := uint64(g.SegmentBlocks), uint64(g.Segments)
	switch {
	case g.Blocks > 1<<40:
		return bad("size out of range")
	case b < smallestSegment || b > maxSegmentBlocks || b&(b-1) != 0:
		return bad("size of segments out of range")
	case s == 0 || s*b > maxDataBlocks:
		return bad("number of segments out of range")
	case g.IndexBlock <= headerBBlock || g.IndexBlock > g.Blocks || g.DataBlock > g.Blocks:
		return bad("index or data beyond the end")
	case g.DataBlock < g.IndexBlock+s*uint64(g.parts()):
		return bad("data in the index")
	case g.Blocks-g.DataBlock < s*b:
		return bad("segments beyond the end")
	case g.Buckets == 0 || g.Buckets&(g.Buckets-1) != 0 || uint64(g.Buckets) > max(1, s*b/blocksPerBucket):
		return bad("number of buckets out of range")
	}
	return nil
}

// layout divides a cache of the given size. What is beyond some 8 TiB stays unused.
func layout(sizeBytes int64) geometry {
	blocks := uint64(sizeBytes) >> blockShift
	b := uint64(1) << (bits.Len64(blocks/minSegments|1) - 1)
	return layoutOf(blocks, min(max(b, minSegmentBlocks), maxSegmentBlocks))
}

// layoutOf divides blocks into segments of b blocks.
func layoutOf(blocks, b uint64) geometry {
	g := geometry{Blocks: blocks, SegmentBlocks: uint32(b), IndexBlock: indexBlock}
	parts := uint64(g.parts())
	room := blocks - min(blocks, indexBlock+dataAlign)
	s := min(room/(b+parts), (maxDataBlocks-1)/b)
	g.Segments = uint32(s)
	g.DataBlock = (indexBlock + s*parts + dataAlign - 1) / dataAlign * dataAlign
	g.Buckets = 1 << (bits.Len64(s*b/blocksPerBucket|1) - 1)
	return g
}

// parts is the number of planes of the index.
func (g *geometry) parts() int { return partsFor(int(g.SegmentBlocks)) }

func partsFor(slots int) int { return (slots + entriesPerBlock - 1) / entriesPerBlock }

// slotsOf is the number of slots of a class that a segment has, 0 where they are larger than it.
func (g *geometry) slotsOf(class uint8) int { return int(g.SegmentBlocks >> (class - minClass)) }

func (g *geometry) indexOffset(seg, part int) int64 {
	return int64(g.IndexBlock+uint64(part)*uint64(g.Segments)+uint64(seg)) << blockShift
}

func (g *geometry) slotOffset(seg int, class uint8, slot int) int64 {
	return int64(g.DataBlock+uint64(seg)*uint64(g.SegmentBlocks))<<blockShift + int64(slot)<<class
}

// classOf returns the smallest class that n bytes fit in, 1 to maxChunk.
func classOf(n int) uint8 { return uint8(max(minClass, bits.Len(uint(n-1)))) }

// roundUp returns the smallest multiple of 4 KiB that is not below n.
func roundUp(n int) int { return (n + blockSize - 1) &^ (blockSize - 1) }

// indexHeader begins each index block.
//
//	 0  4  magic "CIDX"
//	 4  4  CRC-32C of the block
//	 8 16  UUID of the cache
//	24  4  segment
//	28  2  part: which block of the segment's index it is, from 0
//	30  1  class: binary logarithm of the bytes of a slot; 0: the segment is free
//	31     zero to 64
//	64     entries of 16 bytes, those of slots part*252 to part*252+251
type indexHeader struct {
	UUID    uuid.UUID
	Segment uint32
	Part    uint16
	Class   uint8
}

// An entry of the index:
//
//	 0  4  bucket: bytes 0 to 3 of the digest, modulo the number of buckets
//	 4  4  tag: bytes 4 to 7 of the digest
//	 8  4  CRC-32C of the digest and the content
//	12  4  bits 0 to 19: length in bytes, less 1; bits 20 and 21: reads counted; bit 31: the slot is in use
//
// That of an unused slot is zero.
const (
	indexSumField   = 4
	indexHeaderSize = 64
	entrySize       = 16
	entriesPerBlock = (blockSize - indexHeaderSize) / entrySize

	metaLen  = maxChunk - 1
	metaRef  = 3 << 20
	metaOne  = 1 << 20 // one read
	metaUsed = 1 << 31
)

func (h *indexHeader) encode(p []byte) {
	clear(p[:indexHeaderSize])
	copy(p, indexMagic[:])
	copy(p[8:], h.UUID[:])
	le.PutUint32(p[24:], h.Segment)
	le.PutUint16(p[28:], h.Part)
	p[30] = h.Class
}

func sealIndexBlock(p []byte) { le.PutUint32(p[indexSumField:], blockChecksum(p, indexSumField)) }

// decode reports whether p is an intact index block, of this cache, and of the place that it was read from.
func (h *indexHeader) decode(p []byte, g *geometry, seg, part int) bool {
	if !bytes.Equal(p[:4], indexMagic[:]) || !bytes.Equal(p[8:24], g.UUID[:]) || blockChecksum(p, indexSumField) != le.Uint32(p[indexSumField:]) {
		return false
	}
	*h = indexHeader{UUID: g.UUID, Segment: le.Uint32(p[24:]), Part: le.Uint16(p[28:]), Class: p[30]}
	if h.Segment != uint32(seg) || h.Part != uint16(part) {
		return false
	}
	return h.Class == 0 || h.Class >= minClass && h.Class <= maxClass && g.slotsOf(h.Class) > 0
}

// diskEntry is an entry as it lies in the index.
type diskEntry struct{ bucket, tag, check, meta uint32 }

func (e diskEntry) encode(p []byte) {
	_ = p[entrySize-1]
	le.PutUint32(p, e.bucket)
	le.PutUint32(p[4:], e.tag)
	le.PutUint32(p[8:], e.check)
	le.PutUint32(p[12:], e.meta)
}

func (e *diskEntry) decode(p []byte) {
	_ = p[entrySize-1]
	*e = diskEntry{le.Uint32(p), le.Uint32(p[4:]), le.Uint32(p[8:]), le.Uint32(p[12:])}
}

// valid reports whether the entry can be one of a slot of the class.
func (e *diskEntry) valid(g *geometry, class uint8) bool {
	return e.meta&metaUsed != 0 && e.meta&^(metaUsed|metaRef|metaLen) == 0 && e.bucket < g.Buckets && int(e.meta&metaLen) < 1<<class
}
