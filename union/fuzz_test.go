package union

import (
	"bytes"
	"errors"
	"reflect"
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
	f.Add(encodeCatalog(nil))
	f.Add(encodeCatalog(catalogExample()))
	f.Add([]byte{0xff, 0xff, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var layers []layerEntry
		var err error
		// Each layer takes 100 bytes of the string at least, and each extent 12.
		limit(t, uint64(len(b))*32+64<<10, func() { layers, err = decodeCatalog(b, 0x80) })
		known(t, err)
		if err != nil {
			return
		}
		if again := encodeCatalog(layers); !bytes.Equal(again, b) {
			t.Errorf("%x came back as %x", b, again)
		}
		for _, l := range layers {
			if ValidLayerName(l.Name) != nil || l.SizeBytes <= 0 {
				t.Errorf("accepted %+v", l)
			}
			for _, e := range l.Run {
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

// FuzzRunBlock loads a run of one block into a layer.
func FuzzRunBlock(f *testing.F) {
	p := make([]byte, blockSize)
	h := runHeader{UUID: testUUID, Layer: 3, Generation: 5, Count: 2}
	encodeRunEntry(p[runHeaderSize:], &record{Kind: kindData, Block: 1, Slot: 2, CRC: 3})
	encodeRunEntry(p[runHeaderSize+runEntrySize:], &record{Kind: kindZero, Block: 2, Slot: 5})
	h.encode(p)
	f.Add(p[:256])
	f.Fuzz(func(t *testing.T, b []byte) {
		p := blockOf(b)
		for range 2 {
			s := &Store{sb: superblock{UUID: testUUID, Slots: 1000}}
			l := newLayer(s, layerEntry{Number: 3, RunLayer: 3, RunGeneration: 5, SizeBytes: 3000 << blockShift})
			var after uint64
			n, err := s.loadRunBlock(l, p, 0, &after, 0)
			known(t, err)
			if err == nil && (n < 0 || n > entriesPerRun || after > 3000) {
				t.Errorf("%d entries up to block %d", n, after)
			}
			le.PutUint32(p, runMagic)
			copy(p[8:], testUUID[:])
			le.PutUint32(p[24:], 3)
			le.PutUint32(p[28:], 0)
			le.PutUint64(p[32:], 5)
			le.PutUint32(p[logSumField:], blockChecksum(p, logSumField))
		}
	})
}

// TestRunEntriesComeBack packs and reads entries with the extremes of each field.
func TestRunEntriesComeBack(t *testing.T) {
	p := make([]byte, runEntrySize)
	for _, v := range []uint64{0, 1, 255, 1 << 31, 1 << 32, maxBlock} {
		for _, kind := range []uint8{kindData, kindZero} {
			r := record{Kind: kind, Block: v, Slot: maxBlock - v, CRC: uint32(v*3 + 1)}
			encodeRunEntry(p, &r)
			var got record
			decodeRunEntry(p, &got)
			if !reflect.DeepEqual(got, r) {
				t.Errorf("%+v came back as %+v", r, got)
			}
		}
	}
}
