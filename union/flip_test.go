package union

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
)

// imageDisk is a store in a byte slice, for reading.
type imageDisk struct{ b []byte }

func (d imageDisk) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= int64(len(d.b)) {
		return 0, io.EOF
	}
	n := copy(p, d.b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
func (imageDisk) WriteAt([]byte, int64) (int, error) { return 0, errors.New("written to") }
func (imageDisk) Sync() error                        { return errors.New("synced") }
func (d imageDisk) Size() int64                      { return int64(len(d.b)) }
func (imageDisk) File() *os.File                     { return nil }
func (imageDisk) Close() error                       { return nil }

// summary is everything that a store maps, as text: two stores with the same have the same content.
func (s *Store) summary() (string, error) {
	var b bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(s.layers)) {
		l := s.layers[name]
		e := l.entry
		fmt.Fprintf(&b, "%d %s %v %d %d %v %d %v\n", e.Number, name, e.UUID, e.SizeBytes, e.Created, e.Pin, e.Parent, e.Sealed)
		for _, m := range [...]*sectorMap{l.m, l.flat} {
			if m == nil {
				continue
			}
			err := s.eachRegion(m, func(_ uint64, records []record) error {
				for _, x := range records {
					fmt.Fprintln(&b, x)
				}
				return nil
			})
			if err != nil {
				return "", err
			}
		}
	}
	for slot := range s.sb.Slots {
		if s.slots.isOwned(slot) {
			fmt.Fprintln(&b, "owned", slot)
		}
	}
	return b.String(), nil
}

func summaryOf(b []byte) (string, error) {
	s, err := openOn("leaf", imageDisk{b}, StoreOptions{ReadOnly: true})
	if err != nil {
		return "", err
	}
	return s.summary()
}

// structures returns the places of all live blocks of the image that are not data, with their kind.
func structures(t *testing.T, image []byte) map[int64]string {
	t.Helper()
	s, err := openOn("leaf", imageDisk{image}, StoreOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	at := map[int64]string{0: "superblock A", superBBlock << blockShift: "superblock B"}
	for _, e := range s.catalogSlots {
		at[s.sb.slotOffset(e.Slot)] = "catalog"
	}
	for name, l := range s.layers {
		for _, m := range [...]*sectorMap{l.m, l.flat} {
			if m == nil {
				continue
			}
			e := m.entry()
			for _, p := range e.Pages {
				at[s.sb.slotOffset(p.Slot)] = "directory of " + name
			}
			for _, seg := range e.Segments {
				for _, x := range seg.Extents {
					for i := range uint64(x.Count) {
						at[s.sb.slotOffset(x.Slot+i)] = "segment of " + name
					}
				}
			}
		}
	}
	for _, p := range s.slots.bitmapEntries() {
		if p.Slot != noSlot {
			at[s.sb.slotOffset(p.Slot)] = "bitmap"
		}
	}
	for seq := s.sb.LogStart; seq < s.sb.LogStart+uint64(s.recovery.LogBlocks); seq++ {
		at[s.logOffset(s.sb.LogA, seq)] = fmt.Sprintf("log A %d", seq)
		at[s.logOffset(s.sb.LogB, seq)] = fmt.Sprintf("log B %d", seq)
	}
	return at
}

// mirrored tells whether another block has the same.
func mirrored(kind string) bool { return kind[:3] == "log" || kind[:5] == "super" }

// wantSame demands an error, or exactly the content that the undamaged image has; the latter where there is another copy.
func wantSame(t *testing.T, image []byte, want, kind, what string) {
	t.Helper()
	got, err := summaryOf(image)
	switch {
	case err != nil && (mirrored(kind) || !errors.Is(err, ErrCorrupt)):
		t.Errorf("%s of %s: %v", what, kind, err)
	case err == nil && got != want:
		t.Errorf("%s of %s: opened with other content", what, kind)
	case err == nil && !mirrored(kind):
		t.Errorf("%s of %s: not noticed", what, kind)
	}
}

// TestEachByteFlipped damages a store a byte at a time. Each block's checksum notices each of its bytes, and opening the store
// with some of them damaged gives an error or what was there before.
func TestEachByteFlipped(t *testing.T) {
	image := goldenImage(t)
	want, err := summaryOf(image)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 14))
	step := 128
	if testing.Short() {
		step = 1500
	}
	opened := 0
	for off, kind := range structures(t, image) {
		p := image[off:][:blockSize]
		field := logSumField
		if kind[:5] == "super" {
			field = superSumField
		}
		for i := range blockSize {
			old := p[i]
			p[i] ^= byte(1 + rng.IntN(255))
			if blockChecksum(p, field) == le.Uint32(p[field:]) {
				t.Fatalf("byte %d of %s is not covered by the checksum", i, kind)
			}
			if i%step == int(off>>blockShift)%step || i < 48 && i%6 == 0 {
				wantSame(t, image, want, kind, fmt.Sprintf("byte %d", i))
				opened++
			}
			p[i] = old
		}
		if t.Failed() {
			return
		}
	}
	if got, err := summaryOf(image); err != nil || got != want {
		t.Errorf("the image is not as it was: %v", err)
	}
	t.Logf("%d damaged stores opened", opened)
}

// TestBlocksLostOrMisplaced replaces each block of the store's structures by zeros, by garbage and by each other one, as
// lost and misdirected writes do.
func TestBlocksLostOrMisplaced(t *testing.T) {
	image := goldenImage(t)
	want, err := summaryOf(image)
	if err != nil {
		t.Fatal(err)
	}
	at := structures(t, image)
	garbage := make([]byte, blockSize)
	fill(garbage, 77)
	for off, kind := range at {
		p := image[off:][:blockSize]
		old := bytes.Clone(p)
		others := map[string][]byte{"zeros in place": make([]byte, blockSize), "garbage in place": garbage}
		for from, other := range at {
			if from != off && !bytes.Equal(image[from:][:blockSize], old) {
				others[other+" in place"] = bytes.Clone(image[from:][:blockSize])
			}
		}
		for what, by := range others {
			copy(p, by)
			wantSame(t, image, want, kind, what)
			copy(p, old)
		}
		if t.Failed() {
			return
		}
	}
}

// TestLogDamagedInBothCopies damages a block of the log that a flush covered in both copies: the store is refused, because what
// was durable is gone. The last block that was written may be lost: it cannot be told from one that never was.
func TestLogDamagedInBothCopies(t *testing.T) {
	image := goldenImage(t)
	s, err := openOn("leaf", imageDisk{image}, StoreOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	last := s.sb.LogStart + uint64(s.recovery.LogBlocks) - 1
	for seq := s.sb.LogStart; seq <= last; seq++ {
		b := bytes.Clone(image)
		for _, first := range []uint64{s.sb.LogA, s.sb.LogB} {
			b[s.logOffset(first, seq)+100] ^= 1
		}
		_, err := summaryOf(b)
		if seq < last {
			wantError(t, err, ErrCorrupt, fmt.Sprintf("block %d is missing in both copies", seq))
		} else if err != nil {
			t.Errorf("last block: %v", err)
		}
	}
}

// directories is what the maps of the layers that a catalog of one block names take for the sizes of their devices.
func directories(image []byte, at map[int64]string) (n uint64) {
	for off, kind := range at {
		p := image[off:][:blockSize]
		if kind != "catalog" {
			continue
		}
		_, layers, err := decodeCatalog(p[catalogHeaderSize:][:min(int(le.Uint16(p[36:])), catalogPayload)], ^uint64(0))
		if err == nil {
			for _, l := range layers {
				n += uint64(l.SizeBytes) >> (blockShift + regionShift) / dirWords * 8
			}
		}
	}
	return n
}

// TestHostileStructures changes fields of structures and makes their checksums right again: whatever the store then is
// taken for, opening it ends, without a panic and without absurd use of memory.
func TestHostileStructures(t *testing.T) {
	image := goldenImage(t)
	at := structures(t, image)
	offs := slices.Sorted(maps.Keys(at))
	const seed = 1
	rng := rand.New(rand.NewPCG(seed, 15))
	rounds := 600
	if testing.Short() {
		rounds = 60
	}
	accepted := 0
	for round := range rounds {
		b := bytes.Clone(image)
		for range 1 + rng.IntN(3) {
			off := offs[rng.IntN(len(offs))]
			p := b[off:][:blockSize]
			width := []int{1, 2, 4, 8}[rng.IntN(4)]
			i := rng.IntN(64+rng.IntN(400)) &^ (width - 1)
			v := []uint64{0, 1, ^uint64(0), 1 << 63, 1 << 40, 1<<32 - 1, rng.Uint64(), le.Uint64(p[i:]) + 1, le.Uint64(p[i:]) - 1}[rng.IntN(9)]
			copy(p[i:i+width], le.AppendUint64(nil, v))
			field := logSumField
			if at[off][:5] == "super" {
				field = superSumField
			}
			le.PutUint32(p[field:], blockChecksum(p, field))
			if mirrored(at[off]) && rng.IntN(2) == 0 { // in both copies
				for other, kind := range at {
					if kind[:3] == at[off][:3] && kind[5:] == at[off][5:] || kind[:5] == "super" && at[off][:5] == "super" {
						copy(b[other:][:blockSize], p)
					}
				}
			}
		}
		limit(t, 64<<20+directories(b, at), func() {
			_, err := summaryOf(b)
			if err == nil {
				accepted++
			}
			if err != nil && !errors.Is(err, ErrTooSmall) {
				known(t, err)
			}
		})
		if t.Failed() {
			t.Fatalf("seed %d, round %d", seed, round)
		}
	}
	t.Logf("%d of %d accepted", accepted, rounds)
}

// TestEachByteOfDataFlipped damages the data of the layers of a store a byte at a time: reading the block is an error each time.
func TestEachByteOfDataFlipped(t *testing.T) {
	image := goldenImage(t)
	s, err := openOn("leaf", imageDisk{image}, StoreOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	c, blocks := newChunk(), 0
	p := alignedBuffer(blockSize)
	for _, l := range s.inOrder() {
		base := goldenBase()
		if l.entry.Pin.Kind == PinNone {
			continue
		}
		reader := s.newReader()
		for block := range uint64(goldenSize >> blockShift) {
			if int64(block)<<blockShift >= l.SizeBytes() {
				break
			}
			off := int64(block) << blockShift
			var m [1]mapping
			var sum [1]uint32
			if err := l.resolve(block, m[:], sum[:]); err != nil {
				t.Fatal(err)
			}
			if !m[0].isData() {
				continue
			}
			blocks++
			at := s.sb.slotOffset(m[0].slot())
			for i := range int64(blockSize) {
				image[at+i] ^= byte(1 + i%255)
				if err := l.readBlocks(reader, base, p, off, c, nil); !errors.Is(err, ErrCorrupt) {
					t.Fatalf("byte %d of block %d of layer %q: %v, want %v", i, block, l.Name(), err, ErrCorrupt)
				}
				image[at+i] ^= byte(1 + i%255)
			}
			if err := l.readBlocks(reader, base, p, off, c, nil); err != nil {
				t.Fatal(err)
			}
		}
		reader.close()
	}
	if blocks < 5 {
		t.Errorf("only %d blocks of data in the golden store", blocks)
	}
}
