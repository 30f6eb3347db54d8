package disk

import (
	"bytes"
	"compress/gzip"
	"flag"
	"io"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"
)

// A golden file of a released version is never written again.
var writeGolden = flag.Bool("write-golden", false, "write testdata/format-v1 anew: only before version 1 is released")

const (
	goldenFile   = "testdata/format-v1/cache.img.gz"
	goldenChunks = 20
)

// example is a cache with chunks of all classes that fit, some of which were evicted, and some rejected.
func example(t *testing.T) memory {
	t.Helper()
	dev := make(memory, smallGeometry().Blocks<<blockShift)
	d := openTest(t, dev, quiet())
	for n := range goldenChunks {
		d.Put(testChunk(n))
		has(t, d, n/2)
		if n%7 == 0 {
			c, _ := testChunk(n)
			d.Reject(c)
		}
	}
	if err := d.writeIndex(); err != nil {
		t.Fatal(err)
	}
	return dev
}

// Caches of version 1 are read, whatever later versions write, and this one writes version 1 to the byte.
func TestGolden(t *testing.T) {
	want := example(t)
	if *writeGolden {
		writeGoldenFile(t, want)
	}
	f, err := os.Open(goldenFile)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	golden, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(golden, want) {
		t.Error("what is written is not what version 1 was")
	}
	d := openTest(t, memory(golden), quiet())
	if n := hits(t, d, goldenChunks); n != 15 {
		t.Errorf("%d chunks, there were 15", n)
	}
	if s := d.Stats(); s.BadSlots != 0 || d.g.UUID != testUUID {
		t.Errorf("%+v of cache %s", s, d.g.UUID)
	}
}

func writeGoldenFile(t *testing.T, content []byte) {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(goldenFile), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(goldenFile, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Every byte of header and index is damaged, some in every bit: there is never a wrong byte, nor an error.
func TestFlipsOfStructures(t *testing.T) {
	dev := example(t)
	g := smallGeometry()
	sound := append([]byte(nil), dev[:g.DataBlock<<blockShift]...)
	for at := range sound {
		block, in := at>>blockShift, at&(blockSize-1)
		if block > headerABlock && block < headerBBlock || in >= 256 && in%64 != 0 {
			continue // nothing lies there, or, behind the entries in use, zeros
		}
		if testing.Short() && at%5 != 0 {
			continue
		}
		for bit := range 8 {
			if bit != at%8 && at%16 != 0 {
				continue
			}
			dev[at] ^= 1 << bit
			d := openTest(t, dev, quiet())
			n := hits(t, d, goldenChunks)
			if block <= headerBBlock && n != 15 || n < 15-g.slotsOf(minClass) || d.g.UUID != testUUID {
				t.Fatalf("byte %d: %d chunks are left", at, n)
			}
			if block <= headerBBlock && !bytes.Equal(dev[:len(sound)], sound) {
				t.Fatalf("byte %d: the header was not mended", at)
			}
			dev[at] = sound[at]
		}
	}
}

// Damage anywhere in a slot is a miss of its chunk, and of no other.
func TestFlipsOfContent(t *testing.T) {
	dev := example(t)
	d := openTest(t, dev, quiet())
	lost := 0
	for at := int(d.g.DataBlock) << blockShift; at < len(dev); at += 509 {
		dev[at] ^= 0x10
		bad := d.Stats().BadSlots
		found := hits(t, d, goldenChunks)
		dev[at] ^= 0x10
		switch n := int(d.Stats().BadSlots - bad); {
		case n > 1 || found+n != 15:
			t.Fatalf("byte %d: %d bad slots, %d chunks", at, n, found)
		case n == 1:
			lost++
			d = openTest(t, dev, quiet())
		}
	}
	if lost < 15 {
		t.Errorf("%d slots were hit", lost)
	}
}

// Both headers gone: the cache is made anew where it is known to have been one.
func TestHeadersLost(t *testing.T) {
	for name, damage := range map[string]func(p []byte){
		"checksums": func(p []byte) { p[headerSumField]++ },
		"version":   func(p []byte) { p[8]++; sealHeader(p) },
		"geometry":  func(p []byte) { p[45]++; sealHeader(p) },
		"segments":  func(p []byte) { p[47] = 0xff; sealHeader(p) },
		"buckets":   func(p []byte) { p[67] = 0x80; sealHeader(p) },
	} {
		t.Run(name, func(t *testing.T) {
			dev := example(t)
			for _, block := range headerBlocks {
				damage(dev[block<<blockShift:][:blockSize])
			}
			o := quiet()
			o.uuid[0]++
			d := openTest(t, dev, o)
			if n := hits(t, d, goldenChunks); n != 0 || d.g.UUID == testUUID {
				t.Errorf("%d chunks of a cache without headers", n)
			}
		})
	}
}

func sealHeader(p []byte) { le.PutUint32(p[headerSumField:], blockChecksum(p, headerSumField)) }

// FuzzOpen puts anything in place of parts of a cache, with right checksums, and reads all chunks.
func FuzzOpen(f *testing.F) {
	f.Add(uint32(0), []byte{1}, false)
	f.Add(uint32(40), []byte{0, 8, 0, 0, 0xff, 0xff, 0xff}, true)
	f.Add(uint32(indexBlock<<blockShift+30), []byte{20}, true)
	f.Add(uint32(indexBlock<<blockShift+indexHeaderSize), bytes.Repeat([]byte{0xff}, 64), true)
	f.Fuzz(func(t *testing.T, at uint32, junk []byte, seal bool) {
		dev := example(t)
		at %= uint32(len(dev))
		copy(dev[at:], junk)
		if block := dev[at&^(blockSize-1):][:blockSize]; seal && at>>blockShift <= headerBBlock {
			sealHeader(block)
			copy(dev[headerBBlock<<blockShift:], block)
		} else if seal && at>>blockShift < uint32(smallGeometry().DataBlock) {
			sealIndexBlock(block)
		}
		o := quiet()
		o.Overwrite = true
		d := openTest(t, dev, o)
		hits(t, d, goldenChunks)
		checkTable(t, d.table)
		putAll(d, goldenChunks)
		checkTable(t, d.table)
	})
}

// FuzzIndexBlock reads anything as an index block: the table stays whole.
func FuzzIndexBlock(f *testing.F) {
	p := make([]byte, blockSize)
	h := indexHeader{UUID: testUUID, Class: 13}
	h.encode(p)
	diskEntry{0, 1, 2, metaUsed | 4095}.encode(p[indexHeaderSize:])
	f.Add(p)
	f.Fuzz(func(t *testing.T, p []byte) {
		p = append(p, make([]byte, max(0, blockSize-len(p)))...)[:blockSize]
		g := smallGeometry()
		g.UUID = testUUID
		copy(p[:4], indexMagic[:])
		copy(p[8:], g.UUID[:])
		sealIndexBlock(p)
		tb := newTable(g, 100)
		tb.load(p, 0, 0)
		checkTable(t, tb)
	})
}

// Whatever the size, nothing overlaps, little is left over, and what is written is read.
func TestLayout(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(MinBytes, 20<<40).Draw(t, "size")
		g := layout(size)
		g.UUID = testUUID
		p := make([]byte, blockSize)
		g.encode(p)
		var back geometry
		if err := back.decode(p); err != nil || back != g {
			t.Fatalf("%v: %+v, was %+v", err, back, g)
		}
		if g.slotsOf(maxClass) < 1 || g.Segments < 12 {
			t.Fatalf("%d segments of %d blocks", g.Segments, g.SegmentBlocks)
		}
		data := int64(g.Segments) * int64(g.SegmentBlocks) << blockShift
		lastSegment := int(g.Segments) - 1
		if end := g.slotOffset(lastSegment, minClass, g.slotsOf(minClass)-1) + blockSize; end > size || data < min(size, 8<<40)*9/10 {
			t.Fatalf("data of %d bytes up to byte %d, of %d", data, end, size)
		}
		if g.indexOffset(lastSegment, g.parts()-1)+blockSize > g.slotOffset(0, minClass, 0) {
			t.Fatal("index and data overlap")
		}
	})
}
