package idxshare

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"coppice/idxshare/ext4"
)

// makeFiles fills a directory with a few files of each kind that needs no privilege.
func makeFiles(t testing.TB, root string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(root, "dir/below"), 0o750))
	must(os.MkdirAll(filepath.Join(root, "many"), 0o755))
	for n := range 300 {
		must(os.WriteFile(filepath.Join(root, "many", fmt.Sprintf("name %04d", n)), []byte(fmt.Sprint(n)), 0o644))
	}
	for _, name := range []string{"new\nline", "\xff\xfe", strings.Repeat("m", 255), "empty"} {
		must(os.WriteFile(filepath.Join(root, "dir", name), []byte(name[1:]), 0o600))
	}
	must(os.WriteFile(filepath.Join(root, "dir/large"), bytes.Repeat([]byte("0123456789abcde\n"), 40_000), 0o644))
	must(os.Link(filepath.Join(root, "dir/large"), filepath.Join(root, "dir/below/hard")))
	must(os.Symlink("../dir/large", filepath.Join(root, "dir/below/link")))
	sparse, err := os.Create(filepath.Join(root, "sparse"))
	must(err)
	defer sparse.Close()
	for n := range 100 {
		_, err := sparse.WriteAt(bytes.Repeat([]byte{byte(n + 1)}, 4096), int64(n)*12288)
		must(err)
	}
}

// makeExt4 makes a file system of 24 MiB, and returns its bytes.
func makeExt4(t testing.TB, tree string, args ...string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ext4.img")
	args = append(append([]string{"-q", "-t", "ext4", "-L", "a label", "-d", tree}, args...), path, "24M")
	if out, err := exec.Command("/usr/sbin/mke2fs", args...).CombinedOutput(); err != nil {
		t.Fatalf("mke2fs %q: %v\n%s", args, err, out)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// buildTest makes the index of a device, and reads it back.
func buildTest(t testing.TB, device []byte, o BuildOptions) (BuildReport, *world) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "index")
	report, err := Build(t.Context(), path, BuildInput{Device: bytes.NewReader(device), Size: int64(len(device)), Source: "test"}, o)
	if err != nil {
		t.Fatal(err)
	}
	return report, read(t, openTest(t, path))
}

// The index of a file system is the tree that it was made from; with the blocks that are free, its extents are all blocks, each once.
func TestBuild(t *testing.T) {
	t.Parallel()
	tree := t.TempDir()
	makeFiles(t, tree)
	for _, args := range [][]string{{}, {"-b", "1024"}, {"-O", "inline_data"}, {"-b", "1024", "-O", "^resize_inode,meta_bg,^metadata_csum"}, {"-b", "2048", "-O", "^extent,^64bit,^flex_bg", "-I", "128"}} {
		t.Run(fmt.Sprint(args), func(t *testing.T) {
			t.Parallel()
			device := makeExt4(t, tree, args...)
			report, w := buildTest(t, device, BuildOptions{Digests: true})
			compareWithTree(t, w, 0, tree, true)
			if len(report.Volumes) != 1 || len(report.LeftOut) != 0 || report.Files != int64(len(w.files)) || report.Names != int64(len(w.names)) || report.NoDigest != 0 || !w.header.Digests {
				t.Errorf("report %+v, header %+v", report, w.header)
			}
			if v := w.volumes[0]; v.Length != int64(len(device)) || v.Label != "a label" || v.UUID == "" || v.Type != "ext4" && v.Type != "ext3" || !v.Mapped {
				t.Errorf("volume %+v", v)
			}
			compareBlocks(t, w, device)
		})
	}
}

// compareWithTree holds names, attributes, targets and digests against a directory.
func compareWithTree(t testing.TB, w *world, volume int, tree string, digests bool) {
	t.Helper()
	files := map[uint64]File{}
	for _, f := range w.files {
		if f.Volume == volume {
			files[f.Inode] = f
		}
	}
	children := map[uint64][]Name{}
	for _, n := range w.names {
		if n.Volume == volume {
			children[n.Parent] = append(children[n.Parent], n)
		}
	}
	paths := map[string]uint64{}
	var visit func(path string, inode uint64, depth int)
	visit = func(path string, inode uint64, depth int) {
		if depth > 10 {
			t.Fatalf("%q is deep", path)
		}
		for _, n := range children[inode] {
			if child := path + "/" + string(n.Name); child != "/lost+found" {
				paths[child] = n.Inode
				visit(child, n.Inode, depth+1)
			}
		}
	}
	visit("", 2, 0)
	err := filepath.WalkDir(tree, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || path == tree {
			return err
		}
		name := strings.TrimPrefix(path, tree)
		f, ok := files[paths[name]]
		delete(paths, name)
		if !ok {
			t.Errorf("%q is not in the index", name)
			return nil
		}
		return compareFile(&f, path, digests)
	})
	if err != nil {
		t.Error(err)
	}
	for path := range paths {
		t.Errorf("%q is in the index and not in the tree", path)
	}
}

func compareFile(f *File, path string, digests bool) error {
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		return err
	}
	links := f.Mode&ModeType != ModeDirectory && uint64(f.Links) != uint64(st.Nlink)
	size := f.Mode&ModeType != ModeDirectory && f.Size != st.Size
	if f.Mode != st.Mode || f.UID != st.Uid || f.GID != st.Gid || links || size || f.Mtime/1e9 != st.Mtim.Sec {
		return fmt.Errorf("%q: %+v, want %+v", path, f, st)
	}
	switch f.Mode & ModeType {
	case ModeSymlink:
		if target, err := os.Readlink(path); err != nil || string(f.Target) != target {
			return fmt.Errorf("%q leads to %q, want %q: %w", path, f.Target, target, err)
		}
	case ModeRegular:
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(content)
		if digests && !bytes.Equal(f.Digest, sum[:]) || !digests && f.Digest != nil {
			return fmt.Errorf("%q has digest %x, want %x", path, f.Digest, sum)
		}
	}
	return nil
}

func compareBlocks(t testing.TB, w *world, device []byte) {
	t.Helper()
	fs, err := ext4.Open(bytes.NewReader(device), int64(len(device)))
	if err != nil {
		t.Fatal(err)
	}
	info := fs.Info()
	owned := make([]int, info.Blocks)
	for _, e := range w.extents {
		for n := range e.Length {
			owned[e.Physical+n]++
		}
	}
	none := 0
	for block, count := range owned {
		if count > 1 {
			t.Errorf("block %d is in the index %d times", block, count)
		}
		if count == 0 && (block > 0 || info.BlockSize > 1024) { // the boot block is neither used nor free
			none++
		}
	}
	if none != int(info.FreeBlocks) {
		t.Errorf("%d blocks are nobody's, and %d are free", none, info.FreeBlocks)
	}
	var want []Extent
	err = fs.Scan(t.Context(), func(i *ext4.Inode) error {
		if fs.Internal(i) != "" {
			return nil
		}
		return fs.Extents(t.Context(), i, func(e ext4.Extent) error { want = append(want, extentOf(0, i, e)); return nil })
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(want, compareExtents)
	got := slices.DeleteFunc(slices.Clone(w.extents), func(e Extent) bool { return e.Kind == ExtentMetadata })
	if !slices.Equal(got, want) {
		t.Errorf("%d extents, want %d", len(got), len(want))
	}
}

// put lays volumes into a device.
func put(device []byte, volumes map[int64][]byte) {
	for at, b := range volumes {
		copy(device[at:], b)
	}
}

const mib = 1 << 20

// mbrEntryOf is an entry of a partition table: first and count in sectors.
func mbrEntryOf(kind byte, first, count uint32) []byte {
	e := make([]byte, mbrEntry)
	e[4] = kind
	binary.LittleEndian.PutUint32(e[8:], first)
	binary.LittleEndian.PutUint32(e[12:], count)
	return e
}

func putTable(device []byte, at int, entries ...[]byte) {
	for n, e := range entries {
		copy(device[at+mbrTable+n*mbrEntry:], e)
	}
	binary.LittleEndian.PutUint16(device[at+mbrSector-2:], mbrSignature)
}

// An MBR with logical partitions: two file systems, and what holds none.
func TestBuildOfMBR(t *testing.T) {
	t.Parallel()
	trees := []string{t.TempDir(), t.TempDir()}
	makeFiles(t, trees[0])
	if err := os.WriteFile(filepath.Join(trees[1], "other"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	device := make([]byte, 80*mib)
	putTable(device, 0, mbrEntryOf(0x83, 2048, 24*2048), mbrEntryOf(0x82, 25*2048, 2048), mbrEntryOf(0x05, 26*2048, 54*2048))
	putTable(device, 26*mib, mbrEntryOf(0x83, 2048, 24*2048), mbrEntryOf(0x05, 26*2048, 4*2048))
	putTable(device, 52*mib, mbrEntryOf(0x8e, 2048, 2048), mbrEntryOf(0x05, 30*2048, 4*2048))
	putTable(device, 56*mib, mbrEntryOf(0x83, 2048, 2048))
	put(device, map[int64][]byte{
		mib: makeExt4(t, trees[0]), 27 * mib: makeExt4(t, trees[1], "-O", "^has_journal"), 25*mib + 4086: []byte("SWAPSPACE2"), 53*mib + 512 + 24: []byte("LVM2 001"), 57 * mib: []byte("LUKS\xba\xbe"),
	})
	report, w := buildTest(t, device, BuildOptions{})
	if len(w.volumes) != 2 || w.volumes[0].Partition != 1 || w.volumes[1].Partition != 5 || w.volumes[1].Start != 27*mib || w.volumes[1].Length != 24*mib {
		t.Fatalf("volumes %+v", w.volumes)
	}
	compareWithTree(t, w, 0, trees[0], false)
	compareWithTree(t, w, 1, trees[1], false)
	var left []string
	for _, l := range report.LeftOut {
		left = append(left, fmt.Sprintf("%d %s %d+%d", l.Partition, l.Type, l.Start/mib, l.Length/mib))
		if l.Why == "" {
			t.Errorf("partition %d is left out, and nothing says why", l.Partition)
		}
	}
	if want := []string{"2 swap 25+1", "6 LVM2_member 53+1", "7 crypto_LUKS 57+1"}; !slices.Equal(left, want) {
		t.Errorf("left out %q, want %q", left, want)
	}
}

// A GPT, also one of which only the copy at the end is whole; and xfs, which is mounted where there is something to mount.
func TestBuildOfGPT(t *testing.T) {
	t.Parallel()
	tree := t.TempDir()
	makeFiles(t, tree)
	device := makeGPT(t)
	put(device, map[int64][]byte{mib: makeExt4(t, tree), 26 * mib: []byte("XFSB")})
	for _, damaged := range []bool{false, true} {
		if damaged {
			device[1024+40]++
		}
		report, w := buildTest(t, device, BuildOptions{})
		if len(w.volumes) != 1 || w.volumes[0].Partition != 3 || w.volumes[0].Start != mib {
			t.Fatalf("volumes %+v", w.volumes)
		}
		compareWithTree(t, w, 0, tree, false)
		if len(report.LeftOut) != 1 || report.LeftOut[0].Type != "xfs" || report.LeftOut[0].Partition != 4 || !strings.Contains(report.LeftOut[0].Why, "mount") {
			t.Errorf("left out %+v", report.LeftOut)
		}
	}
}

func makeGPT(t testing.TB) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "gpt.img")
	if err := os.WriteFile(path, make([]byte, 40*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("/usr/sbin/sgdisk", "-n", "3:1M:+24M", "-n", "4:26M:+8M", path).CombinedOutput(); err != nil {
		t.Fatalf("sgdisk: %v\n%s", err, out)
	}
	device, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return device
}

// The names of an encrypted directory are bytes of any kind, which the index has as text; and what stands in an inode that the file system keeps for itself and does not use is nobody's.
func TestBuildOfEncryptedNames(t *testing.T) {
	t.Parallel()
	tree := t.TempDir()
	if err := os.Mkdir(filepath.Join(tree, "secret"), 0o700); err != nil {
		t.Fatal(err)
	}
	const stored, plain = "sixteen\x00of/these", "sixteen of these"
	if err := os.WriteFile(filepath.Join(tree, "secret", plain), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	device := makeExt4(t, tree, "-b", "1024", "-O", "^metadata_csum,encrypt")
	copy(device[bytes.Index(device, []byte(plain)):], stored)
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, device, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"sif secret flags 0x80800", "sif <9> links_count 1", "sif <9> file_acl 1801728132"} {
		if out, err := exec.Command("/usr/sbin/debugfs", "-w", "-R", command, path).CombinedOutput(); err != nil {
			t.Fatalf("debugfs: %v\n%s", err, out)
		}
	}
	device, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, w := buildTest(t, device, BuildOptions{Digests: true})
	want := base64.RawURLEncoding.EncodeToString([]byte(stored))
	if !slices.ContainsFunc(w.names, func(n Name) bool { return string(n.Name) == want }) {
		t.Errorf("names %+v, want %q", w.names, want)
	}
}

// What contradicts itself is an error that says what, and nothing is left behind.
func TestBuildOfDamaged(t *testing.T) {
	t.Parallel()
	table := makeGPT(t)
	small := makeExt4(t, t.TempDir(), "-b", "1024")
	tree := t.TempDir()
	for _, name := range []string{"one name", "two name"} {
		if err := os.WriteFile(filepath.Join(tree, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	unchecked := makeExt4(t, tree, "-b", "1024", "-O", "^metadata_csum")
	extended := make([]byte, 8*mib)
	putTable(extended, 0, mbrEntryOf(0x05, 2048, 4*2048))
	putTable(extended, mib, mbrEntryOf(0x83, 1, 100), mbrEntryOf(0x05, 2048, 2048))
	putTable(extended, 2*mib, mbrEntryOf(0x83, 1, 100), mbrEntryOf(0x05, 2048, 2048))
	for name, test := range map[string]struct {
		device []byte
		change func(b []byte)
		kind   error
		want   string
	}{
		"entries without end": {table, func(b []byte) { binary.LittleEndian.PutUint32(b[512+80:], 1<<31) }, ErrPartitions, "has 2147483648 entries of 128 bytes"},
		"both tables damaged": {table, func(b []byte) { b[1024+40]++; b[len(b)-512+56]++ }, ErrPartitions, "backup"},
		"chain that loops":    {extended, func([]byte) {}, ErrPartitions, "or a loop"},
		"chain without table": {extended, func(b []byte) { b[2*mib+511] = 0 }, ErrPartitions, "logical partition 6, has no signature"},
		"inode":               {small, func(b []byte) { b[bytes.Index(b, []byte("lost+found"))]++ }, ext4.ErrCorrupt, "the checksum of block"},
		"name twice":          {unchecked, func(b []byte) { copy(b[bytes.Index(b, []byte("two name")):], "one") }, ext4.ErrCorrupt, `has "one name" twice`},
		"cut short":           {small, func(b []byte) { binary.LittleEndian.PutUint32(b[1024+4:], 30_000) }, ext4.ErrCorrupt, "superblock"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			device, dir := bytes.Clone(test.device), t.TempDir()
			test.change(device)
			_, err := Build(t.Context(), filepath.Join(dir, "index"), BuildInput{Device: bytes.NewReader(device), Size: int64(len(device))}, BuildOptions{Digests: true})
			if !errors.Is(err, test.kind) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v; want %q, as %v", err, test.want, test.kind)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

// A device with nothing on it has an index without volumes, which says so; one that cannot be read is an error; and a context ends it.
func TestBuildOfNothing(t *testing.T) {
	t.Parallel()
	report, w := buildTest(t, make([]byte, mib), BuildOptions{Digests: true})
	if len(w.volumes) != 0 || len(report.LeftOut) != 1 || report.LeftOut[0].Why == "" {
		t.Errorf("report %+v", report)
	}
	path := filepath.Join(t.TempDir(), "index")
	if _, err := Build(t.Context(), path, BuildInput{Device: bytes.NewReader(nil), Size: mib}, BuildOptions{}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error %v", err)
	}
	device := makeExt4(t, t.TempDir())
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("enough")
	cancel(stop)
	for _, digests := range []bool{false, true} {
		if _, err := Build(ctx, path, BuildInput{Device: bytes.NewReader(device), Size: int64(len(device))}, BuildOptions{Digests: digests}); !errors.Is(err, stop) {
			t.Errorf("error %v", err)
		}
	}
}
