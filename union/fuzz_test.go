package union

import (
	"bytes"
	"errors"
	"runtime"
	"testing"
)

// blockOf makes a whole block of what a fuzzer gives.
func blockOf(b []byte) []byte {
	p := make([]byte, blockSize)
	copy(p, b)
	return p
}

// limit fails where f allocates more than n bytes.
func limit(t *testing.T, n uint64, f func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > n {
		t.Errorf("%d bytes allocated, at most %d are fit", used, n)
	}
}

// known demands that an error is one of those that callers tell apart.
func known(t *testing.T, err error) {
	t.Helper()
	if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNotFormatted) && !errors.Is(err, ErrVersion) {
		t.Errorf("error without a cause that callers know: %v", err)
	}
}

func FuzzSuperblock(f *testing.F) {
	s := layout(1 << 30)
	s.CatalogBlocks, s.UUID = 1, testUUID
	p := make([]byte, blockSize)
	s.encode(p)
	f.Add(p[:256])
	f.Add([]byte("COPPLEAF"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p := blockOf(b)
		for range 2 {
			var s superblock
			err := s.decode(p, 0)
			known(t, err)
			if err == nil {
				if s.Slots > s.SizeBlocks || s.SlotBase+s.Slots > s.SizeBlocks || s.CatalogSlot >= s.Slots {
					t.Errorf("accepted %+v", s)
				}
				again := make([]byte, blockSize)
				s.encode(again)
				var got superblock
				if err := got.decode(again, 0); err != nil || got != s {
					t.Errorf("%+v came back as %+v: %v", s, got, err)
				}
			}
			// The second round gets beyond magic and checksum.
			copy(p, superMagic[:])
			le.PutUint32(p[superSumField:], blockChecksum(p, superSumField))
		}
	})
}

func FuzzCatalog(f *testing.F) {
	f.Add(encodeCatalog(nil, nil))
	f.Add(encodeCatalog(bitmapExample(), catalogExample()))
	f.Add([]byte{0xff, 0xff, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var bitmap []bitmapEntry
		var layers []layerEntry
		var err error
		// Each layer takes 100 bytes of the string at least, and each extent 12.
		limit(t, uint64(len(b))*32+64<<10, func() { bitmap, layers, err = decodeCatalog(b, 0x80) })
		known(t, err)
		if err != nil {
			return
		}
		if again := encodeCatalog(bitmap, layers); !bytes.Equal(again, b) {
			t.Errorf("%x came back as %x", b, again)
		}
		for _, l := range layers {
			if ValidLayerName(l.Name) != nil || l.SizeBytes <= 0 {
				t.Errorf("accepted %+v", l)
			}
			for _, e := range append(l.Map.slots(), l.Flat.slots()...) {
				if e.Slot+uint64(e.Count) > 0x80 {
					t.Errorf("accepted extent %+v", e)
				}
			}
		}
	})
}

func FuzzCatalogBlock(f *testing.F) {
	sb := &superblock{UUID: testUUID, CatalogGeneration: 5}
	f.Add(catalogBlocks([]byte("content"), testUUID, 5, []uint64{9})[:64], uint32(0))
	f.Fuzz(func(t *testing.T, b []byte, index uint32) {
		p := blockOf(b)
		for range 2 {
			data, _, err := decodeCatalogBlock(p, sb, index, 0)
			known(t, err)
			if err == nil && len(data) > catalogPayload {
				t.Errorf("%d bytes of content", len(data))
			}
			copy(p[8:], testUUID[:])
			le.PutUint32(p, catalogMagic)
			le.PutUint64(p[24:], 5)
			le.PutUint32(p[32:], index)
			le.PutUint32(p[logSumField:], blockChecksum(p, logSumField))
		}
	})
}

func FuzzLogBlock(f *testing.F) {
	p := make([]byte, blockSize)
	h := logHeader{UUID: testUUID, Seq: 9, Durable: 8, Count: 2}
	h.encode(p)
	for i := range 2 {
		r := record{Kind: kindData, Layer: 1, Block: uint64(i), Slot: 7, CRC: 1}
		r.encode(p[logHeaderSize+i*recordSize:])
	}
	sealLogBlock(p)
	f.Add(p[:256])
	f.Fuzz(func(t *testing.T, b []byte) {
		p := blockOf(b)
		for range 2 {
			var h logHeader
			ok := h.decode(p, testUUID)
			live := h.decodeFields(p, testUUID)
			if ok && !live {
				t.Error("a sealed block is not taken from a live ring")
			}
			if live {
				if h.Count < 0 || h.Count > recordsPerLog || h.Durable >= h.Seq {
					t.Errorf("accepted %+v", h)
				}
				var r record
				for i := range h.Count {
					r.decode(p[logHeaderSize+i*recordSize:])
					checkRecord(t, &r)
				}
			}
			le.PutUint32(p, logMagic)
			copy(p[8:], testUUID[:])
			sealLogBlock(p)
		}
	})
}

func FuzzRecord(f *testing.F) {
	p := make([]byte, recordSize)
	(&record{kindZero, 1, 2, 3, 4}).encode(p)
	f.Add(p)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < recordSize {
			return
		}
		var r, again record
		r.decode(b)
		checkRecord(t, &r)
		p := make([]byte, recordSize)
		r.encode(p)
		if again.decode(p); again != r {
			t.Errorf("%+v came back as %+v", r, again)
		}
	})
}

// checkRecord demands that a record that counts as valid stays within the store and the layer.
func checkRecord(t *testing.T, r *record) {
	t.Helper()
	const slots, blocks = 1000, 500
	if !r.valid(slots, blocks) {
		return
	}
	switch r.Kind {
	case kindData:
		if r.Slot >= slots || r.Block >= blocks {
			t.Errorf("accepted %+v", r)
		}
	case kindZero:
		if r.Slot == 0 || r.Block+r.Slot > blocks || r.Block+r.Slot < r.Block {
			t.Errorf("accepted %+v", r)
		}
	}
}

// FuzzMap opens and reads a map of one directory page and one segment of four blocks, whatever they hold.
func FuzzMap(f *testing.F) {
	page, blocks := mapExample(f)
	f.Add(page[mapHeaderSize:128], blocks[mapHeaderSize:256])
	f.Fuzz(func(t *testing.T, page, content []byte) {
		image := make([]byte, 8<<blockShift)
		copy(image[mapHeaderSize:blockSize], page)
		h := mapHeader{Magic: dirMagic, UUID: testUUID, Map: 3}
		h.encode(image)
		for i := range uint32(4) {
			p := image[(i+1)<<blockShift:][:blockSize]
			content = content[copy(p[mapHeaderSize:], content):]
			h = mapHeader{segmentMagic, testUUID, 3, i, 5, mapPayload}
			h.encode(p)
		}
		s := &Store{disk: imageDisk{image}, sb: superblock{UUID: testUUID, Slots: 1000}, pager: newPager()}
		m, err := s.openMap(&mapEntry{3, []dirEntry{{0, 0, le.Uint32(image[logSumField:])}}, []segmentEntry{{5, 9, []extent{{1, 4}}}}}, 3000)
		known(t, err)
		if err != nil {
			return
		}
		err = s.eachRegion(m, func(region uint64, records []record) error {
			for i := range records {
				if !records[i].valid(1000, 3000) || records[i].Block>>regionShift != region {
					t.Errorf("accepted %+v in region %d", records[i], region)
				}
			}
			return nil
		})
		known(t, err)
		r := segmentReader{s: s, m: m, seg: m.store.segments[0]}
		for {
			_, rec, err := r.next()
			known(t, err)
			if err != nil || rec.b == nil {
				break
			}
		}
	})
}

// mapExample returns a directory page and a segment of four blocks.
func mapExample(tb testing.TB) (page, blocks []byte) {
	tb.Helper()
	disk := imageDisk{make([]byte, 8<<blockShift)}
	s := &Store{disk: writableImage{disk}, sb: superblock{UUID: testUUID, Slots: 8}, pager: newPager(), slots: newSlotAllocator(8)}
	m := newSectorMap(s.pager, 3, 3000)
	for b := range uint64(900) {
		m.set(b, dataMapping(b%8), uint32(b))
	}
	m.zero(1024, 1024, nothingFreed)
	m.zero(2048, 100, nothingFreed)
	if _, err := s.writeMap(m); err != nil {
		tb.Fatal(err)
	}
	return disk.b[3<<blockShift : 4<<blockShift], disk.b[:3<<blockShift]
}

// writableImage is an image that takes writes.
type writableImage struct{ imageDisk }

func (d writableImage) WriteAt(p []byte, off int64) (int, error) { return copy(d.b[off:], p), nil }
