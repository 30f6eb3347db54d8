package union

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"reflect"
	"regexp"
	"strconv"
	"testing"

	"github.com/google/uuid"
)

// layoutField is one field of a stored structure, with a value of its own: where that must lie.
type layoutField struct {
	off, size int
	name      string // of the Go field; "" for what is fixed
	value     any
}

var testUUID = uuid.MustParse("01020304-0506-0708-090a-0b0c0d0e0f10")

var otherUUID = uuid.MustParse("a1a2a3a4-a5a6-a7a8-a9aa-abacadaeafb0")

var superblockLayout = []layoutField{
	{0, 8, "", superMagic[:]},
	{8, 2, "", uint16(1)},
	{10, 2, "", uint16(0)},
	{12, 4, "", nil}, // checksum
	{16, 8, "Incompat", uint64(0)},
	{24, 8, "Compat", uint64(0x1112131415161718)},
	{32, 16, "UUID", testUUID},
	{48, 8, "Generation", uint64(0x2122232425262728)},
	{56, 8, "SizeBlocks", uint64(0x31323334)},
	{64, 8, "LogBlocks", uint64(2048)},
	{72, 8, "LogA", uint64(256)},
	{80, 8, "LogB", uint64(256 + 2048 + 256)},
	{88, 8, "SlotBase", uint64(256 + 2048 + 256 + 2048 + 0x5152)},
	{96, 8, "Slots", uint64(0x313233)},
	{104, 8, "LogStart", uint64(0x4142434445464748)},
	{112, 8, "CatalogSlot", uint64(0x212223)},
	{120, 4, "CatalogBlocks", uint32(0x1122)},
	{124, 4, "NextLayer", uint32(0x61626364)},
	{128, 8, "CatalogGeneration", uint64(0x7172737475767778)},
	{136, 16, "BootID", otherUUID},
	{152, 8, "CacheBlocks", uint64(0x5152)},
}

var logHeaderLayout = []layoutField{
	{0, 4, "", []byte("CLOG")},
	{4, 4, "", nil},
	{8, 16, "UUID", testUUID},
	{24, 8, "Seq", uint64(0x2122232425262728)},
	{32, 8, "Durable", uint64(0x1112131415161718)},
	{40, 2, "Count", 0x7d},
}

var recordLayout = []layoutField{
	{0, 1, "Kind", uint8(1)},
	{1, 3, "", []byte{0, 0, 0}},
	{4, 4, "Layer", uint32(0x11121314)},
	{8, 8, "Block", uint64(0x2122232425262728)},
	{16, 8, "Slot", uint64(0x3132333435363738)},
	{24, 4, "CRC", uint32(0x41424344)},
	{28, 4, "", uint32(0)},
}

var mapHeaderLayout = []layoutField{
	{0, 4, "Magic", segmentMagic},
	{4, 4, "", nil},
	{8, 16, "UUID", testUUID},
	{24, 4, "Map", uint32(0x11121314)},
	{28, 4, "Index", uint32(0x21222324)},
	{32, 8, "Generation", uint64(0x3132333435363738)},
	{40, 2, "Used", 0xfb},
}

// bytesOf is the little-endian form of a field's value.
func (f *layoutField) bytesOf() []byte {
	var v uint64
	switch x := f.value.(type) {
	case []byte:
		return x
	case uuid.UUID:
		return x[:]
	case int:
		v = uint64(x)
	default:
		v = reflect.ValueOf(f.value).Uint()
	}
	b := le.AppendUint64(nil, v)
	return b[:f.size]
}

// fillFields sets the fields of the structure that s points to.
func fillFields(s any, layout []layoutField) {
	for _, f := range layout {
		if f.name != "" {
			reflect.ValueOf(s).Elem().FieldByName(f.name).Set(reflect.ValueOf(f.value))
		}
	}
}

// TestLayouts encodes structures with a value of its own in each field: each lies where the layout says, the rest
// is zero, all Go fields are stored, and decoding gives them back. The layouts are those of the diagrams in the comments.
func TestLayouts(t *testing.T) {
	for _, c := range []struct {
		name   string
		of     any
		layout []layoutField
		size   int
		encode func(p []byte, v any)
		decode func(p []byte) (any, error)
	}{
		{"superblock", &superblock{}, superblockLayout, blockSize,
			func(p []byte, v any) { v.(*superblock).encode(p) },
			func(p []byte) (any, error) { var s superblock; err := s.decode(p, 0); return &s, err }},
		{"logHeader", &logHeader{}, logHeaderLayout, logHeaderSize,
			func(p []byte, v any) { v.(*logHeader).encode(p); sealLogBlock(p) },
			func(p []byte) (any, error) {
				var h logHeader
				if !h.decode(p, testUUID) {
					return nil, errors.New("not taken")
				}
				return &h, nil
			}},
		{"record", &record{}, recordLayout, recordSize,
			func(p []byte, v any) { v.(*record).encode(p) },
			func(p []byte) (any, error) { var r record; r.decode(p); return &r, nil }},
		{"mapHeader", &mapHeader{}, mapHeaderLayout, mapHeaderSize,
			func(p []byte, v any) { v.(*mapHeader).encode(p) },
			func(p []byte) (any, error) { var h mapHeader; err := h.decode(p, 0); return &h, err }},
	} {
		t.Run(c.name, func(t *testing.T) {
			fillFields(c.of, c.layout)
			p := make([]byte, blockSize)
			for i := range c.size {
				p[i] = 0xff // stale
			}
			c.encode(p, c.of)
			checkLayout(t, p[:c.size], c.layout)
			got, err := c.decode(p)
			if err != nil || !reflect.DeepEqual(got, c.of) {
				t.Errorf("decoded %+v, want %+v: %v", got, c.of, err)
			}
			named := 0
			for _, f := range c.layout {
				if f.name != "" {
					named++
				}
			}
			if n := reflect.TypeOf(c.of).Elem().NumField(); n != named {
				t.Errorf("%d Go fields, %d in the layout", n, named)
			}
			checkDiagram(t, c.name, c.layout)
		})
	}
}

// TestRegionRecordLayout compares a record with the diagram beside its decoder.
func TestRegionRecordLayout(t *testing.T) {
	m := newSectorMap(newPager(), 1, 4*regionBlocks)
	m.zero(2*regionBlocks, regionBlocks, nothingFreed)
	m.set(2*regionBlocks+0x123, dataMapping(0x112131415), 0x21222324)
	m.set(3*regionBlocks-3, mapZero, 0)
	m.set(3*regionBlocks-2, mapZero, 0)
	got, data := m.encodeRegion(2, nil)
	want := []byte{2, 0, 0, 0, 2, 0x80,
		0x23, 0x01 | kindData<<2 | 0x50, 0x41, 0x31, 0x21, 0x11, 0x24, 0x23, 0x22, 0x21,
		0xfd, 0x03 | kindZero<<2 | 2<<4, 0, 0, 0, 0, 0, 0, 0, 0}
	if !bytes.Equal(got, want) || data != 1 {
		t.Fatalf("%d blocks of data in\n%x, want\n%x", data, got, want)
	}
	r := regionRecord{b: got}
	if data, err := r.check(2, regionBlocks, maxBlock); data != 1 || err != nil {
		t.Errorf("%d blocks of data, %v", data, err)
	}
	if p := newPlace(0x1112131415, 4094, 1024); p.slot() != 0x1112131415 || p.off() != 4094 || p.data() != 1024 {
		t.Errorf("place %#x", uint64(p))
	}
}

func checkLayout(t *testing.T, p []byte, layout []layoutField) {
	t.Helper()
	at := 0
	for i := range layout {
		f := &layout[i]
		if f.off != at {
			t.Errorf("layout has a gap from %d to %d", at, f.off)
		}
		at = f.off + f.size
		if f.value == nil {
			continue
		}
		if got, want := p[f.off:at], f.bytesOf(); !bytes.Equal(got, want) {
			t.Errorf("bytes %d to %d (%s): %x, want %x", f.off, at, f.name, got, want)
		}
	}
	for i, b := range p[at:] {
		if b != 0 {
			t.Errorf("byte %d is %#x, want zero", at+i, b)
			return
		}
	}
}

var diagramLine = regexp.MustCompile(`(?m)^\s*(\d+)\s+(\d+)\s\s`)

// checkDiagram compares the layout with the lines "offset size content" in the comment on the Go type.
func checkDiagram(t *testing.T, name string, layout []layoutField) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), map[bool]string{true: "mapstore.go", false: "format.go"}[name == "mapHeader"], nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	doc := ""
	ast.Inspect(f, func(n ast.Node) bool {
		if d, ok := n.(*ast.GenDecl); ok && d.Tok == token.TYPE && d.Specs[0].(*ast.TypeSpec).Name.Name == name {
			doc = d.Doc.Text()
		}
		return true
	})
	var lines [][2]int
	for _, m := range diagramLine.FindAllStringSubmatch(doc, -1) {
		off, _ := strconv.Atoi(m[1])
		size, _ := strconv.Atoi(m[2])
		if len(lines) > 0 && off == 0 { // the diagram of an entry follows
			break
		}
		lines = append(lines, [2]int{off, size})
	}
	if len(lines) != len(layout) {
		t.Fatalf("the diagram of %s has %d lines, the layout %d: %v", name, len(lines), len(layout), lines)
	}
	for i, f := range layout {
		if lines[i] != [2]int{f.off, f.size} {
			t.Errorf("the diagram of %s says %v, the layout %d %d", name, lines[i], f.off, f.size)
		}
	}
}

func TestCatalogBlockLayout(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789"), 450) // two blocks
	slots := []uint64{0x1122334455, 0x2233445566}
	p := catalogBlocks(content, testUUID, 0x3132333435363738, slots)
	sb := &superblock{UUID: testUUID, CatalogGeneration: 0x3132333435363738}
	var got []byte
	for i := range slots {
		b := p[i<<blockShift:][:blockSize]
		next := []uint64{slots[1], ^uint64(0)}[i]
		used := min(len(content)-i*catalogPayload, catalogPayload)
		checkLayout(t, b[:catalogHeaderSize], []layoutField{
			{0, 4, "magic", []byte("CCAT")},
			{4, 4, "checksum", nil},
			{8, 16, "UUID", testUUID},
			{24, 8, "generation", uint64(0x3132333435363738)},
			{32, 4, "index", uint32(i)},
			{36, 2, "used", uint16(used)},
			{38, 2, "zero", uint16(0)},
			{40, 8, "next", next},
		})
		data, n, err := decodeCatalogBlock(b, sb, uint32(i), 0)
		if err != nil || n != next {
			t.Errorf("block %d: next %#x: %v", i, n, err)
		}
		got = append(got, data...)
		for name, change := range map[string]func(sb *superblock, index *uint32){
			"store":      func(sb *superblock, _ *uint32) { sb.UUID = otherUUID },
			"generation": func(sb *superblock, _ *uint32) { sb.CatalogGeneration-- },
			"index":      func(_ *superblock, index *uint32) { *index++ },
		} {
			other, index := *sb, uint32(i)
			change(&other, &index)
			if _, _, err := decodeCatalogBlock(b, &other, index, 0); !errors.Is(err, ErrCorrupt) {
				t.Errorf("block of another %s: %v", name, err)
			}
		}
	}
	if !bytes.Equal(got, content) {
		t.Error("content differs")
	}
}

// catalogExample has a value of its own in each field.
func catalogExample() []layerEntry {
	pin := Pin{Kind: PinRaw, SizeBytes: 0x0102030405, ModTime: 0x1112131415161718}
	for i := range pin.Digest {
		pin.Digest[i] = byte(0x80 + i)
	}
	return []layerEntry{
		{Number: 0x21222324, UUID: testUUID, Name: "web1", SizeBytes: 0x3132333435 << 9, Created: 0x4142434445464748, QuotaBytes: 0x5152535455565758, Pin: pin,
			Parent: 7, Map: mapEntry{Number: 0x25262728, Pages: []dirEntry{{0x31, 0x32, 0x33343536}, {0x41, 0x42, 0x43444546}},
				Segments: []segmentEntry{{0x6162636465666768, 0x71727374, []extent{{0x61, 2}, {0x71, 1}}}}}},
		{Number: 7, UUID: otherUUID, Name: "_", SizeBytes: 0x3132333435 << 9, Sealed: true, FlatDone: true,
			Map: mapEntry{Number: 7}, Flat: mapEntry{Number: 8}},
	}
}

func bitmapExample() []bitmapEntry { return []bitmapEntry{{0, 0x22, 0x23242526}} }

func TestCatalogRoundTrip(t *testing.T) {
	layers := catalogExample()
	enc := encodeCatalog(bitmapExample(), layers)
	bitmap, got, err := decodeCatalog(enc, 0x80)
	if err != nil || !reflect.DeepEqual(got, layers) || !reflect.DeepEqual(bitmap, bitmapExample()) {
		t.Fatalf("decoded %+v: %v", got, err)
	}
	// The order of the comment.
	p := &layers[0].Pin
	var want []byte
	want = le.AppendUint32(want, 1)
	want = le.AppendUint32(want, 0)
	want = le.AppendUint64(want, 0x22)
	want = le.AppendUint32(want, 0x23242526)
	want = le.AppendUint32(want, 2)
	want = le.AppendUint32(want, 0x21222324)
	want = append(want, 0)
	want = le.AppendUint32(want, 7)
	want = append(want, testUUID[:]...)
	want = le.AppendUint64(want, 0x3132333435<<9)
	want = le.AppendUint64(want, 0x4142434445464748)
	want = le.AppendUint64(want, 0x5152535455565758)
	want = append(want, 1)
	want = le.AppendUint64(want, 0x0102030405)
	want = le.AppendUint64(want, 0x1112131415161718)
	want = append(want, p.Digest[:]...)
	want = append(want, "\x04web1"...)
	own := &layers[0].Map
	want = le.AppendUint32(want, 0x25262728)
	want = le.AppendUint32(want, 2)
	for _, x := range own.Pages {
		want = le.AppendUint32(want, x.Index)
		want = le.AppendUint64(want, x.Slot)
		want = le.AppendUint32(want, x.CRC)
	}
	want = le.AppendUint32(want, 1)
	want = le.AppendUint64(want, 0x6162636465666768)
	want = le.AppendUint32(want, 0x71727374)
	want = le.AppendUint32(want, 2)
	for _, e := range own.Segments[0].Extents {
		want = le.AppendUint64(want, e.Slot)
		want = le.AppendUint32(want, e.Count)
	}
	want = le.AppendUint32(want, 0) // no flat map
	if !bytes.HasPrefix(enc, want) {
		t.Errorf("encoded\n%x, want it to begin with\n%x", enc, want)
	}
	if flags := enc[len(want)+4]; flags != layerSealed|layerFlatDone {
		t.Errorf("flags of the sealed layer %#x", flags)
	}
	for n := range enc {
		if _, _, err := decodeCatalog(enc[:n], 0x80); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
	if _, _, err := decodeCatalog(append(enc, 0), 0x80); !errors.Is(err, ErrCorrupt) {
		t.Errorf("with a byte more: %v", err)
	}
}

func TestCatalogRefuses(t *testing.T) {
	for name, change := range map[string]func(l []layerEntry){
		"size zero":             func(l []layerEntry) { l[0].SizeBytes = 0 },
		"size negative":         func(l []layerEntry) { l[0].SizeBytes = -4096 },
		"size too big":          func(l []layerEntry) { l[0].SizeBytes = 1 << 53 },
		"name empty":            func(l []layerEntry) { l[0].Name = "" },
		"name not valid":        func(l []layerEntry) { l[0].Name = "../x" },
		"name too long":         func(l []layerEntry) { l[0].Name = string(bytes.Repeat([]byte("a"), 65)) },
		"name twice":            func(l []layerEntry) { l[1].Name = l[0].Name },
		"number twice":          func(l []layerEntry) { l[1].Number = l[0].Number },
		"empty extent":          func(l []layerEntry) { l[0].Map.Segments[0].Extents[1].Count = 0 },
		"extent beyond the end": func(l []layerEntry) { l[0].Map.Segments[0].Extents[1] = extent{0x7f, 2} },
		"extent far beyond":     func(l []layerEntry) { l[0].Map.Segments[0].Extents[1].Slot = ^uint64(0) },
		"parent missing":        func(l []layerEntry) { l[0].Parent = 8 },
		"parent not sealed":     func(l []layerEntry) { l[1].Sealed = false },
		"parent of other size":  func(l []layerEntry) { l[1].SizeBytes += 512 },
		"own parent":            func(l []layerEntry) { l[1].Parent = 7 },
		"empty segment":         func(l []layerEntry) { l[0].Map.Segments[0].Extents = nil },
		"page beyond the end":   func(l []layerEntry) { l[0].Map.Pages[0].Slot = 0x80 },
		"pages out of order":    func(l []layerEntry) { l[0].Map.Pages[0].Index = 0x41 },
		"no map":                func(l []layerEntry) { l[0].Map = mapEntry{} },
		"map twice":             func(l []layerEntry) { l[0].Map.Number = 7 },
		"flat map is its own":   func(l []layerEntry) { l[1].Flat.Number = 7 },
		"no flat map":           func(l []layerEntry) { l[1].Flat = mapEntry{} },
	} {
		layers := catalogExample()
		change(layers)
		if _, _, err := decodeCatalog(encodeCatalog(bitmapExample(), layers), 0x80); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSuperblockRefuses(t *testing.T) {
	for name, change := range map[string]func(s *superblock){
		"too small":              func(s *superblock) { s.SizeBlocks = smallestStore - 1 },
		"too big":                func(s *superblock) { s.SizeBlocks = maxBlock + 1 },
		"log too small":          func(s *superblock) { s.LogBlocks = 0 },
		"log too big":            func(s *superblock) { s.LogBlocks = maxLogBlocks + maxPendingBlocks },
		"log not in quanta":      func(s *superblock) { s.LogBlocks += 1; s.LogB++; s.SlotBase += 2 },
		"copy A elsewhere":       func(s *superblock) { s.LogA++ },
		"copy B elsewhere":       func(s *superblock) { s.LogB-- },
		"slots elsewhere":        func(s *superblock) { s.SlotBase-- },
		"no slots":               func(s *superblock) { s.Slots = 0 },
		"slots beyond the end":   func(s *superblock) { s.Slots = s.SizeBlocks - s.SlotBase + 1 },
		"slots overflow":         func(s *superblock) { s.Slots = ^uint64(0) - s.SlotBase + 2 },
		"no catalog":             func(s *superblock) { s.CatalogBlocks = 0 },
		"catalog too long":       func(s *superblock) { s.CatalogBlocks = maxCatalogBlocks + 1 },
		"catalog beyond the end": func(s *superblock) { s.CatalogSlot = s.Slots },
		"log start zero":         func(s *superblock) { s.LogStart = 0 },
		"cache over slots":       func(s *superblock) { s.CacheBlocks++ },
		"cache overflows":        func(s *superblock) { s.CacheBlocks = -s.cacheBlock(); s.SlotBase = 0 },
		"cache of everything":    func(s *superblock) { s.CacheBlocks = s.SizeBlocks - s.cacheBlock(); s.SlotBase = s.SizeBlocks },
	} {
		s := layout(1 << 30)
		s.CatalogBlocks = 1
		p := make([]byte, blockSize)
		s.encode(p)
		if err := new(superblock).decode(p, 0); err != nil {
			t.Fatal(err)
		}
		change(&s)
		s.encode(p)
		if err := new(superblock).decode(p, 0); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestStoreLayout divides stores of many sizes: nothing overlaps, and the copies of the log are far apart.
func TestStoreLayout(t *testing.T) {
	for _, size := range []int64{MinStoreBytes, MinStoreBytes + 4095, 100 << 20, 256 << 20, 257 << 20, 1 << 30, 4 << 30, 5 << 30, 1 << 40, 4<<50 - 4096} {
		s := layout(size)
		s.CatalogBlocks = 1
		p := make([]byte, blockSize)
		s.encode(p)
		if err := new(superblock).decode(p, 0); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
		n := int64(s.LogBlocks) << blockShift
		if want := min(max(size/64, 4<<20), 64<<20); n > want || n <= want-4<<20 {
			t.Errorf("%d bytes: log copies of %d", size, n)
		}
		if s.LogA<<blockShift < 1<<20 || int64(s.LogB-s.LogA)<<blockShift < n+1<<20 || s.SlotBase < s.LogB+s.LogBlocks ||
			s.SlotBase+s.Slots != min(uint64(size)>>blockShift, s.SlotBase+maxSlots) {
			t.Errorf("%d bytes: %+v", size, s)
		}
		if got, want := s.slotOffset(3), int64(s.SlotBase+3)*blockSize; got != want {
			t.Errorf("slot 3 at %d, want %d", got, want)
		}
	}
}

func TestCorruptErrorText(t *testing.T) {
	err := fmt.Errorf("open: %w", &CorruptError{"log", 8192, "block 3"})
	if !errors.Is(err, ErrCorrupt) || err.Error() != "open: log at byte 8192 corrupt: block 3" {
		t.Error(err)
	}
	if got := (&CorruptError{"run", -1, "short"}).Error(); got != "run corrupt: short" {
		t.Error(got)
	}
}
