package idxshare

import (
	"bytes"
	"cmp"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"coppice/idxshare/ext4"
	"coppice/idxshare/indextest"
)

var foreignImages = flag.String("foreign", "", "a directory with images of ext2, ext3 and ext4 that others made, below it, compressed or not: the sources of e2fsprogs have hundreds in tests/")

// Bounds for one image of somebody else, and what is read of it.
const (
	foreignTime   = 30 * time.Second
	foreignMemory = 192 << 20
	foreignRounds = 2 // of e2fsck, which finds more once it has repaired some
)

// TestIdxForeignImages indexes images that nobody here made, most of them damaged on purpose. Whatever it is, indexing ends soon, with an index or an error that says what is wrong. What e2fsck finds
// clean, and what it repaired, is as debugfs tells it, inode by inode and name by name. Without -foreign, it looks at the images of testdata.
func TestIdxForeignImages(t *testing.T) {
	dir := *foreignImages
	if dir == "" {
		dir = filepath.Join("ext4", "testdata")
	}
	counts := map[string]int{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || !strings.HasPrefix(d.Name(), "image") && !strings.Contains(d.Name(), ".img") {
			return err
		}
		image := filepath.Join(t.TempDir(), "image")
		ok, err := unpackImage(path, image)
		if err != nil || !ok {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		t.Run(filepath.ToSlash(name), func(t *testing.T) {
			counts["images"]++
			foreignImage(t, image, counts)
		})
		return os.Remove(image)
	})
	if err != nil {
		t.Fatal(err)
	}
	if counts["images"] < 10 || counts["compared as they are"]+counts["compared once repaired"] < 8 {
		t.Errorf("%s has too few images: %v", dir, counts)
	}
	t.Logf("%v", counts)
}

// unpackImage writes what a file of images holds, with holes where there are zeros; false: it is none.
func unpackImage(path, image string) (bool, error) {
	file, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer file.Close()
	var r io.Reader
	switch filepath.Ext(path) {
	case ".gz":
		r, err = gzip.NewReader(file)
	case ".bz2":
		r = bzip2.NewReader(file)
	case ".zst":
		z, failed := zstd.NewReader(file)
		if failed == nil {
			defer z.Close()
		}
		r, err = z, failed
	case ".img", "":
		r = file
	default:
		return false, nil
	}
	if err != nil || strings.Contains(path, ".tar.") {
		return false, err
	}
	to, err := os.Create(image)
	if err != nil {
		return false, err
	}
	defer to.Close()
	b, zeros, size := make([]byte, 64<<10), make([]byte, 64<<10), int64(0)
	for {
		n, err := io.ReadFull(r, b)
		if !bytes.Equal(b[:n], zeros[:n]) {
			if _, err := to.WriteAt(b[:n], size); err != nil {
				return false, err
			}
		}
		size += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return true, to.Truncate(size)
		}
		if err != nil {
			return false, fmt.Errorf("%s: %w", path, err)
		}
	}
}

// foreignImage looks at one image as it is, and then at what e2fsck makes of it.
func foreignImage(t *testing.T, image string, counts map[string]int) {
	as, err := foreignBuild(t, image)
	switch {
	case err == nil && len(as.volumes) > 0:
		counts["indexed as they are"]++
	case err == nil:
		counts["of no ext2, ext3 or ext4"]++
	default:
		counts["refused as they are"]++
		if !errors.Is(err, ext4.ErrCorrupt) && !errors.Is(err, ErrPartitions) {
			t.Errorf("an error of no kind: %v", err)
		}
	}
	copied := filepath.Join(t.TempDir(), "copy")
	copyImage(t, image, copied)
	if isClean(t, image) {
		counts["clean"]++
		if err != nil {
			t.Fatalf("e2fsck finds it clean: %v", err)
		}
	}
	// With its journal replayed by e2fsck, it is what is read without that.
	if err == nil && len(as.volumes) > 0 {
		if said := e2fsck(t, copied, "-y", "-E", "journal_only"); !strings.Contains(said, "orphaned inode") && isClean(t, copied) {
			counts["compared as they are"]++
			compareForeign(t, as, copied)
			return
		}
	}
	copyImage(t, image, copied)
	for range foreignRounds {
		e2fsck(t, copied, "-fy")
		if !isClean(t, copied) {
			continue
		}
		w, err := foreignBuild(t, copied)
		if refusedByDebugfs(t, copied, err) {
			counts["not repaired, as debugfs finds"]++
			return
		}
		if err != nil {
			t.Fatalf("repaired by e2fsck: %v", err)
		}
		if len(w.volumes) == 0 {
			t.Fatal("e2fsck repaired it, and the index has nothing")
		}
		counts["compared once repaired"]++
		compareForeign(t, w, copied)
		return
	}
	counts["beyond repair"]++
}

// isClean tells whether e2fsck finds nothing at all. What it exits with does not say that: it is content with wrong checksums and with a backup of the superblock.
func isClean(t testing.TB, image string) bool {
	t.Helper()
	said := e2fsck(t, image, "-fn")
	return strings.HasSuffix(said, "\nexit status 0") && !strings.Contains(said, "? no") && !strings.Contains(said, "trying backup") && !strings.Contains(said, "skipping journal recovery")
}

// refusedByDebugfs tells whether a directory that cannot be read is one that debugfs does not read either: e2fsck overlooks one whose inode its bitmap of inodes has not.
func refusedByDebugfs(t testing.TB, image string, err error) bool {
	t.Helper()
	var corrupt *ext4.CorruptError
	if !errors.As(err, &corrupt) || corrupt.What != "directory" {
		return false
	}
	out, _ := exec.Command("/usr/sbin/debugfs", "-R", "ls <"+strings.TrimPrefix(corrupt.Where, "inode ")+">", image).CombinedOutput()
	return bytes.Contains(out, []byte("corrupted"))
}

// e2fsck returns what it says, and what it exits with. It has no end where it writes tables into a file that it may not write.
func e2fsck(t testing.TB, image string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/usr/sbin/e2fsck", append(args, image)...)
	out, err := cmd.CombinedOutput()
	if err == nil {
		return string(out) + "\nexit status 0"
	}
	return string(out) + "\n" + err.Error()
}

func copyImage(t testing.TB, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "--sparse=always", from, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
}

// foreignBuild indexes an image within bounds, contents included.
func foreignBuild(t *testing.T, image string) (*world, error) {
	t.Helper()
	file, size := openImage(t, image)
	defer file.Close()
	path := filepath.Join(t.TempDir(), "index")
	var report BuildReport
	var err error
	began := time.Now()
	highest := heapWhile(func() {
		report, err = Build(t.Context(), path, BuildInput{Device: file, Size: size, Source: "foreign"}, BuildOptions{Digests: true})
	})
	if highest > foreignMemory {
		t.Errorf("indexing takes %d MiB", highest>>20)
	}
	took := time.Since(began)
	if took > foreignTime {
		t.Errorf("indexing takes %v", took)
	}
	if err != nil {
		return nil, err
	}
	for _, l := range report.LeftOut {
		t.Logf("left out: %s: %s", l.Type, l.Why)
	}
	x := openTest(t, path)
	return read(t, x), nil
}

// compareForeign holds an index against what debugfs tells of the same file system.
func compareForeign(t *testing.T, w *world, image string) {
	t.Helper()
	var numbers, directories []uint32
	for _, f := range w.files {
		numbers = append(numbers, uint32(f.Inode))
		if f.IsDirectory() {
			directories = append(directories, uint32(f.Inode))
		}
	}
	described, err := indextest.Describe(image, numbers)
	if err != nil {
		t.Fatal(err)
	}
	extents := map[uint64][]Extent{}
	for _, e := range w.extents {
		extents[e.Inode] = append(extents[e.Inode], e)
	}
	bad, encrypted := 0, map[uint32]bool{}
	for n, f := range w.files {
		encrypted[uint32(f.Inode)] = described[n].Flags&ext4.FlagEncrypt != 0
		got, want := describedFile(&f, extents[f.Inode]), described[n]
		want.Flags = 0
		if want.Type != "regular" && want.Type != "directory" && want.Type != "symlink" {
			want.Data, want.Map = nil, nil // what debugfs makes of bytes that mean nothing there
		}
		if f.Crtime == 0 {
			want.Crtime = ""
		}
		if f.IsDirectory() || f.Mode&ModeType == ModeRegular && len(want.Map) == 0 && f.Blocks == want.Blocks+(f.Size+511)/512 {
			got.Blocks = want.Blocks // of content in the inode, beside what its attributes have
		}
		if !reflect.DeepEqual(got, want) {
			if bad++; bad < 10 {
				t.Errorf("inode %d:\n got %+v\nwant %+v", f.Inode, got, want)
			}
		}
	}
	lists, err := indextest.List(image, directories)
	if err != nil {
		t.Fatal(err)
	}
	names := map[uint64][]indextest.Entry{}
	modes := map[uint64]uint32{}
	for _, f := range w.files {
		modes[f.Inode] = f.Mode
	}
	for _, n := range w.names {
		names[n.Parent] = append(names[n.Parent], indextest.Entry{Name: string(n.Name), Inode: uint32(n.Inode), Mode: modes[n.Inode]})
	}
	total := 0
	for n, d := range directories {
		got, want := names[uint64(d)], lists[n]
		total += len(got)
		if encrypted[d] {
			got = decrypted(t, got)
			slices.SortFunc(want, func(a, b indextest.Entry) int { return cmp.Compare(a.Inode, b.Inode) })
		}
		for i := range min(len(got), len(want)) {
			if _, ok := modes[uint64(got[i].Inode)]; !ok && isInternal(t, image, got[i].Inode) {
				want[i].Mode = 0
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("directory %d:\n got %+v\nwant %+v", d, got, want)
		}
	}
	if total != len(w.names) {
		t.Errorf("%d names, %d of them in directories", len(w.names), total)
	}
}

// decrypted returns names of an encrypted directory as debugfs shows them: as they are stored, up to a zero byte, in order of inodes.
func decrypted(t *testing.T, entries []indextest.Entry) []indextest.Entry {
	t.Helper()
	entries = slices.Clone(entries)
	for n := range entries {
		stored, err := base64.RawURLEncoding.DecodeString(entries[n].Name)
		if err != nil {
			t.Fatal(err)
		}
		stored, _, _ = bytes.Cut(stored, []byte{0})
		entries[n].Name = string(stored)
	}
	slices.SortFunc(entries, func(a, b indextest.Entry) int { return cmp.Compare(a.Inode, b.Inode) })
	return entries
}

// isInternal tells whether an inode is the value of an extended attribute, which is none of the index's files, although e2fsck gives it a name when nothing leads to it.
func isInternal(t *testing.T, image string, inode uint32) bool {
	t.Helper()
	d, err := indextest.Describe(image, []uint32{inode})
	if err != nil {
		t.Fatal(err)
	}
	return d[0].Flags&ext4.FlagEAInode != 0
}

// describedFile tells of a file of the index what debugfs tells; flags it has none.
func describedFile(f *File, extents []Extent) indextest.Described {
	types := map[uint32]string{ModeRegular: "regular", ModeDirectory: "directory", ModeSymlink: "symlink", ModeCharacter: "character special", ModeBlock: "block special", ModeFIFO: "FIFO", ModeSocket: "socket"}
	moment := func(ns int64) string {
		at := time.Unix(0, ns)
		return indextest.Moment(at.Unix(), uint32(at.Nanosecond()))
	}
	d := indextest.Described{Type: types[f.Mode&ModeType], Mode: f.Mode & 0o7777, Generation: f.Generation, UID: f.UID, GID: f.GID, Size: f.Size, Links: f.Links, Blocks: f.Blocks,
		Ctime: moment(f.Ctime), Atime: moment(f.Atime), Mtime: moment(f.Mtime)}
	if f.Crtime != 0 {
		d.Crtime = moment(f.Crtime)
	}
	slices.SortFunc(extents, func(a, b Extent) int {
		return cmp.Or(cmp.Compare(a.Logical, b.Logical), cmp.Compare(a.Physical, b.Physical))
	})
	for _, e := range extents {
		switch e.Kind {
		case ExtentTree:
			for n := range e.Length {
				d.Map = append(d.Map, e.Physical+n)
			}
		case ExtentXattr:
			d.Xattr = e.Physical
		default:
			d.Data = append(d.Data, indextest.Run{Logical: e.Logical, Physical: e.Physical, Length: e.Length, Unwritten: e.Unwritten})
		}
	}
	d.Data = indextest.Join(d.Data)
	slices.Sort(d.Map)
	return d
}
