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
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
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

// stat is what both readers say of an inode, as text.
func stat(t testing.TB, fs *FS, i *Inode) string {
	t.Helper()
	types := map[uint32]string{
		ModeRegular: "regular", ModeDir: "directory", ModeSymlink: "symlink", ModeChar: "character special", ModeBlock: "block special", ModeFIFO: "FIFO", ModeSocket: "socket",
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %04o flags %#x generation %d user %d group %d size %d links %d blocks %d", types[i.Type()], i.Mode&0o7777, i.Flags, i.Generation, i.UID, i.GID, i.Size, i.Links, i.Blocks)
	for _, at := range []Time{i.Ctime, i.Atime, i.Mtime, i.Crtime} {
		if at != (Time{}) {
			fmt.Fprintf(&b, " %d.%09d", at.Sec, at.Nsec)
		}
	}
	var data, meta []string
	for _, e := range merge(extentsOf(t, fs, i)) {
		switch e.Kind {
		case ExtentData:
			data = append(data, fmt.Sprintf("%d+%d@%d %v", e.Logical, e.Length, e.Physical, e.Unwritten))
		case ExtentTree:
			meta = append(meta, fmt.Sprint(e.Physical))
		case ExtentXattr:
			fmt.Fprintf(&b, " acl %d", e.Physical)
		}
	}
	slices.Sort(meta)
	fmt.Fprintf(&b, " data %q map %q", data, meta)
	return b.String()
}

// merge puts adjoining extents together, as debugfs prints them.
func merge(extents []Extent) []Extent {
	var merged []Extent
	for _, e := range extents {
		if n := len(merged) - 1; n >= 0 && e.Kind == ExtentData && merged[n].Kind == ExtentData && merged[n].Unwritten == e.Unwritten &&
			merged[n].Logical+merged[n].Length == e.Logical && merged[n].Physical+merged[n].Length == e.Physical {
			merged[n].Length += e.Length
			continue
		}
		merged = append(merged, e)
	}
	return merged
}

var (
	statHead  = regexp.MustCompile(`(?s)^Inode: \d+ +Type: (.*?) +Mode: +(\d+) +Flags: (0x[0-9a-f]+)\nGeneration: (\d+).*?\nUser: +(-?\d+) +Group: +(-?\d+).*?Size: (\d+)\nFile ACL: (\d+).*?\nLinks: (\d+) +Blockcount: (\d+)\n`)
	statTime  = regexp.MustCompile(`(?m)^ ?(ctime|atime|mtime|crtime): 0x([0-9a-f]+)(?::([0-9a-f]+))? --`)
	statRange = regexp.MustCompile(`\((?:(ETB\d+|D?IND|TIND)|(\d+)(\[u\])?(?:-(\d+)(\[u\])?)?)\):(\d+)`)
)

// parseStat turns debugfs' description of an inode into the text of stat.
func parseStat(t testing.TB, text string) string {
	t.Helper()
	head := statHead.FindStringSubmatch(text)
	if head == nil {
		t.Fatalf("debugfs says %q", text)
	}
	flags, err := strconv.ParseUint(head[3], 0, 32)
	if err != nil {
		t.Fatal(err)
	}
	mode, err := strconv.ParseUint(head[2], 8, 16)
	if err != nil {
		t.Fatal(err)
	}
	owner, err := strconv.Atoi(head[5])
	if err != nil {
		t.Fatal(err)
	}
	group, err := strconv.Atoi(head[6])
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %04o flags %#x generation %s user %d group %d size %s links %s blocks %s", head[1], mode, flags, head[4], uint32(owner), uint32(group), head[7], head[9], head[10])
	for _, name := range []string{"ctime", "atime", "mtime", "crtime"} {
		for _, m := range statTime.FindAllStringSubmatch(text, -1) {
			if m[1] != name {
				continue
			}
			low, err := strconv.ParseUint(m[2], 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			at := time.Unix(int64(int32(low)), 0)
			if m[3] != "" {
				extra, err := strconv.ParseUint(m[3], 16, 32)
				if err != nil {
					t.Fatal(err)
				}
				at = time.Unix(int64(int32(low))+int64(extra&3)<<32, int64(extra>>2))
			}
			fmt.Fprintf(&b, " %d.%09d", at.Unix(), at.Nanosecond())
		}
	}
	if head[8] != "0" {
		fmt.Fprintf(&b, " acl %s", head[8])
	}
	_, blocks, found := strings.Cut(text, "\nEXTENTS:\n")
	if !found {
		_, blocks, _ = strings.Cut(text, "\nBLOCKS:\n")
	}
	var extents []Extent
	var data, meta []string
	for _, m := range statRange.FindAllStringSubmatch(blocks, -1) {
		number := func(n int) int64 {
			v, err := strconv.ParseInt(m[n], 10, 64)
			if err != nil {
				t.Fatalf("debugfs says %q", m[0])
			}
			return v
		}
		if m[1] != "" {
			meta = append(meta, m[6])
			continue
		}
		e := Extent{Logical: number(2), Physical: number(6), Length: 1, Unwritten: m[3] != "" || m[5] != ""}
		if m[4] != "" {
			e.Length = number(4) - e.Logical + 1
		}
		extents = append(extents, e)
	}
	for _, e := range merge(extents) {
		data = append(data, fmt.Sprintf("%d+%d@%d %v", e.Logical, e.Length, e.Physical, e.Unwritten))
	}
	slices.Sort(meta)
	fmt.Fprintf(&b, " data %q map %q", data, meta)
	return b.String()
}

// compareDebugfs holds every inode against what debugfs says of it: fields, times, extents.
func compareDebugfs(t testing.TB, fs *FS, image string, inodes []*Inode) {
	t.Helper()
	var commands strings.Builder
	for _, i := range inodes {
		fmt.Fprintf(&commands, "stat <%d>\n", i.Number)
	}
	blocks := strings.Split(debugfs(t, image, false, commands.String()), "debugfs: stat ")[1:]
	if len(blocks) != len(inodes) {
		t.Fatalf("debugfs describes %d inodes of %d", len(blocks), len(inodes))
	}
	for n, i := range inodes {
		_, text, _ := strings.Cut(blocks[n], "\n")
		if i.Crtime == (Time{}) {
			text = regexp.MustCompile(`(?m)^crtime:.*\n`).ReplaceAllString(text, "")
		}
		if got, want := stat(t, fs, i), parseStat(t, text); got != want {
			t.Errorf("inode %d:\n got %s\nwant %s", i.Number, got, want)
		}
		again, err := fs.Inode(t.Context(), i.Number)
		if err != nil {
			t.Fatal(err)
		}
		if stat(t, fs, again) != stat(t, fs, i) {
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
