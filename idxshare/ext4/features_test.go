package ext4

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"coppice/idxshare/indextest"
)

// Each kind of file system reads as debugfs reads it, inode for inode, and its tree is the one that it was made from.
func TestKindsOfFileSystem(t *testing.T) {
	t.Parallel()
	tree := t.TempDir()
	makeTree(t, tree, 300)
	// At most two at once: a machine with two processors does no more, and the images are files in memory on many.
	slots := make(chan struct{}, 2)
	for _, k := range kinds {
		if testing.Short() && k.long {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			slots <- struct{}{}
			defer func() { <-slots }()
			image := makeImage(t, k, tree)
			fs := openImage(t, image)
			inodes := scanAll(t, fs)
			compareDebugfs(t, fs, image, inodes)
			compareTree(t, fs, tree)
			comparePlaces(t, fs, inodes)
		})
	}
}

func scanAll(t testing.TB, fs *FS) []*Inode {
	t.Helper()
	var inodes []*Inode
	if err := fs.Scan(t.Context(), func(i *Inode) error { inodes = append(inodes, i); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(inodes) < 2 {
		t.Fatalf("a scan finds %d inodes", len(inodes))
	}
	return inodes
}

func extentsOf(t testing.TB, fs *FS, i *Inode) []Extent {
	t.Helper()
	var extents []Extent
	if err := fs.Extents(t.Context(), i, func(e Extent) error { extents = append(extents, e); return nil }); err != nil {
		t.Fatalf("extents of inode %d: %v", i.Number, err)
	}
	return extents
}

// describe tells of an inode what debugfs tells.
func describe(t testing.TB, fs *FS, i *Inode) indextest.Described {
	t.Helper()
	types := map[uint32]string{
		ModeRegular: "regular", ModeDir: "directory", ModeSymlink: "symlink", ModeChar: "character special", ModeBlock: "block special", ModeFIFO: "FIFO", ModeSocket: "socket",
	}
	d := indextest.Described{
		Type: types[i.Type()], Mode: i.Mode & 0o7777, Flags: uint64(i.Flags), Generation: i.Generation, UID: i.UID, GID: i.GID, Size: i.Size, Links: i.Links, Blocks: i.Blocks,
		Ctime: indextest.Moment(i.Ctime.Sec, i.Ctime.Nsec), Atime: indextest.Moment(i.Atime.Sec, i.Atime.Nsec), Mtime: indextest.Moment(i.Mtime.Sec, i.Mtime.Nsec),
	}
	if i.Crtime != (Time{}) {
		d.Crtime = indextest.Moment(i.Crtime.Sec, i.Crtime.Nsec)
	}
	for _, e := range extentsOf(t, fs, i) {
		switch e.Kind {
		case ExtentData:
			d.Data = append(d.Data, indextest.Run{Logical: e.Logical, Physical: e.Physical, Length: e.Length, Unwritten: e.Unwritten})
		case ExtentTree:
			d.Map = append(d.Map, e.Physical)
		case ExtentXattr:
			d.Xattr = e.Physical
		}
	}
	d.Data = indextest.Join(d.Data)
	slices.Sort(d.Map)
	return d
}

// compareDebugfs holds every inode against what debugfs says of it: fields, times, extents.
func compareDebugfs(t testing.TB, fs *FS, image string, inodes []*Inode) {
	t.Helper()
	numbers := make([]uint32, len(inodes))
	for n, i := range inodes {
		numbers[n] = i.Number
	}
	described, err := indextest.Describe(image, numbers)
	if err != nil {
		t.Fatal(err)
	}
	for n, i := range inodes {
		got, want := describe(t, fs, i), described[n]
		if i.Crtime == (Time{}) {
			want.Crtime = ""
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("inode %d:\n got %+v\nwant %+v", i.Number, got, want)
		}
		again, err := fs.Inode(t.Context(), i.Number)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(describe(t, fs, again), got) {
			t.Errorf("inode %d reads otherwise alone than in a scan", i.Number)
		}
	}
	// And no inode in use is missed: the counts of dumpe2fs agree.
	header := tool(t, nil, "dumpe2fs", "-h", image)
	number := func(field string) int {
		m := regexp.MustCompile(`(?m)^` + field + `: +(\d+)`).FindStringSubmatch(header)
		if m == nil {
			t.Fatalf("dumpe2fs has no %s:\n%s", field, header)
		}
		n, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	reserved := number("First inode") - 1
	used := 0
	for _, i := range inodes {
		if int(i.Number) > reserved {
			used++
		}
	}
	if want := number("Inode count") - number("Free inodes") - reserved; used != want {
		t.Errorf("a scan finds %d inodes that are not reserved, dumpe2fs counts %d", used, want)
	}
	features := regexp.MustCompile(`(?m)^Filesystem features: +(.*)`).FindStringSubmatch(header)[1]
	want, got := strings.Fields(features), fs.Info().Features
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("features %q, dumpe2fs says %q", got, want)
	}
}

// entry is a name as the tests compare it.
type entry struct {
	inode *Inode
	path  string
}

// walk reads the whole tree by its names, without lost+found.
func walk(t testing.TB, fs *FS) []entry {
	t.Helper()
	var entries []entry
	seen := map[uint32]bool{}
	var visit func(path string, number uint32)
	visit = func(path string, number uint32) {
		dir, err := fs.Inode(t.Context(), number)
		if err != nil {
			t.Fatal(err)
		}
		if seen[number] {
			t.Fatalf("directory %q, inode %d, is met twice", path, number)
		}
		seen[number] = true
		var dirs []entry
		err = fs.ReadDir(t.Context(), dir, func(d DirEntry) error {
			child := path + "/" + string(d.Name)
			if child == "/lost+found" {
				return nil
			}
			i, err := fs.Inode(t.Context(), d.Inode)
			if err != nil {
				return err
			}
			if d.Type != 0 && d.Type != i.Type() {
				return fmt.Errorf("%q: the directory says type %#o, the inode %#o", child, d.Type, i.Type())
			}
			entries = append(entries, entry{inode: i, path: child})
			if i.Type() == ModeDir {
				dirs = append(dirs, entry{inode: i, path: child})
			}
			return nil
		})
		if err != nil {
			t.Fatalf("read directory %q: %v", path, err)
		}
		for _, d := range dirs {
			visit(d.path, d.inode.Number)
		}
	}
	visit("", rootInode)
	slices.SortFunc(entries, func(a, b entry) int { return cmp.Compare(a.path, b.path) })
	return entries
}

// compareTree holds names, contents and targets against the tree that the file system was made from.
func compareTree(t testing.TB, fs *FS, tree string) {
	t.Helper()
	want := map[string]iofs.FileInfo{}
	err := filepath.Walk(tree, func(path string, info iofs.FileInfo, err error) error {
		if path != tree {
			want[strings.TrimPrefix(path, tree)] = info
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	inodeOf := map[string]uint32{}
	for _, e := range walk(t, fs) {
		inodeOf[e.path] = e.inode.Number
		info, ok := want[e.path]
		if !ok {
			if e.inode.Type() != ModeChar && e.inode.Type() != ModeBlock {
				t.Errorf("%q is not in the tree", e.path)
			}
			continue
		}
		delete(want, e.path)
		original := filepath.Join(tree, e.path)
		switch e.inode.Type() {
		case ModeSymlink:
			target, err := os.Readlink(original)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := fs.Readlink(t.Context(), e.inode); err != nil || string(got) != target {
				t.Errorf("target of %q is %q (%v), want %q", e.path, got, err, target)
			}
		case ModeRegular:
			if e.inode.Size != info.Size() {
				t.Errorf("%q has %d bytes, want %d", e.path, e.inode.Size, info.Size())
			}
			if err := compareContent(t.Context(), fs, e.inode, original); err != nil {
				t.Errorf("%q: %v", e.path, err)
			}
		}
	}
	for path := range want {
		t.Errorf("%q is missing", path)
	}
	if inodeOf["/links/hard"] != inodeOf["/sizes/100"] || inodeOf["/hostile/hard too"] != inodeOf["/sizes/100"] {
		t.Error("hard links lead to different inodes")
	}
	compareFields(t, fs, inodeOf)
}

// compareFields looks at what afterAll set.
func compareFields(t testing.TB, fs *FS, inodeOf map[string]uint32) {
	t.Helper()
	get := func(path string) *Inode {
		i, err := fs.Inode(t.Context(), inodeOf[path])
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		return i
	}
	for path, rdev := range map[string]uint64{"/links/char": 5<<8 | 4 | 1<<20, "/links/block": 8<<8 | 1, "/links/oldchar": 1<<8 | 3} {
		if i := get(path); i.Rdev != rdev {
			t.Errorf("%s is device %#x, want %#x", path, i.Rdev, rdev)
		}
	}
	if i := get("/sizes/61"); i.UID != 70000 || i.GID != 4000000000 {
		t.Errorf("owner %d:%d", i.UID, i.GID)
	}
	wide := fs.super.inodeSize > goodOldInodeSize
	// debugfs takes years before 1970 for a day later than they are.
	if i := get("/sizes/60"); wide && (i.Crtime.Sec != 3786912000 || i.Mtime.Sec != -1893456000+86400) {
		t.Errorf("times of a file: made %d, changed %d", i.Crtime.Sec, i.Mtime.Sec)
	}
	xattrs := func(path string) map[string]string {
		all := map[string]string{}
		if err := fs.XAttrs(t.Context(), get(path), func(name string, value []byte) error { all[name] = string(value); return nil }); err != nil {
			t.Errorf("attributes of %s: %v", path, err)
		}
		return all
	}
	if got := xattrs("/sizes/100"); len(got) != 2 || got["user.short"] != "value" || got["security.selinux"] != "system_u:object_r:bin_t:s0" {
		t.Errorf("attributes %q", got)
	}
	if got := xattrs("/sizes/1025"); len(got) != 1 || got["trusted.long"] != strings.Repeat("v", 168) {
		t.Errorf("attributes %q", got)
	}
	if got := xattrs("/empty"); len(got) != 1 || got["user.of.directory"] != "x" {
		t.Errorf("attributes %q", got)
	}
}

// compareContent reads a file in pieces that do not meet its blocks.
func compareContent(ctx context.Context, fs *FS, i *Inode, original string) error {
	content, err := fs.Content(ctx, i)
	if err != nil {
		return err
	}
	file, err := os.Open(original)
	if err != nil {
		return err
	}
	defer file.Close()
	a, b := make([]byte, 1_000_003), make([]byte, 1_000_003)
	for offset := int64(0); ; {
		n, err := content.ReadAt(a, offset)
		m, wantErr := file.ReadAt(b, offset)
		if n != m || !errors.Is(err, wantErr) || !bytes.Equal(a[:n], b[:m]) {
			return fmt.Errorf("at byte %d: read %d, want %d, or they differ: %w", offset, n, m, errors.Join(err, wantErr))
		}
		if offset += int64(n); errors.Is(err, io.EOF) {
			return nil
		}
		if offset > 5<<20 && offset < 1<<30-1<<20 {
			offset = 1<<30 - 1<<20 // the hole
		}
	}
}

// comparePlaces holds Place against where inodes and their blocks were found.
func comparePlaces(t testing.TB, fs *FS, inodes []*Inode) {
	t.Helper()
	s := fs.super
	perBlock := s.blockSize / s.inodeSize
	for _, i := range inodes {
		g, index := (i.Number-1)/s.inodesPerGroup, (i.Number-1)%s.inodesPerGroup
		place := fs.Place(fs.groups[g].inodeTable + uint64(int(index)/perBlock))
		if place.Kind != PlaceInodeTable || place.Group != g || i.Number < place.FirstInode || i.Number >= place.FirstInode+place.Inodes {
			t.Errorf("the block of inode %d is said to be %v of group %d, inodes %d and %d more", i.Number, place.Kind, place.Group, place.FirstInode, place.Inodes)
		}
		if i.Number < s.firstIno && i.Number != rootInode && i.Number != s.journalIno {
			continue // the blocks kept for descriptors are an inode's, too
		}
		for _, e := range extentsOf(t, fs, i) {
			for n := range e.Length {
				if kind := fs.Place(uint64(e.Physical + n)).Kind; kind != PlaceOther {
					t.Fatalf("block %d of inode %d is said to be %v", e.Physical+n, i.Number, kind)
				}
			}
		}
	}
	if kind := fs.Place(s.superBlock()).Kind; kind != PlaceSuper {
		t.Errorf("the superblock is said to be %v", kind)
	}
	for n := range s.descBlocks() {
		if kind := fs.Place(s.descBlock(n)).Kind; kind != PlaceDescriptors {
			t.Errorf("block %d, of group descriptors, is said to be %v", s.descBlock(n), kind)
		}
	}
	for n, g := range fs.groups {
		if fs.Place(g.blockBitmap).Kind != PlaceBlockBitmap || fs.Place(g.inodeBitmap).Kind != PlaceInodeBitmap || fs.Place(g.inodeBitmap).Group != uint32(n) {
			t.Errorf("bitmaps of group %d are said to be something else", n)
		}
	}
}
