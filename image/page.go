package image

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
)

// The table blob begins with 16 bytes: "COPPICE TABLE 1\n". Pages follow, each behind those that it names, so that the root
// page is the last one. All integers are little-endian.
//
// A page covers 1,024 entries, chunks at level 0 and pages of the level below above it, and holds those that are not all zeros:
//
//	  0   4  magic "CPPG"                         ┐
//	  4   1  version, 1                           │
//	  5   1  level                                │ content part
//	  6   2  number n of entries held, at least 1 │
//	  8   8  zero                                 │
//	 16 128  bitmap: bit i is set: entry i is held│
//	144 32n  digests, in the order of entries     ┘
//	         places, in the order of entries      ─ places part
//
// The digest of a chunk is the SHA-256 of its content, that of a page the SHA-256 of its content part. The content parts
// alone make the hash tree of the content root. A place is, at level 0:
//
//	0 4  pack, its index in the manifest
//	4 4  bytes stored; as many as the chunk has: stored as it is; fewer: a zstd frame
//	8 8  offset in the pack
//
// and above:
//
//	 0  8  offset of the page in the table
//	 8  4  length of the page
//	12  4  zero
//	16 32  SHA-256 of its places part
const (
	tableMagic = "COPPICE TABLE 1\n"
	pageMagic  = uint32('C') | uint32('P')<<8 | uint32('P')<<16 | uint32('G')<<24

	pageVersion = 1

	fanShift = 10
	fanOut   = 1 << fanShift

	pageHeader  = 16
	digestsAt   = pageHeader + fanOut/8
	digestSize  = sha256.Size
	chunkPlace  = 16
	pagePlace   = 48
	maxPageSize = digestsAt + fanOut*(digestSize+pagePlace)
)

// placeSize is the length of an entry's place.
func placeSize(level int) int {
	if level == 0 {
		return chunkPlace
	}
	return pagePlace
}

// contentLen is the length of the content part of a page with n entries, pageLen that of both parts.
func contentLen(n int) int     { return digestsAt + n*digestSize }
func pageLen(level, n int) int { return contentLen(n) + n*placeSize(level) }

// validate keeps a reference from asking for more than a page of its level can have.
func (r *PageRef) validate(level int) error {
	switch {
	case r.Offset < int64(len(tableMagic)) || r.Offset > maxSize:
		return fmt.Errorf("offset %d is out of range", r.Offset)
	case r.Length < pageLen(level, 1) || r.Length > pageLen(level, fanOut):
		return fmt.Errorf("a length of %d bytes is not between %d and %d", r.Length, pageLen(level, 1), pageLen(level, fanOut))
	}
	return nil
}

// chunkRef is what a page of level 0 says of a chunk.
type chunkRef struct {
	digest Digest
	place  place
}

// place says where a chunk is stored.
type place struct {
	pack   uint32
	stored uint32
	offset int64
}

// page is a decoded page of the table. It is not changed.
type page struct {
	level int
	n     int
	rank  [fanOut / 64]uint16 // entries held before each word of the bitmap
	raw   []byte
}

// decodePage reads a page whose digests were compared. limit is how many entries it may have. The page keeps raw.
func decodePage(raw []byte, level, limit int) (*page, error) {
	if len(raw) < digestsAt {
		return nil, fmt.Errorf("%d bytes are too few", len(raw))
	}
	p := &page{level: level, n: int(le.Uint16(raw[6:])), raw: raw}
	switch {
	case le.Uint32(raw) != pageMagic:
		return nil, errors.New("is no page")
	case raw[4] != pageVersion:
		return nil, fmt.Errorf("page version %d, this program knows %d: %w", raw[4], pageVersion, ErrVersion)
	case int(raw[5]) != level:
		return nil, fmt.Errorf("level %d, not %d", raw[5], level)
	case le.Uint64(raw[8:]) != 0:
		return nil, errors.New("reserved bytes are not zero")
	case p.n < 1 || p.n > limit:
		return nil, fmt.Errorf("%d entries, not between 1 and %d", p.n, limit)
	case len(raw) != pageLen(level, p.n):
		return nil, fmt.Errorf("%d bytes, but %d entries take %d", len(raw), p.n, pageLen(level, p.n))
	}
	n := 0
	for w := range p.rank {
		p.rank[w] = uint16(n)
		word := p.word(w)
		n += bits.OnesCount64(word)
		if word != 0 && w*64+bits.Len64(word) > limit {
			return nil, fmt.Errorf("entry %d is beyond the end of the image", w*64+bits.Len64(word)-1)
		}
	}
	if n != p.n {
		return nil, fmt.Errorf("%d entries, but the bitmap has %d", p.n, n)
	}
	return p, nil
}

func (p *page) word(w int) uint64 { return le.Uint64(p.raw[pageHeader+8*w:]) }

// find returns the place of entry i among those held, and false where it is zeros.
func (p *page) find(i int) (int, bool) {
	word, bit := p.word(i>>6), uint64(1)<<(i&63)
	return int(p.rank[i>>6]) + bits.OnesCount64(word&(bit-1)), word&bit != 0
}

// next returns the first entry held from entry i on, or fanOut.
func (p *page) next(i int) int {
	for i < fanOut {
		if word := p.word(i>>6) >> (i & 63); word != 0 {
			return i + bits.TrailingZeros64(word)
		}
		i = (i>>6 + 1) << 6
	}
	return fanOut
}

func (p *page) digest(k int) Digest { return Digest(p.raw[digestsAt+k*digestSize:][:digestSize]) }

func (p *page) place(k int) []byte {
	size := placeSize(p.level)
	return p.raw[contentLen(p.n)+k*size:][:size]
}

// chunk returns the k-th entry held of a page of level 0.
func (p *page) chunk(k int) chunkRef {
	b := p.place(k)
	return chunkRef{p.digest(k), place{pack: le.Uint32(b), stored: le.Uint32(b[4:]), offset: int64(le.Uint64(b[8:]))}}
}

// child returns the k-th entry held of a page above level 0. Its bounds are checked.
func (p *page) child(k int) (PageRef, error) {
	b := p.place(k)
	r := PageRef{Digest: p.digest(k), Places: Digest(b[16:48]), Offset: int64(le.Uint64(b)), Length: int(le.Uint32(b[8:]))}
	if le.Uint32(b[12:]) != 0 {
		return r, errors.New("reserved bytes are not zero")
	}
	return r, r.validate(p.level - 1)
}

func (p place) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, p.pack)
	b = binary.LittleEndian.AppendUint32(b, p.stored)
	return binary.LittleEndian.AppendUint64(b, uint64(p.offset))
}

func (r *PageRef) appendPlace(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, uint64(r.Offset))
	b = binary.LittleEndian.AppendUint64(b, uint64(r.Length))
	return append(b, r.Places[:]...)
}

// verifyPage compares a page with the digests in its reference.
func verifyPage(raw []byte, r *PageRef) error {
	if len(raw) < digestsAt {
		return fmt.Errorf("%d bytes are too few", len(raw))
	}
	n := contentLen(int(le.Uint16(raw[6:])))
	if n > len(raw) {
		return errors.New("more entries than bytes")
	}
	if got := Digest(sha256.Sum256(raw[:n])); got != r.Digest {
		return fmt.Errorf("content part has digest %s, not %s", got, r.Digest)
	}
	if got := Digest(sha256.Sum256(raw[n:])); got != r.Places {
		return fmt.Errorf("places part has digest %s, not %s", got, r.Places)
	}
	return nil
}

// pageBuilder collects the entries of one page.
type pageBuilder struct {
	number  int64 // which page of its level
	n       int
	bitmap  [fanOut / 8]byte
	digests []byte
	places  []byte
}

func (b *pageBuilder) add(i int, d Digest, place []byte) {
	b.bitmap[i>>3] |= 1 << (i & 7)
	b.digests = append(b.digests, d[:]...)
	b.places = append(b.places, place...)
	b.n++
}

// seal returns the page, and the reference to it when it lies at an offset, and begins a new one.
func (b *pageBuilder) seal(level int, offset int64) ([]byte, PageRef) {
	raw := make([]byte, digestsAt, pageLen(level, b.n))
	le.PutUint32(raw, pageMagic)
	raw[4], raw[5] = pageVersion, byte(level)
	le.PutUint16(raw[6:], uint16(b.n))
	copy(raw[pageHeader:], b.bitmap[:])
	raw = append(raw, b.digests...)
	ref := PageRef{Digest: sha256.Sum256(raw), Places: sha256.Sum256(b.places), Offset: offset}
	raw = append(raw, b.places...)
	ref.Length = len(raw)
	*b = pageBuilder{digests: b.digests[:0], places: b.places[:0]}
	return raw, ref
}
