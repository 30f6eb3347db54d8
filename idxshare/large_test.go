package idxshare

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"coppice/idxshare/indextest"
)

var manyFiles = flag.Int("files", 3000, "how many files are in the file system that is compared with the tree that it was made of")

// largeMemory bounds what an index of a million files takes while it is made, in bytes of the heap.
const largeMemory = 512 << 20

// TestIdxOfManyFiles compares the index of a file system with many files, path by path, with the tree that mke2fs made it of, and the digests of all files that have content.
func TestIdxOfManyFiles(t *testing.T) {
	dir := t.TempDir()
	tree, image := filepath.Join(dir, "tree"), filepath.Join(dir, "image")
	manyFilesTree(t, tree, *manyFiles)
	size := fmt.Sprintf("%dM", 64+*manyFiles/200)
	if out, err := exec.Command("/usr/sbin/mke2fs", "-q", "-t", "ext4", "-N", fmt.Sprint(*manyFiles*21/20+1000), "-d", tree, image, size).CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v\n%s", err, out)
	}
	device, bytes := openImage(t, image)
	defer device.Close()
	for _, digests := range []bool{false, true} {
		path := filepath.Join(dir, "index")
		highest := heapWhile(func() {
			began := time.Now()
			report, err := Build(t.Context(), path, BuildInput{Device: device, Size: bytes, Source: "many"}, BuildOptions{Digests: digests})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("digests %v: %d files and %d names in %.1f s", digests, report.Files, report.Names, time.Since(began).Seconds())
		})
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		each := float64(compressedSize(t, path)) / float64(*manyFiles)
		t.Logf("%d MiB of heap at most, %.1f bytes a file, %.1f compressed", highest>>20, float64(st.Size())/float64(*manyFiles), each)
		if highest > largeMemory || each > 120 && *manyFiles > 100_000 {
			t.Errorf("%d MiB of heap, %.1f bytes a file", highest>>20, each)
		}
		compareMany(t, openTest(t, path), tree, digests)
	}
}

// heapWhile returns the most bytes of the heap that are in use while do runs, beyond what was before.
func heapWhile(do func()) int64 {
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	stop, most := make(chan struct{}), make(chan uint64)
	go func() {
		highest := uint64(0)
		for {
			var now runtime.MemStats
			runtime.ReadMemStats(&now)
			highest = max(highest, now.HeapInuse)
			select {
			case <-stop:
				most <- highest
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	func() {
		defer close(stop)
		do()
	}()
	return int64(<-most) - int64(before.HeapInuse)
}

// manyFilesTree makes directories in directories with some hundred files each, most of them empty, and some links.
func manyFilesTree(t *testing.T, tree string, files int) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	rng := rand.New(rand.NewPCG(11, 0))
	must(os.Mkdir(tree, 0o755))
	dirs := []string{tree}
	dir := tree
	for n := range files {
		if n%200 == 0 {
			dir = filepath.Join(dirs[rng.IntN(len(dirs))], fmt.Sprintf("directory %d", n))
			must(os.Mkdir(dir, 0o755))
			dirs = append(dirs, dir)
			continue
		}
		name := filepath.Join(dir, fmt.Sprintf("%x-%s%d", rng.Uint32(), hostileNames[rng.IntN(4)], n))
		switch rng.IntN(20) {
		case 0:
			must(os.Symlink(fmt.Sprintf("../target %d", n), name))
		case 1:
			must(os.WriteFile(name, bytes.Repeat(binary.BigEndian.AppendUint64(nil, rng.Uint64()), 1+rng.IntN(900)), 0o640))
		case 2:
			must(os.WriteFile(name, nil, 0o604))
			must(os.Link(name, name+" again"))
		default:
			must(os.WriteFile(name, nil, 0o644))
		}
	}
}

// compareMany holds every path of an index against a tree.
func compareMany(t *testing.T, x *Index, tree string, digests bool) {
	t.Helper()
	want, err := indextest.Walk(tree)
	if err != nil {
		t.Fatal(err)
	}
	delete(want, "/")
	compared, bad := 0, 0
	err = x.View().Find(t.Context(), Query{}, func(m Match) error {
		path := string(m.Path)
		if path == "/lost+found" {
			return nil
		}
		w, ok := want[path]
		delete(want, path)
		f := m.File
		directory := ok && f.IsDirectory()
		same := ok && f.Mode == w.Mode && f.UID == w.UID && f.GID == w.GID && (directory || f.Size == w.Size && f.Links == w.Links) && f.Mtime/1e9 == w.Mtime/1e9 && string(f.Target) == w.Target
		if same && digests && f.Mode&ModeType == ModeRegular {
			content, err := os.ReadFile(tree + path)
			sum := sha256.Sum256(content)
			same = err == nil && bytes.Equal(f.Digest, sum[:])
		}
		if compared++; !same {
			if bad++; bad < 10 {
				t.Errorf("%q: %+v, want %+v", path, f, w)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(want) > 0 || compared < *manyFiles || bad > 0 {
		t.Errorf("%d paths, %d others, %d missing", compared, bad, len(want))
	}
}
