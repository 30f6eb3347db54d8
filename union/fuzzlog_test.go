package union

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"

	"coppice/ublk/ublktest"
)

// fuzzStore returns the image of a small store with a sealed layer, a layer that stands on it, and another one.
func fuzzStore(tb testing.TB) []byte {
	tb.Helper()
	geometry := layoutOf(128, 8, superBBlock+1, 0)
	disk, err := ublktest.NewDisk("leaf", int64(geometry.SizeBlocks)<<blockShift)
	if err != nil {
		tb.Fatal(err)
	}
	defer disk.Close()
	if _, err := formatDisk("leaf", keepOpen{disk}, FormatOptions{Force: true, UUID: testUUID, geometry: &geometry}); err != nil {
		tb.Fatal(err)
	}
	s, err := openOn("leaf", keepOpen{disk}, StoreOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	for _, name := range []string{"web1", "web2"} {
		l, err := s.OpenLayer(name, LayerOptions{Create: true, SizeBytes: 3000 << blockShift})
		if err != nil {
			tb.Fatal(err)
		}
		if name == "web1" {
			f, err := l.PrepareFreeze("base")
			if err == nil {
				_, err = f.Seal()
			}
			if err != nil {
				tb.Fatal(err)
			}
		}
		l.Release()
	}
	if err := s.Close(); err != nil {
		tb.Fatal(err)
	}
	return bytes.Clone(disk.Bytes())
}

// fuzzRecords are the records of a block that seals web1 again, merges it, writes and discards.
func fuzzRecords() []byte {
	id := uuid.UUID{7}
	text := append(append([]byte(nil), id[:]...), "again"...)
	b := make([]byte, 6*recordSize)
	for i, r := range []record{
		{kindData, 1, 5, 60, 1}, {kindZero, 1, 900, 600, 0}, {kindSeal, 1, 9, 1700000000, uint32(len(text))},
	} {
		r.encode(b[i*recordSize:])
	}
	encodeText(b[3*recordSize:], 1, text)
	r := record{Kind: kindMerge, Layer: 1, Block: 9}
	r.encode(b[4*recordSize:])
	r = record{kindData, 3, 2999, 61, 2}
	r.encode(b[5*recordSize:])
	return b
}

// openFuzzed opens the image read-only and goes through all that it maps: an error is one that callers know.
func openFuzzed(t *testing.T, image []byte, o StoreOptions) {
	t.Helper()
	o.ReadOnly = true
	limit(t, 32<<20, func() {
		s, err := openOn("leaf", imageDisk{image}, o)
		if err == nil {
			_, err = s.summary()
		}
		known(t, err)
	})
}

// FuzzReplay opens a store whose log holds the given records in a block that a flush covered, and in one that none did.
func FuzzReplay(f *testing.F) {
	image := fuzzStore(f)
	var sb superblock
	if err := sb.decode(image[:blockSize], 0); err != nil {
		f.Fatal(err)
	}
	s := &Store{sb: sb}
	f.Add(fuzzRecords(), fuzzRecords()[:2*recordSize])
	f.Fuzz(func(t *testing.T, covered, last []byte) {
		image := bytes.Clone(image)
		for i, records := range [][]byte{covered, last} {
			h := logHeader{UUID: testUUID, Seq: sb.LogStart + uint64(i), Durable: sb.LogStart + uint64(i) - 1}
			h.Count = min(len(records)/recordSize, recordsPerLog)
			p := make([]byte, blockSize)
			copy(p[logHeaderSize:], records[:h.Count*recordSize])
			h.encode(p)
			sealLogBlock(p)
			for _, first := range [...]uint64{sb.LogA, sb.LogB} {
				copy(image[s.logOffset(first, h.Seq):], p)
			}
		}
		openFuzzed(t, image, StoreOptions{})
	})
}

// FuzzPending opens a store beside a ring of pending records that holds anything: its header, and a block without a checksum.
func FuzzPending(f *testing.F) {
	image := fuzzStore(f)
	var sb superblock
	if err := sb.decode(image[:blockSize], 0); err != nil {
		f.Fatal(err)
	}
	boot := uuid.UUID{1}
	header := append(append(append([]byte(nil), pendingMagic[:]...), boot[:]...), testUUID[:]...)
	block := make([]byte, logHeaderSize, blockSize)
	h := logHeader{UUID: testUUID, Seq: sb.LogStart, Durable: sb.LogStart - 1, Count: 6}
	h.encode(block)
	f.Add(header, append(block, fuzzRecords()...))
	dir := runDir(f)
	path := pendingPath(dir, testUUID)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, head, block []byte) {
		ring := make([]byte, sb.pendingBytes())
		copy(ring[:blockSize], header)
		copy(ring[:blockSize], head)
		at := blockSize + sb.LogStart%sb.LogBlocks<<blockShift
		copy(ring[at:][:blockSize], block)
		if err := os.WriteFile(path, ring, 0o600); err != nil {
			t.Fatal(err)
		}
		openFuzzed(t, image, StoreOptions{RunDir: dir, boot: boot})
	})
}

// FuzzBitmapPage takes pages of the bitmap of slots over, in the middle of a store and at its end.
func FuzzBitmapPage(f *testing.F) {
	const slots = 2*blockSize*8 + 100
	f.Add([]byte{0xff, 1}, uint8(0))
	f.Add([]byte{1}, uint8(2))
	f.Fuzz(func(t *testing.T, b []byte, index uint8) {
		p := blockOf(b)
		a := newSlotAllocator(slots)
		if !a.decodePage(int(index%3), p) {
			return
		}
		first := uint64(index%3) * blockSize * 8
		for i := range uint64(blockSize * 8) {
			bit := p[i/8]&(1<<(i%8)) != 0
			if first+i >= slots {
				if bit {
					t.Fatalf("slot %d of %d was taken for one of the store", first+i, slots)
				}
				continue
			}
			if a.isOwned(first+i) != bit {
				t.Fatalf("slot %d: owned %v, want %v", first+i, a.isOwned(first+i), bit)
			}
		}
	})
}
