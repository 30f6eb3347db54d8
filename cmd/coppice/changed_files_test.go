package main

import (
	"bytes"
	"context"
	"encoding/json"
	"hash/crc32"
	"io"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"coppice/idxshare"
	"coppice/node"
	"coppice/union"
)

// cutOf is the content of a leaf: an image, of which the blocks that another does not have are not the root's.
type cutOf struct {
	t           *testing.T
	root, image []byte
}

func (c cutOf) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(c.image).ReadAt(p, off)
}

func (c cutOf) ReadRanges(p []byte, ranges []node.ContentRange) error {
	for _, r := range ranges {
		p = p[copy(p, c.image[r.Off:r.Off+r.Len]):]
	}
	return nil
}

func (c cutOf) Size() int64              { return int64(len(c.image)) }
func (c cutOf) NextData(off int64) int64 { return off }
func (c cutOf) Pin() union.Pin           { return union.Pin{Kind: union.PinRaw, SizeBytes: int64(len(c.root))} }
func (c cutOf) Root() string             { return "root.img" }

func (c cutOf) Changed() iter.Seq2[union.ChangedExtent, error] {
	c.t.Error("extents are asked for, where prints tell more")
	return func(func(union.ChangedExtent, error) bool) {}
}

func (c cutOf) Prints() iter.Seq2[union.BlockPrint, error] {
	return func(yield func(union.BlockPrint, error) bool) {
		for at := 0; at < len(c.image); at += 4096 {
			b := c.image[at : at+4096]
			if bytes.Equal(b, c.root[at:at+4096]) {
				continue
			}
			if !yield(union.BlockPrint{Block: uint64(at / 4096), Print: 1<<32 | uint64(crc32.ChecksumIEEE(b))}, nil) {
				return
			}
		}
	}
}

func changedImage(t *testing.T, path string, commands ...string) []byte {
	t.Helper()
	if commands != nil {
		cmd := exec.Command("debugfs", "-w", "-f", "-", path)
		cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("debugfs: %v: %s", err, out)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// What changed is told, and the next time only what changed since is read; without what is kept, or with a part of it, all of it again.
func TestChangedFilesKeepsWhatItKnows(t *testing.T) {
	dir := t.TempDir()
	img, tree, ctx := filepath.Join(dir, "root.img"), filepath.Join(dir, "tree"), context.Background()
	for i := range 50 {
		path := filepath.Join(tree, "d", string(rune('a'+i%26)), string(rune('a'+i/26)))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, make([]byte, 3000), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-d", tree, img, "16M").CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	root := changedImage(t, img)
	index := filepath.Join(dir, "root.index")
	_, err := idxshare.Build(ctx, index, idxshare.BuildInput{Device: bytes.NewReader(root), Size: int64(len(root)), Source: "raw"}, idxshare.BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	base, err := idxshare.Open(index)
	if err != nil {
		t.Fatal(err)
	}
	defer base.Close()
	if err := sameRoot(cutOf{root: root}.Pin(), base.Header()); err != nil {
		t.Error(err)
	}
	if err := sameRoot(union.Pin{Kind: union.PinImage, SizeBytes: int64(len(root))}, base.Header()); node.HintOf(err) == "" {
		t.Errorf("an index of something else: %v", err)
	}

	cache := filepath.Join(dir, "cache")
	if err := os.Mkdir(cache, 0o700); err != nil {
		t.Fatal(err)
	}
	kept := newKeptDelta(cache, "leaf", "raw")
	update := func(image []byte) idxshare.DeltaReport {
		t.Helper()
		r, err := kept.update(ctx, base, cutOf{t, root, image})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	first := changedImage(t, img, "write "+index+" new", "rm d/a/a")
	all := update(first)
	if r := update(first); r.ReadBytes != 0 {
		t.Errorf("%d bytes are read, and nothing has changed", r.ReadBytes)
	}
	second := changedImage(t, img, "set_inode_field d/b/b uid 7")
	again := update(second)
	if again.ReadBytes == 0 || again.ReadBytes > all.ReadBytes || again.Kept == 0 {
		t.Errorf("read %+v, the first time %+v", again, all)
	}
	for _, path := range []string{kept.delta, kept.prints} {
		if err := os.Truncate(path, 5000); err != nil {
			t.Fatal(err)
		}
		if r := update(second); r.Kept != 0 || r.ReadBytes < again.ReadBytes {
			t.Errorf("without %s: %+v", path, r)
		}
	}
	left, err := filepath.Glob(cache + "/*")
	if hidden, _ := filepath.Glob(cache + "/.*"); err != nil || len(left) != 2 || len(hidden) > 0 {
		t.Errorf("kept: %q %q %v", left, hidden, err)
	}

	delta, err := idxshare.Open(kept.delta)
	if err != nil {
		t.Fatal(err)
	}
	defer delta.Close()
	view, err := idxshare.NewView(ctx, base, delta)
	if err != nil {
		t.Fatal(err)
	}
	var text, inJSON bytes.Buffer
	c := changedCmd{}
	if err := c.printFiles(&environment{ctx: ctx, out: &text, err: io.Discard}, view, changedFilesTotal{}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(text.String(), "\n")
	if len(lines) != 5 || !strings.HasPrefix(lines[0], "deleted  /d/a/a ") || lines[1] != "modified /d/b/b, attributes" || !strings.HasPrefix(lines[2], "added    /new ") ||
		!strings.HasPrefix(lines[3], "total: 3 changes;") {
		t.Errorf("%q", lines)
	}
	c.Output = "json"
	if err := c.printFiles(&environment{ctx: ctx, out: &inJSON, err: io.Discard}, view, changedFilesTotal{}); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Files []changedFile
		Total changedFilesTotal
	}
	if err := json.Unmarshal(inJSON.Bytes(), &got); err != nil || len(got.Files) != 3 || got.Total.Changes != 3 || got.Files[0].Kind != idxshare.Deleted || got.Files[0].OldSize != 3000 {
		t.Errorf("%v: %s", err, inJSON.Bytes())
	}
}

// What is kept of leaves is bounded: what was used longest ago goes first, and nothing else in the directory.
func TestPruneKept(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, size int64, age time.Duration) {
		t.Helper()
		path := filepath.Join(dir, name)
		f, err := os.Create(path)
		if err == nil {
			err = f.Truncate(size)
		}
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		if then := time.Now().Add(-age); os.Chtimes(path, then, then) != nil {
			t.Fatal("utimes")
		}
	}
	file("other", 4<<30, time.Hour)
	file("used.delta", 4<<30, 9*time.Hour)
	file("used.prints", 4<<30, 9*time.Hour)
	file("new.delta", 1<<30, time.Minute)
	file("old.delta", 1<<30, 2*time.Hour)
	file("older.delta", 1, 3*time.Hour)
	file(".prints-now", 1, time.Hour)
	file(".prints-left", 1, 25*time.Hour)
	if err := pruneKept(dir, filepath.Join(dir, "used.delta")); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(dir + "/*") // also those that begin with a dot
	for i := range left {
		left[i] = filepath.Base(left[i])
	}
	if want := []string{".prints-now", "new.delta", "old.delta", "other", "used.delta", "used.prints"}; err != nil || !slices.Equal(left, want) {
		t.Errorf("left %q, %v", left, err)
	}
}
