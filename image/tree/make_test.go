package tree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"coppice/image"
)

// Two copies of a tree, with other inodes, change times and orders of directories, become the same file system, which e2fsck and a reader
// that is not debugfs find in order: see [Make].
func TestCopiesMakeTheSame(t *testing.T) {
	one, two := filepath.Join(t.TempDir(), "one"), filepath.Join(t.TempDir(), "two")
	sample(t, one)
	out, err := exec.Command("cp", "-a", one, two).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	first, second := makeTest(t, listDirectory(t, one), testOptions(t)), makeTest(t, listDirectory(t, two), testOptions(t))
	if a, b := digest(t, first), digest(t, second); a != b {
		t.Errorf("digests %s and %s", a, b)
	}
	if names := debugfsNames(t, first, "/many"); len(names) != 401 {
		t.Errorf("debugfs finds %d files where 401 are", len(names))
	}
	if out := debug(t, first, "stat /many"); !strings.Contains(out, "Flags: 0x81000") {
		t.Errorf("a directory of 401 files has no index: %s", out)
	}
	if out := debug(t, first, "stat /sparse"); !strings.Contains(out, "Blockcount: 8\n") {
		t.Errorf("a sparse file takes more than a block: %s", out)
	}
}

// debug asks debugfs, as a second opinion.
func debug(t testing.TB, f *image.File, request string) string {
	t.Helper()
	tool, err := findTool("debugfs")
	must(t, err)
	c := exec.Command(tool, "-R", request, imagePath)
	c.ExtraFiles = []*os.File{f.File}
	out, err := c.Output()
	must(t, err)
	return string(out)
}

func debugfsNames(t testing.TB, f *image.File, dir string) []string {
	t.Helper()
	var names []string
	for l := range strings.Lines(debug(t, f, "ls -p "+dir)) {
		if parts := strings.Split(l, "/"); len(parts) > 5 && parts[5] != "." && parts[5] != ".." {
			names = append(names, parts[5])
		}
	}
	return names
}

// Options show in the file system.
func TestOptions(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a", []byte("a"))
	o := testOptions(t)
	o.SizeBytes, o.Label, o.Seconds = 20<<20, "sixteen letters!", 1_700_000_000
	done := int64(0)
	o.Progress = func(n, total int64) {
		if done = n; total != 1 {
			t.Errorf("%d bytes in all", total)
		}
	}
	f := makeTest(t, listDirectory(t, dir), o)
	if f.Size() != 20<<20 || done != 1 {
		t.Errorf("%d bytes, %d done", f.Size(), done)
	}
	out := debug(t, f, "stats -h")
	for _, want := range []string{"sixteen letters!", testUUID, "Tue Nov 14"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %s in %s", want, out)
		}
	}
}

// What cannot be written is refused with a reason, and whoever asks again later gets what he can have.
func TestRefusedDirectories(t *testing.T) {
	for what, prepare := range map[string]func(t *testing.T, dir string){
		"is empty":       func(*testing.T, string) {},
		"line breaks":    func(t *testing.T, dir string) { write(t, dir, "a\nb", nil) },
		"carriage":       func(t *testing.T, dir string) { write(t, dir, "a\rb", nil) },
		"target of this": func(t *testing.T, dir string) { must(t, os.Symlink("a\nb", filepath.Join(dir, "l"))) },
	} {
		dir := t.TempDir()
		prepare(t, dir)
		tree, err := Directory(context.Background(), dir)
		if err == nil {
			_, err = Make(context.Background(), tree, testOptions(t))
			tree.Close()
		}
		if what == "carriage" {
			what = "line breaks"
		}
		if !errors.Is(err, image.ErrBadOption) || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// A tree that changes between its being listed and the end is no image.
func TestChangesAreNoticed(t *testing.T) {
	for what, change := range map[string]func(dir string) error{
		"content":  func(dir string) error { return os.WriteFile(filepath.Join(dir, "d/a"), []byte("other"), 0o644) },
		"longer":   func(dir string) error { return os.WriteFile(filepath.Join(dir, "d/a"), content(1, 100000), 0o644) },
		"added":    func(dir string) error { return os.WriteFile(filepath.Join(dir, "d/c"), nil, 0o644) },
		"removed":  func(dir string) error { return os.Remove(filepath.Join(dir, "d/b")) },
		"mode":     func(dir string) error { return os.Chmod(filepath.Join(dir, "d/b"), 0o600) },
		"replaced": func(dir string) error { return os.Rename(filepath.Join(dir, "d/a"), filepath.Join(dir, "d/b")) },
	} {
		dir := t.TempDir()
		write(t, dir, "d/a", []byte("first"))
		write(t, dir, "d/b", []byte("second"))
		tree := listDirectory(t, dir)
		must(t, change(dir))
		_, err := Make(context.Background(), tree, testOptions(t))
		if !errors.Is(err, image.ErrChanged) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Another file system inside is refused: what is mounted where is no part of a tree.
func TestMountsAreRefused(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "mnt/a", nil)
	d := &directory{tree: &Tree{host: dir}, dev: 1}
	if _, err := d.node("mnt"); !errors.Is(err, image.ErrBadOption) || !strings.Contains(err.Error(), "another file system is mounted") {
		t.Errorf("%v", err)
	}
}

// An interrupted build ends at once, and leaves no file.
func TestInterruptedMake(t *testing.T) {
	dir := t.TempDir()
	for i := range 50 {
		write(t, dir, fmt.Sprint(i), []byte("x"))
	}
	o := testOptions(t)
	ctx, cancel := context.WithCancel(context.Background())
	o.Progress = func(n, _ int64) {
		if n == 20 {
			cancel()
		}
	}
	if _, err := Make(ctx, listDirectory(t, dir), o); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if left, err := os.ReadDir(o.Scratch); err != nil || len(left) > 0 {
		t.Errorf("%d files are left, %v", len(left), err)
	}
}

func TestMissingToolIsSaid(t *testing.T) {
	if _, err := findTool("no-such-tool"); err == nil || !strings.Contains(err.Error(), "install e2fsprogs") {
		t.Errorf("%v", err)
	}
}
