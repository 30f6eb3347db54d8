package tree

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coppice/image"
)

// testUUID is that of file systems of tests.
const testUUID = "7f1c0e6a-2b7d-8c11-9d3e-5a1f00c0ffee"

func testOptions(t testing.TB) Options {
	return Options{Scratch: t.TempDir(), UUID: testUUID}
}

// content is random bytes that depend on seed.
func content(seed uint64, size int) []byte {
	p := make([]byte, size)
	rng := rand.NewChaCha8(sha256.Sum256(fmt.Append(nil, seed)))
	_, _ = rng.Read(p)
	return p
}

func write(t testing.TB, dir, path string, data []byte) {
	t.Helper()
	full := filepath.Join(dir, path)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(full, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// strangeNames are what a shell, debugfs or a careless program might trip over.
var strangeNames = []string{
	"a b", "  lead", "trail ", `quo"te`, `"`, `""`, "it's", `back\slash`, `end\`, "-n", "--", "#c", "<12>", "!ls", "tab\there", "*", "$HOME", "a;b", "~",
	"\xff\xfe no UTF-8", "ünï©ode", "...", strings.Repeat("x", 255), "nul\x01\x7f", "%s%n", ".hidden", "q", "?",
}

// sample makes a tree with all kinds of things that need no privileges.
func sample(t testing.TB, dir string) {
	t.Helper()
	for i, n := range strangeNames {
		write(t, dir, "strange/"+n, fmt.Append(nil, "file ", i))
		must(t, os.MkdirAll(filepath.Join(dir, "strange dirs", n), 0o755))
		write(t, dir, filepath.Join("strange dirs", n, "in it"), []byte("x"))
		must(t, os.Symlink(n, filepath.Join(dir, "strange dirs", n, n)))
	}
	write(t, dir, "empty", nil)
	write(t, dir, "block", content(1, 4096))
	write(t, dir, "big", content(2, 3<<20+17))
	for i := range 400 {
		write(t, dir, fmt.Sprintf("many/file with a rather long name, number %d", i), fmt.Append(nil, i))
	}
	for _, n := range []int{1, 58, 59, 60, 61, 1000, 4095} {
		must(t, os.Symlink(strings.Repeat("t", n), filepath.Join(dir, fmt.Sprint("link", n))))
	}
	sparse, err := os.Create(filepath.Join(dir, "sparse"))
	must(t, err)
	_, err = sparse.WriteAt([]byte("far"), 4<<20)
	must(t, err)
	must(t, sparse.Truncate(6<<20))
	must(t, sparse.Close())
	must(t, os.Link(filepath.Join(dir, "block"), filepath.Join(dir, "many/hard")))
	must(t, os.Link(filepath.Join(dir, "block"), filepath.Join(dir, "aaa first")))
	must(t, unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	must(t, os.Link(filepath.Join(dir, "pipe"), filepath.Join(dir, "pipe2")))
	socket(t, filepath.Join(dir, "sock"))
	for path, mode := range map[string]uint32{"big": 0o4755, "empty": 0, "many": 0o1777, "strange": 0o2750} {
		must(t, unix.Chmod(filepath.Join(dir, path), mode))
	}
	must(t, unix.Setxattr(filepath.Join(dir, "big"), "user.note", []byte("of\x00bytes\n"), 0))
	must(t, unix.Setxattr(filepath.Join(dir, "many"), "user.dir", nil, 0))
	must(t, unix.Setxattr(filepath.Join(dir, "block"), "user.large \"name\"", bytes.Repeat([]byte("v"), 3000), 0))
	old := time.Unix(1_500_000_000, 0)
	stamp(t, dir, func(i int) time.Time { return old.Add(time.Duration(i) * 1_000_001 * time.Microsecond) })
	for path, at := range map[string]time.Time{"empty": time.Unix(-5, 7), "big": time.Unix(5_000_000_000, 999_999_999), "block": time.Unix(0, 0)} {
		ts, err := unix.TimeToTimespec(at)
		must(t, err)
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, path), []unix.Timespec{ts, ts}, 0))
	}
}

func socket(t testing.TB, path string) {
	t.Helper()
	short := filepath.Join(os.TempDir(), fmt.Sprint("sock", os.Getpid())) // the path of a socket has at most 108 bytes
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	must(t, err)
	l.SetUnlinkOnClose(false)
	must(t, l.Close())
	must(t, os.Rename(short, path))
}

// stamp gives every file a time, the last ones in a directory first.
func stamp(t testing.TB, dir string, at func(int) time.Time) {
	t.Helper()
	var paths []string
	must(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		paths = append(paths, path)
		return err
	}))
	for i := len(paths) - 1; i >= 0; i-- {
		ts, err := unix.TimeToTimespec(at(i))
		must(t, err)
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, paths[i], []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
	}
}

func listDirectory(t testing.TB, dir string) *Tree {
	t.Helper()
	tree, err := Directory(context.Background(), dir)
	must(t, err)
	t.Cleanup(func() { tree.Close() })
	return tree
}

func makeTest(t testing.TB, tree *Tree, o Options) *image.File {
	t.Helper()
	f, err := Make(context.Background(), tree, o)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func digest(t testing.TB, f *image.File) string {
	t.Helper()
	h := sha256.New()
	_, err := io.Copy(h, io.NewSectionReader(f, 0, f.Size()))
	must(t, err)
	return fmt.Sprintf("%x", h.Sum(nil))
}
