//go:build vm && long

package idxshare

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"coppice/idxshare/indextest"
)

// formats are ways to make a file system in which files lie differently.
var formats = map[string][]string{
	"defaults": {"-t", "ext4"},
	"all":      {"-t", "ext4", "-O", "inline_data,metadata_csum,64bit,flex_bg,large_dir,orphan_file,ea_inode,metadata_csum_seed", "-g", "8192"},
	"small":    {"-t", "ext4", "-b", "1024", "-I", "256"},
	"ext3":     {"-t", "ext3", "-I", "128"},
}

// newRoot makes a file system with some files, and an index of it.
func newRoot(t *testing.T, dir string, options []string) (image, index string) {
	t.Helper()
	image, index = filepath.Join(dir, "root.img"), filepath.Join(dir, "root.index")
	f, err := os.Create(image)
	mustDo(t, err)
	mustDo(t, f.Truncate(48<<20))
	f.Close()
	args := append([]string{"-q", "-F", "-N", "4096"}, options...)
	out, err := exec.Command("mke2fs", append(args, image)...).CombinedOutput()
	if err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	l, err := indextest.NewLoop(image, dir)
	mustDo(t, err)
	for d := range 6 {
		path := fmt.Sprintf("%s/d%d", l.Mount, d)
		mustDo(t, os.Mkdir(path, 0o755))
		for i := range 30 {
			mustDo(t, os.WriteFile(fmt.Sprintf("%s/f%d", path, i), make([]byte, i*700), 0o644))
		}
	}
	mustDo(t, os.Link(l.Mount+"/d0/f3", l.Mount+"/d1/link"))
	mustDo(t, os.Symlink("d0/f3", l.Mount+"/symlink"))
	mustDo(t, l.Close())
	indexWhole(t, image, index, "root", true)
	return image, index
}

// TestDeltaOfMounted needs root and loop devices, and no other device: go test -tags vm,long -run TestDeltaOfMounted ./idxshare. It changes the files of mounted file systems at random, in two rounds; after each, base and delta are the index of all that is there, and that is what is seen in the mount.
func TestDeltaOfMounted(t *testing.T) {
	for name, options := range formats {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			image, index := newRoot(t, dir, options)
			rapid.Check(t, func(rt *rapid.T) { mutateAndCompare(rt, image, index) })
		})
	}
}

func mutateAndCompare(rt *rapid.T, image, index string) {
	dir, err := os.MkdirTemp(filepath.Dir(image), "leaf-")
	mustDo(rt, err)
	defer os.RemoveAll(dir)
	leaf := filepath.Join(dir, "leaf.img")
	mustDo(rt, copyFile(image, leaf))
	l, err := indextest.NewLoop(leaf, dir)
	mustDo(rt, err)
	defer l.Close()
	tree, err := indextest.NewTree(l.Mount)
	mustDo(rt, err)
	defer tree.Close()
	base, err := Open(index)
	mustDo(rt, err)
	defer base.Close()

	before, previous := image, (*Index)(nil)
	for round := range 2 {
		tree.Mutate(rt, 25)
		cut := filepath.Join(dir, fmt.Sprintf("cut%d.img", round))
		records, err := l.Cut(cut, rapid.IntRange(0, 3).Draw(rt, "crash") > 0)
		mustDo(rt, err)
		path := filepath.Join(dir, fmt.Sprintf("delta%d", round))
		delta := makeDelta(rt, path, base, previous, before, cut)
		defer delta.Close()
		view, err := NewView(context.Background(), base, delta)
		mustDo(rt, err)
		compareWithRecords(rt, view, records)
		whole := filepath.Join(dir, fmt.Sprintf("whole%d", round))
		indexWhole(rt, cut, whole, "whole", false)
		compareWithIndex(rt, view, whole)
		before, previous = cut, delta
	}
}

func copyFile(from, to string) error { return exec.Command("cp", "--sparse=always", from, to).Run() }

// compareWithRecords demands that what is known by paths is what was seen in a mount.
func compareWithRecords(t tester, v *View, records map[string]indextest.Record) {
	t.Helper()
	k := allOf(t, v)
	files := map[uint64]*File{}
	for i := range k.files {
		files[k.files[i].Inode] = &k.files[i]
	}
	children := map[uint64][]Name{}
	for _, n := range k.names {
		children[n.Parent] = append(children[n.Parent], n)
	}
	seen := 0
	var compare func(inode uint64, at string)
	compare = func(inode uint64, at string) {
		f := files[inode]
		r, ok := records[at]
		if f == nil || !ok {
			t.Fatalf("%q: inode %d, known %v, in the mount %v", at, inode, f != nil, ok)
		}
		seen++
		got := indextest.Record{Inode: f.Inode, Mode: f.Mode, UID: f.UID, GID: f.GID, Links: f.Links, Rdev: f.Rdev, Size: f.Size, Blocks: f.Blocks,
			Atime: f.Atime, Mtime: f.Mtime, Ctime: f.Ctime, Target: string(f.Target)}
		if got != r {
			t.Fatalf("%q is known as\n%+v, and in the mount is\n%+v", at, got, r)
		}
		for _, n := range children[inode] {
			compare(n.Inode, path.Join(at, string(n.Name)))
		}
	}
	compare(2, "/")
	if seen != len(records) {
		t.Fatalf("%d files are known, %d are in the mount", seen, len(records))
	}
}
