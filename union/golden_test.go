package union

import (
	"bytes"
	"compress/gzip"
	"flag"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"

	"coppice/ublk/ublktest"
)

// A golden file of a released version is never written again.
var writeGolden = flag.Bool("write-golden", false, "write testdata/format-v1 anew: only before version 1 is released")

const (
	goldenDir   = "testdata/format-v1"
	goldenSize  = 8 << 20
	goldenRoot  = 1<<20 + 100
	goldenStamp = 0x5eed0000
)

// goldenContent is what the device of layer "web1" in the example store holds in a block.
func goldenContent(block int) []byte {
	p := make([]byte, blockSize)
	stamp := func(n int) { fill(p, goldenStamp+uint64(n)) }
	switch {
	case block == 1: // written before and after the checkpoint
		stamp(101)
	case block < 3:
		stamp(block)
	case block == 5: // in part, over the root
		copy(p, goldenRootContent()[5<<blockShift:])
		fill(p[sector:3*sector], goldenStamp+5)
	case block >= 100 && block < 140 || block >= 1024 && block < 2000: // discarded, before the checkpoint and after it
	case block == 2000:
		stamp(2000)
	default:
		if off := block << blockShift; off < goldenRoot {
			copy(p, goldenRootContent()[off:])
		}
	}
	return p
}

func goldenRootContent() []byte {
	p := make([]byte, goldenRoot)
	for i := range p {
		p[i] = byte(i>>12) ^ byte(i)
	}
	return p
}

func goldenBase() *memBase { return &memBase{content: goldenRootContent()} }

// exampleStore makes a store with something of everything that the format has: two layers, one with a run of data and
// zeros, a sealed layer below it, and a log with records of each kind, left as the death of its process leaves it.
func exampleStore(t *testing.T) *rig {
	t.Helper()
	disk, err := ublktest.NewDisk("leaf", MinStoreBytes)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := formatDisk("leaf", disk, FormatOptions{UUID: testUUID}); err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, seed: 1, disk: disk, base: goldenBase(), run: runDir(t), size: goldenSize, queue: 1}
	r.open()
	must := func(_ int, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(block, stamp int) {
		t.Helper()
		p := make([]byte, blockSize)
		fill(p, goldenStamp+uint64(stamp))
		must(r.block.WriteAt(p, int64(block)<<blockShift))
	}
	fix := func(l *Layer, id byte, created int64) {
		l.entry.UUID, l.entry.Created = uuid.UUID{0: id, 15: id}, created
	}
	other, err := r.store.OpenLayer("db.backup", LayerOptions{Create: true, SizeBytes: 5<<20 + 512})
	if err != nil {
		t.Fatal(err)
	}
	other.Release()
	fix(other, 0xdb, 1600000000)
	for b := range 3 {
		write(b, b)
	}
	part := make([]byte, 2*sector)
	fill(part, goldenStamp+5)
	must(r.block.WriteAt(part, 5<<blockShift+sector))
	must(0, r.block.Discard(100<<blockShift, 40<<blockShift))
	must(0, r.block.Flush())
	freeze, err := r.layer.PrepareFreeze("base-1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := freeze.Seal(); err != nil {
		t.Fatal(err)
	}
	fix(r.store.layers["base-1"], 0xba, 1650000000)
	write(1, 100)
	write(1500, 1500)
	r.store.sb.BootID = otherUUID
	fix(r.layer, 0x3e, 1700000000)
	if err := r.checkpoint(); err != nil {
		t.Fatal(err)
	}
	write(1, 101)
	must(0, r.block.Discard(1024<<blockShift, 976<<blockShift)) // the last part of a region, and block 1500
	must(0, r.block.Flush())
	write(2000, 2000)
	must(0, r.block.Flush())
	r.abandon()
	r.reboot()
	return r
}

func TestWriteGolden(t *testing.T) {
	if !*writeGolden {
		return
	}
	r := exampleStore(t)
	var img, dump bytes.Buffer
	z, err := gzip.NewWriterLevel(&img, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(r.disk.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := dumpDisk(&dump, "leaf", r.disk); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(goldenDir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"store.img.gz": img.Bytes(), "dump.txt": dump.Bytes()} {
		if err := os.WriteFile(filepath.Join(goldenDir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func goldenImage(t *testing.T) []byte {
	t.Helper()
	f, err := os.Open(filepath.Join(goldenDir, "store.img.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestGoldenStore opens a store that the first release of version 1 wrote, and dumps it.
func TestGoldenStore(t *testing.T) {
	image := goldenImage(t)
	disk, err := ublktest.NewDisk("leaf", int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	copy(disk.Bytes(), image)
	disk.Settle()

	var dump bytes.Buffer
	if err := Dump(&dump, disk.Path()); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(filepath.Join(goldenDir, "dump.txt"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(dump.Bytes(), want) {
		t.Errorf("dump differs from %s/dump.txt:\n%s", goldenDir, dump.Bytes())
	}
	rep, err := Check(disk.Path(), CheckOptions{})
	if err != nil || len(rep.Problems) != 0 {
		t.Errorf("check: %+v %v", rep, err)
	}

	r := &rig{t: t, seed: 1, disk: disk, base: goldenBase(), run: runDir(t), size: goldenSize, queue: 1}
	r.open()
	for life := range 2 {
		if got := r.store.UUID(); got != testUUID {
			t.Errorf("UUID %s", got)
		}
		var names []string
		for _, l := range r.store.Info().Layers {
			names = append(names, l.Name+" of "+l.Parent)
		}
		if len(names) != 3 || names[0] != "base-1 of " || names[1] != "db.backup of " || names[2] != "web1 of base-1" {
			t.Errorf("layers %q", names)
		}
		if info := r.layer.Info(); info.UUID != "3e000000-0000-0000-0000-00000000003e" || info.Created.Unix() != 1700000000 {
			t.Errorf("layer %+v", info)
		}
		p := make([]byte, blockSize)
		for b := range goldenSize >> blockShift {
			if _, err := r.block.ReadAt(p, int64(b)<<blockShift); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(p, goldenContent(b)) {
				t.Fatalf("life %d: block %d differs", life, b)
			}
		}
		r.close()
		r.check()
		if life == 0 {
			r.open()
		}
	}
	disk.Close()
}
