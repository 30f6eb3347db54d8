package union

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/google/uuid"
)

// The catalog lists the layers of a store: name, pin, size and where the layer's maps
// lie; and where the bitmap of owned slots lies. It is encoded as one string of bytes and cut into a chain of blocks, each in
// a slot of its own.
//
//	 0  4  magic "CCAT"
//	 4  4  CRC-32C of the block
//	 8 16  UUID of the store
//	24  8  generation of the catalog, as in the superblock
//	32  4  index of this block
//	36  2  bytes used
//	38  2  zero
//	40  8  slot of the next block, all ones in the last
//	48     bytes
//
// The string: u32 number of bitmap pages, then for each
//
//	u32 index, u64 slot (all ones: every slot that it covers is owned), u32 CRC-32C of the page
//
// Then u32 number of layers, and for each layer
//
//	u32 number, u8 flags (1 sealed, 2 detaching, 4 incoming, 8 flat map complete), u32 number of the parent or 0, 16 bytes UUID,
//	u64 size in bytes, i64 created (Unix seconds), u64 quota in bytes (0: none),
//	u8 pin kind, u64 pin size, i64 pin modification time, 32 bytes pin digest,
//	u8 length and name, its own map, and the flat map of it and all below it
//
// A map: u32 number (0: there is none, and nothing follows), u32 number of directory pages, for each
//
//	u32 index, u64 slot, u32 CRC-32C as in its header
//
// u32 number of segments, and for each
//
//	u64 generation, u32 records, u32 number of extents, extents (u64 slot, u32 count)
const (
	catalogMagic      = uint32('C') | uint32('C')<<8 | uint32('A')<<16 | uint32('T')<<24
	catalogHeaderSize = 48
	catalogPayload    = blockSize - catalogHeaderSize
	// maxCatalogBlocks bounds the memory that reading a catalog can take: 64 MiB.
	maxCatalogBlocks = 16384
	noSlot           = ^uint64(0)

	// MaxLayerName is the longest name of a layer in bytes.
	MaxLayerName = 64
	maxLayers    = 65536

	// MaxDepth is how many sealed layers a layer can stand on.
	MaxDepth = 64
)

// extent is a range of slots.
type extent struct {
	Slot  uint64
	Count uint32
}

// layerEntry is what the catalog says of a layer.
type layerEntry struct {
	Number     uint32
	Parent     uint32 // number of the sealed layer below, or 0
	Sealed     bool
	Detaching  bool  // being made independent of what is below it
	Incoming   bool  // being copied from another store: not whole yet
	QuotaBytes int64 // of data of its own; 0: none
	UUID       uuid.UUID
	Name       string
	SizeBytes  int64
	Created    int64
	Pin        Pin
	FlatDone   bool // Flat is complete

	// Where the maps lie on the store. Of a layer in memory they are what they were when the store was opened.
	Map, Flat mapEntry
}

func encodeCatalog(bitmap []bitmapEntry, layers []layerEntry) []byte {
	b := le.AppendUint32(nil, uint32(len(bitmap)))
	for _, p := range bitmap {
		b = le.AppendUint32(b, p.Index)
		b = le.AppendUint64(b, p.Slot)
		b = le.AppendUint32(b, p.CRC)
	}
	b = le.AppendUint32(b, uint32(len(layers)))
	for i := range layers {
		l := &layers[i]
		b = le.AppendUint32(b, l.Number)
		b = append(b, flagsOf(l))
		b = le.AppendUint32(b, l.Parent)
		b = append(b, l.UUID[:]...)
		b = le.AppendUint64(b, uint64(l.SizeBytes))
		b = le.AppendUint64(b, uint64(l.Created))
		b = le.AppendUint64(b, uint64(l.QuotaBytes))
		b = append(b, byte(l.Pin.Kind))
		b = le.AppendUint64(b, uint64(l.Pin.SizeBytes))
		b = le.AppendUint64(b, uint64(l.Pin.ModTime))
		b = append(b, l.Pin.Digest[:]...)
		b = append(b, byte(len(l.Name)))
		b = append(b, l.Name...)
		b = l.Map.encode(b)
		b = l.Flat.encode(b)
	}
	return b
}

func (m *mapEntry) encode(b []byte) []byte {
	b = le.AppendUint32(b, m.Number)
	if m.Number == 0 {
		return b
	}
	b = le.AppendUint32(b, uint32(len(m.Pages)))
	for _, p := range m.Pages {
		b = le.AppendUint32(b, p.Index)
		b = le.AppendUint64(b, p.Slot)
		b = le.AppendUint32(b, p.CRC)
	}
	b = le.AppendUint32(b, uint32(len(m.Segments)))
	for _, seg := range m.Segments {
		b = le.AppendUint64(b, seg.Generation)
		b = le.AppendUint32(b, seg.Records)
		b = le.AppendUint32(b, uint32(len(seg.Extents)))
		for _, e := range seg.Extents {
			b = le.AppendUint64(b, e.Slot)
			b = le.AppendUint32(b, e.Count)
		}
	}
	return b
}

// Flags of a layer in the catalog.
const (
	layerSealed = 1 << iota
	layerDetaching
	layerIncoming
	layerFlatDone

	layerFlags = layerSealed | layerDetaching | layerIncoming | layerFlatDone
)

func flagsOf(l *layerEntry) (flags byte) {
	if l.Sealed {
		flags |= layerSealed
	}
	if l.Detaching {
		flags |= layerDetaching
	}
	if l.Incoming {
		flags |= layerIncoming
	}
	if l.FlatDone {
		flags |= layerFlatDone
	}
	return flags
}

// fields reads little-endian values and remembers the first shortage.
type fields struct {
	b     []byte
	short bool
}

func (f *fields) take(n int) []byte {
	if f.short || n > len(f.b) {
		f.short = true
		return make([]byte, n)
	}
	p := f.b[:n]
	f.b = f.b[n:]
	return p
}

func (f *fields) u8() uint8   { return f.take(1)[0] }
func (f *fields) u32() uint32 { return le.Uint32(f.take(4)) }
func (f *fields) u64() uint64 { return le.Uint64(f.take(8)) }

// list reads the length of a list of things of at least size bytes each: no more than there can be.
func (f *fields) list(size int) uint32 {
	n := f.u32()
	if uint64(n)*uint64(size) > uint64(len(f.b)) {
		f.short = true
		return 0
	}
	return n
}

// decodeMap reads what the catalog says of a map.
func (f *fields) decodeMap(slots uint64) (m mapEntry, err error) {
	if m.Number = f.u32(); m.Number == 0 {
		return m, nil
	}
	for range f.list(16) {
		p := dirEntry{f.u32(), f.u64(), f.u32()}
		if p.Slot >= slots || len(m.Pages) > 0 && p.Index <= m.Pages[len(m.Pages)-1].Index {
			return m, fmt.Errorf("directory of map %d beyond the store or out of order", m.Number)
		}
		m.Pages = append(m.Pages, p)
	}
	for range f.list(16) {
		seg := segmentEntry{Generation: f.u64(), Records: f.u32()}
		var blocks uint64
		for range f.list(12) {
			e := extent{f.u64(), f.u32()}
			if e.Count == 0 || e.Slot >= slots || uint64(e.Count) > slots-e.Slot {
				return m, fmt.Errorf("segment of map %d reaches beyond the store", m.Number)
			}
			blocks += uint64(e.Count)
			seg.Extents = append(seg.Extents, e)
		}
		if blocks == 0 || blocks > slots {
			return m, fmt.Errorf("segment of map %d has %d blocks", m.Number, blocks)
		}
		m.Segments = append(m.Segments, seg)
	}
	return m, nil
}

func (f *fields) decodeBitmap(slots uint64) (pages []bitmapEntry, err error) {
	for range f.list(16) {
		p := bitmapEntry{f.u32(), f.u64(), f.u32()}
		if p.Slot != noSlot && p.Slot >= slots || uint64(p.Index)*pageGroups*groupSlots >= slots ||
			len(pages) > 0 && p.Index <= pages[len(pages)-1].Index {
			return nil, fmt.Errorf("bitmap page %d beyond the store or out of order", p.Index)
		}
		pages = append(pages, p)
	}
	return pages, nil
}

// decodeCatalog never allocates more than the string's own length asks for.
func decodeCatalog(b []byte, slots uint64) ([]bitmapEntry, []layerEntry, error) {
	bad := func(format string, a ...any) ([]bitmapEntry, []layerEntry, error) {
		return nil, nil, &CorruptError{"catalog", -1, fmt.Sprintf(format, a...)}
	}
	f := &fields{b: b}
	bitmap, err := f.decodeBitmap(slots)
	if err != nil {
		return bad("%v", err)
	}
	n := f.u32()
	if n > maxLayers {
		return bad("%d layers", n)
	}
	var layers []layerEntry
	names := map[string]bool{}
	numbers := map[uint32]bool{}
	maps := map[uint32]bool{0: true}
	for range n {
		var l layerEntry
		l.Number = f.u32()
		flags := f.u8()
		if flags&^layerFlags != 0 {
			return bad("unknown layer flags %#x", flags)
		}
		l.Sealed = flags&layerSealed != 0
		l.Detaching = flags&layerDetaching != 0
		l.Incoming = flags&layerIncoming != 0
		l.FlatDone = flags&layerFlatDone != 0
		l.Parent = f.u32()
		copy(l.UUID[:], f.take(16))
		l.SizeBytes = int64(f.u64())
		l.Created = int64(f.u64())
		l.QuotaBytes = int64(f.u64())
		l.Pin.Kind = PinKind(f.u8())
		l.Pin.SizeBytes = int64(f.u64())
		l.Pin.ModTime = int64(f.u64())
		copy(l.Pin.Digest[:], f.take(len(l.Pin.Digest)))
		l.Name = string(f.take(int(f.u8())))
		var errs [2]error
		l.Map, errs[0] = f.decodeMap(slots)
		l.Flat, errs[1] = f.decodeMap(slots)
		if f.short {
			return bad("cut short in layer %d", l.Number)
		}
		if err := errors.Join(errs[:]...); err != nil {
			return bad("layer %d: %v", l.Number, err)
		}
		switch {
		case l.SizeBytes <= 0 || uint64(l.SizeBytes)>>blockShift > maxBlock:
			return bad("size of layer %d out of range", l.Number)
		case l.QuotaBytes < 0:
			return bad("quota of layer %d out of range", l.Number)
		case ValidLayerName(l.Name) != nil:
			return bad("name of layer %d not valid", l.Number)
		case names[l.Name] || numbers[l.Number]:
			return bad("layer %q twice", l.Name)
		case maps[l.Map.Number] || l.Flat.Number != 0 && (maps[l.Flat.Number] || l.Flat.Number == l.Map.Number):
			return bad("map of layer %d missing, or of another layer", l.Number)
		case l.FlatDone && (l.Flat.Number == 0 || !l.Sealed):
			return bad("layer %d has no flat map", l.Number)
		}
		names[l.Name], numbers[l.Number] = true, true
		maps[l.Map.Number], maps[l.Flat.Number] = true, true
		layers = append(layers, l)
	}
	if f.short || len(f.b) != 0 {
		return bad("length does not fit its content")
	}
	return bitmap, layers, checkParents(layers)
}

// checkParents refuses parents that do not exist, are not sealed, differ in size, or go round in a circle.
func checkParents(layers []layerEntry) error {
	byNumber := make(map[uint32]*layerEntry, len(layers))
	for i := range layers {
		byNumber[layers[i].Number] = &layers[i]
	}
	for i := range layers {
		depth := 0
		for l := &layers[i]; l.Parent != 0; depth++ {
			p := byNumber[l.Parent]
			if p == nil || !p.Sealed || p.SizeBytes != l.SizeBytes || depth == MaxDepth {
				return &CorruptError{"catalog", -1, fmt.Sprintf("parent %d of layer %d is missing, not sealed, of another size, or too deep down", l.Parent, l.Number)}
			}
			l = p
		}
	}
	return nil
}

// ValidLayerName tells whether a layer can have the name: 1 to 64 of the characters
// a–z A–Z 0–9 . _ -, not beginning with a dot or a dash.
func ValidLayerName(name string) error {
	if len(name) == 0 || len(name) > MaxLayerName {
		return fmt.Errorf("layer name %q: must have 1 to %d characters", name, MaxLayerName)
	}
	for i, c := range []byte(name) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_'
		if !letter && (i == 0 || c != '.' && c != '-') {
			return fmt.Errorf("layer name %q: only letters, digits, dot, dash and underscore, beginning with a letter, digit or underscore", name)
		}
	}
	return nil
}

// catalogBlocks cuts an encoded catalog into blocks for the given slots.
func catalogBlocks(b []byte, id uuid.UUID, generation uint64, slots []uint64) []byte {
	out := alignedBuffer(len(slots) << blockShift)
	for i := range slots {
		p := out[i<<blockShift:][:blockSize]
		n := copy(p[catalogHeaderSize:], b)
		b = b[n:]
		next := uint64(noSlot)
		if i+1 < len(slots) {
			next = slots[i+1]
		}
		le.PutUint32(p, catalogMagic)
		copy(p[8:], id[:])
		le.PutUint64(p[24:], generation)
		le.PutUint32(p[32:], uint32(i))
		le.PutUint16(p[36:], uint16(n))
		le.PutUint64(p[40:], next)
		le.PutUint32(p[logSumField:], blockChecksum(p, logSumField))
	}
	return out
}

func catalogBlockCount(n int) int { return max(1, (n+catalogPayload-1)/catalogPayload) }

// decodeCatalogBlock returns the bytes of one block of a chain and the slot of the next.
func decodeCatalogBlock(p []byte, sb *superblock, index uint32, off int64) (data []byte, next uint64, err error) {
	switch {
	case le.Uint32(p) != catalogMagic || !bytes.Equal(p[8:24], sb.UUID[:]):
		return nil, 0, &CorruptError{"catalog", off, "not a catalog block of this store"}
	case blockChecksum(p, logSumField) != le.Uint32(p[logSumField:]):
		return nil, 0, &CorruptError{"catalog", off, "checksum wrong"}
	case le.Uint64(p[24:]) != sb.CatalogGeneration || le.Uint32(p[32:]) != index:
		return nil, 0, &CorruptError{"catalog", off, "block of another catalog"}
	}
	n := int(le.Uint16(p[36:]))
	if n > catalogPayload {
		return nil, 0, &CorruptError{"catalog", off, "length out of range"}
	}
	return p[catalogHeaderSize:][:n], le.Uint64(p[40:]), nil
}
