package tree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coppice/image"
)

// store makes an image of a file system in a layout.
func store(t testing.TB, l *image.Layout, name string, f *image.File, base *image.Image) (*image.Image, image.BuildReport) {
	t.Helper()
	r, err := image.Build(context.Background(), l, name, f, f.Size(), image.BuildOptions{Base: base})
	must(t, err)
	im, err := image.Open(context.Background(), l, name)
	must(t, err)
	t.Cleanup(func() { im.Close() })
	return im, r
}

func testLayout(t testing.TB) *image.Layout {
	t.Helper()
	l, err := image.CreateLayout(filepath.Join(t.TempDir(), "images"))
	must(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

func updateTest(t testing.TB, base *image.Image, tree *Tree, o Options) (*image.File, UpdateReport) {
	t.Helper()
	f, r, err := Update(context.Background(), base, tree, o)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f, r
}

// rework changes a sample in every way that a tree can change.
func rework(t testing.TB, dir string) {
	t.Helper()
	in := func(path string) string { return filepath.Join(dir, path) }
	must(t, os.RemoveAll(in("strange dirs/a b")))
	must(t, os.RemoveAll(in("strange/-n")))
	must(t, os.Remove(in("many/hard"))) // one name less
	must(t, os.Rename(in("pipe2"), in("pipe3")))
	must(t, os.Remove(in("link60")))
	must(t, os.Symlink("elsewhere", in("link60")))
	must(t, os.Remove(in("sock")))
	write(t, dir, "sock/is a directory now", []byte("x"))
	must(t, os.RemoveAll(in("strange dirs/q")))
	write(t, dir, "strange dirs/q", []byte("is a file now"))
	for i := range 200 {
		write(t, dir, fmt.Sprintf("more/deep/er/%d", i), content(uint64(i), 100*i))
		write(t, dir, fmt.Sprintf("many/one more file with a rather long name, number %d", i), nil)
	}
	must(t, os.Link(in("more/deep/er/7"), in("seven")))
	big := content(2, 3<<20+17)
	copy(big[1<<20:], "a few bytes in the middle")
	write(t, dir, "big", append(big, "and a longer end"...))
	write(t, dir, "strange/*", []byte("other"))
	must(t, os.Chmod(in("big"), 0o600))
	must(t, unix.Removexattr(in("big"), "user.note"))
	must(t, unix.Setxattr(in("empty"), "user.new", []byte("v"), 0))
	must(t, os.Remove(in("aaa first"))) // "block" has one name then, and large attributes
	must(t, unix.Setxattr(in("more"), "user.large", bytes.Repeat([]byte("w"), 3000), 0))
}

// A file system becomes what another tree is, and the same one every time; back again, too.
func TestUpdate(t *testing.T) {
	one, two, again := filepath.Join(t.TempDir(), "one"), filepath.Join(t.TempDir(), "two"), filepath.Join(t.TempDir(), "again")
	sample(t, one)
	copyTree(t, one, two)
	rework(t, two)
	stamp(t, two, func(i int) time.Time { return time.Unix(1_700_000_000+int64(i), 0) })
	copyTree(t, two, again)
	l := testLayout(t)
	base, _ := store(t, l, "a:1", makeTest(t, listDirectory(t, one), testOptions(t)), nil)
	f, r := updateTest(t, base, listDirectory(t, two), testOptions(t))
	second, _ := updateTest(t, base, listDirectory(t, again), testOptions(t))
	if a, b := digest(t, f), digest(t, second); a != b {
		t.Errorf("digests %s and %s", a, b)
	}
	if r.Patched != 1 || r.Unchanged < 400 || r.Written < 400 || r.Written > 450 || r.Removed < 10 || r.Removed > 30 {
		t.Errorf("%+v", r)
	}
	upper, _ := store(t, l, "a:2", f, base)
	back, _ := updateTest(t, upper, listDirectory(t, one), testOptions(t))
	tree, err := Open(context.Background(), back, back.Size())
	must(t, err)
	must(t, Compare(context.Background(), listDirectory(t, one), tree))
	same, r := updateTest(t, base, listDirectory(t, one), testOptions(t))
	if a, b := digest(t, same), digest(t, makeTest(t, listDirectory(t, one), testOptions(t))); a != b || r.Written+r.Removed+r.Patched > 0 {
		t.Errorf("a tree without changes changes the file system: %+v", r)
	}
}

func copyTree(t testing.TB, from, to string) {
	t.Helper()
	out, err := exec.Command("cp", "-a", from, to).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// What is as it was keeps its time where that is asked for, and nothing else does.
func TestKeepTimes(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []string{"a/same", "a/other", "b/same", "b/mode"} {
		write(t, dir, n, []byte(n))
	}
	big := content(1, 400<<10)
	write(t, dir, "b/big", big)
	stamp(t, dir, func(int) time.Time { return time.Unix(1_000_000_000, 1) })
	base, _ := store(t, testLayout(t), "a:1", makeTest(t, listDirectory(t, dir), testOptions(t)), nil)
	write(t, dir, "a/other", []byte("changed"))
	big[200<<10]++
	write(t, dir, "b/big", big)
	must(t, os.Chmod(filepath.Join(dir, "b/mode"), 0o600))
	stamp(t, dir, func(int) time.Time { return time.Unix(1_100_000_000, 2) })
	o := testOptions(t)
	o.KeepTimes = true
	f, r := updateTest(t, base, listDirectory(t, dir), o)
	got, err := Open(context.Background(), f, f.Size())
	must(t, err)
	for path, want := range map[string]int64{"": 10, "a": 11, "b": 10, "a/same": 10, "b/same": 10, "a/other": 11, "b/mode": 11, "b/big": 11} {
		if n, ok := got.find(path); !ok || n.Seconds != want*100_000_000 {
			t.Errorf("%s has time %d", show(path), n.Seconds)
		}
	}
	if r.Written != 1 || r.Unchanged != 3 || r.Patched != 1 || r.WrittenBytes != 4096+7 {
		t.Errorf("%+v", r)
	}
}

// Space of what is removed is used where there is no other.
func TestUpdateInLittleSpace(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a", content(1, 8<<20))
	o := testOptions(t)
	o.SizeBytes = 24 << 20
	base, _ := store(t, testLayout(t), "a:1", makeTest(t, listDirectory(t, dir), o), nil)
	write(t, dir, "a", content(2, 9<<20))
	updateTest(t, base, listDirectory(t, dir), testOptions(t))
	write(t, dir, "b", content(3, 30<<20))
	if _, _, err := Update(context.Background(), base, listDirectory(t, dir), testOptions(t)); !errors.Is(err, ErrFull) {
		t.Errorf("%v", err)
	}
}

// rawImage makes an image of bytes.
func rawImage(t testing.TB, data []byte) *image.Image {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(path, data, 0o600))
	f, err := image.OpenFile(path)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	im, _ := store(t, testLayout(t), "raw:1", f, nil)
	return im
}

// Bases that hold something else are refused.
func TestRefusedBases(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a", []byte("a"))
	fsBytes := func(change func(p []byte)) []byte {
		o := testOptions(t)
		o.SizeBytes = 16 << 20
		f := makeTest(t, listDirectory(t, dir), o)
		p := make([]byte, f.Size())
		_, err := f.ReadAt(p, 0)
		must(t, err)
		change(p)
		return p
	}
	for what, data := range map[string][]byte{
		"holds no ext4 file system":    bytes.Repeat([]byte("disk"), 1<<20),
		"one behind a partition table": []byte("tiny"),
		"features that are not":        fsBytes(func(p []byte) { p[superAt+0x61] |= 0x80 }),
		"was in use":                   fsBytes(func(p []byte) { p[superAt+0x60] |= incompatRecover }),
		"makes no sense":               fsBytes(func(p []byte) { p[superAt+0x18] = 9 }),
		"it has 16781312 blocks":       fsBytes(func(p []byte) { p[superAt+7] = 1 }),
	} {
		_, _, err := Update(context.Background(), rawImage(t, data), listDirectory(t, dir), testOptions(t))
		if err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// realTree copies some of Go's own sources, in an order or the reverse, as a tree that people have made.
func realTree(t testing.TB, to string, reverse bool) (files []string) {
	t.Helper()
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	must(t, err)
	from := filepath.Join(strings.TrimSpace(string(goroot)), "src")
	for _, dir := range []string{"crypto", "encoding", "go", "net"} {
		must(t, filepath.WalkDir(filepath.Join(from, dir), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				files = append(files, strings.TrimPrefix(path, from+"/"))
			}
			return err
		}))
	}
	if reverse {
		slices.Reverse(files)
	}
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(from, f))
		must(t, err)
		write(t, to, f, data)
	}
	slices.Sort(files)
	return files
}

// A real tree that is made anew, with one file in twenty changed, other times and another order of directories, costs little over the earlier
// version: less than a file system that is made anew and compared by chunks.
func TestRebuiltTreeCostsLittle(t *testing.T) {
	one, two := filepath.Join(t.TempDir(), "one"), filepath.Join(t.TempDir(), "two")
	files := realTree(t, one, false)
	stamp(t, one, func(i int) time.Time { return time.Unix(1_600_000_000, 0) })
	realTree(t, two, true)
	changed := int64(0)
	for i, f := range files {
		if i%20 == 7 {
			data, err := os.ReadFile(filepath.Join(two, f))
			must(t, err)
			data = append([]byte("// A line that was not there.\n"), data...)
			changed += int64(len(data))
			write(t, two, f, data)
		}
	}
	stamp(t, two, func(i int) time.Time { return time.Unix(1_700_000_000+int64(i), 0) })
	l, tree := testLayout(t), listDirectory(t, two)
	base, full := store(t, l, "go:1", makeTest(t, listDirectory(t, one), testOptions(t)), nil)
	_, plain := store(t, l, "go:plain", makeTest(t, tree, testOptions(t)), base)
	f, r := updateTest(t, base, tree, testOptions(t))
	_, fileWise := store(t, l, "go:filewise", f, base)
	o := testOptions(t)
	o.KeepTimes = true
	kept, _ := updateTest(t, base, tree, o)
	_, keepTimes := store(t, l, "go:kept", kept, base)
	t.Logf("%d files, %d KiB; changed %d, %d KiB; %+v", len(files), tree.Bytes()>>10, len(files)/20, changed>>10, r)
	t.Logf("stored, and fetched by who has version 1, with the table: full %d KiB, made anew %d KiB, file by file %d KiB, and with times kept %d KiB",
		stored(full), stored(plain), stored(fileWise), stored(keepTimes))
	if stored(fileWise)*4 > stored(plain) || stored(keepTimes) > stored(fileWise) {
		t.Error("the figures are not as they should be")
	}
}

func stored(r image.BuildReport) int64 { return (r.StoredBytes + r.TableBytes) >> 10 }
