package tree

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// smallFS is the bytes of a file system with a bit of everything.
var smallFS = sync.OnceValue(func() []byte {
	dir, err := os.MkdirTemp("", "coppice")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	for i := range 60 {
		err = os.WriteFile(filepath.Join(dir, strings.Repeat("n", 100+i)), content(uint64(i), 50*i), 0o600)
		if err != nil {
			panic(err)
		}
	}
	_ = os.Mkdir(filepath.Join(dir, "d"), 0o755)
	_ = os.Symlink(strings.Repeat("t", 100), filepath.Join(dir, "d/long"))
	_ = os.Symlink("t", filepath.Join(dir, "d/short"))
	_ = unix.Setxattr(filepath.Join(dir, "d"), "user.a", bytes.Repeat([]byte("v"), 2000), 0)
	_ = unix.Setxattr(filepath.Join(dir, "d"), "user.b", []byte("v"), 0)
	tree, err := Directory(context.Background(), dir)
	if err != nil {
		panic(err)
	}
	f, err := Make(context.Background(), tree, Options{UUID: testUUID, SizeBytes: 16 << 20})
	if err != nil {
		panic(err)
	}
	defer f.Close()
	p := make([]byte, f.Size())
	if _, err := f.ReadAt(p, 0); err != nil {
		panic(err)
	}
	return p
})

// readTree reads all of a file system, as far as it goes.
func readTree(p []byte) error {
	tree, err := Open(context.Background(), bytes.NewReader(p), int64(len(p)))
	if err != nil {
		return err
	}
	for _, n := range tree.names {
		if !n.isRegular() || n.Size > 1<<30 {
			continue
		}
		r, err := tree.open(n.Node)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			return err
		}
	}
	return nil
}

// metadata returns where a file system has something in its superblock, groups, inodes and directories.
func metadata(t testing.TB, p []byte) []int {
	t.Helper()
	f, err := openExt4(bytes.NewReader(p), int64(len(p)))
	must(t, err)
	root, err := f.inode(rootInode)
	must(t, err)
	extents, err := f.extents(root)
	must(t, err)
	table := int(f.tables[0]) * blockSize
	regions := [][2]int{{superAt, superAt + 400}, {blockSize, blockSize + wideDesc}, {table + inodeBytes, table + 90*inodeBytes}}
	for _, e := range extents {
		regions = append(regions, [2]int{int(e.physical) * blockSize, int(e.physical+e.count) * blockSize})
	}
	var places []int
	for _, r := range regions {
		weight := max(1, 4000/(r[1]-r[0]))
		for at := r[0]; at < r[1]; at += 4 {
			if !isZero(p[at:][:4]) {
				places = append(places, slices.Repeat([]int{at}, weight)...)
			}
		}
	}
	return places
}

// Whatever a file system holds, reading it ends, with an error or without.
func TestDamagedFileSystems(t *testing.T) {
	whole := smallFS()
	if err := readTree(whole); err != nil {
		t.Fatal(err)
	}
	places := metadata(t, whole)
	rng := rand.New(rand.NewPCG(1, 1))
	p := bytes.Clone(whole)
	refused := 0
	for range 3000 {
		at := places[rng.IntN(len(places))]
		for range 1 + rng.IntN(3) {
			p[at+rng.IntN(4)] = byte(rng.Uint32())
		}
		began := time.Now()
		if readTree(p) != nil {
			refused++
		}
		if took := time.Since(began); took > 20*time.Second {
			t.Fatalf("reading takes %v", took)
		}
		copy(p[at:][:4], whole[at:])
	}
	if refused < 200 {
		t.Errorf("only %d of 3000 are refused", refused)
	}
}

// FuzzOpen changes some bytes of a file system.
func FuzzOpen(f *testing.F) {
	f.Add(uint32(superAt+0x18), []byte{3})
	f.Add(uint32(superAt+0x28), []byte{0, 0, 0, 1})
	f.Add(uint32(0), []byte("no file system"))
	f.Fuzz(func(_ *testing.T, at uint32, change []byte) {
		p := bytes.Clone(smallFS())
		copy(p[int(at)%len(p):], change)
		_ = readTree(p)
	})
}
