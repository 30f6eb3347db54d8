package tree

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"coppice/image"
)

func listTar(t testing.TB, path string) *Tree {
	t.Helper()
	tree, err := Tar(context.Background(), path, t.TempDir())
	must(t, err)
	t.Cleanup(func() { tree.Close() })
	return tree
}

// A tar of a directory becomes what the directory becomes, however it is packed, and in whatever order it is.
func TestTarMakesTheSameAsItsDirectory(t *testing.T) {
	dir, tars := t.TempDir(), t.TempDir()
	sample(t, dir)
	must(t, os.Remove(filepath.Join(dir, "sock")))  // which no tar has
	must(t, os.Remove(filepath.Join(dir, "pipe2"))) // which GNU tar takes for another pipe
	stamp(t, dir, func(i int) time.Time { return time.Unix(1_600_000_000+int64(i), 5) })
	want := digest(t, makeTest(t, listDirectory(t, dir), testOptions(t)))
	for file, script := range map[string]string{
		"pax.tar":     `tar --format=pax --xattrs -C "$1" -cf "$2" .`,
		"sparse.tar":  `tar --format=pax --xattrs -S -C "$1" -cf "$2" .`,
		"reverse.tgz": `cd "$1"; find . -print0 | sort -rz | tar --format=pax --xattrs --no-recursion --null -T - -czf "$2"`,
		"a.xz":        `tar --format=pax --xattrs -C "$1" -cJf "$2" .`,
	} {
		path := filepath.Join(tars, file)
		out, err := exec.Command("sh", "-ec", script, "sh", dir, path).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", file, err, out)
		}
		if is, err := IsTar(path); !is || err != nil {
			t.Errorf("%s: no tar, %v", file, err)
		}
		tree := listTar(t, path)
		if err := Compare(context.Background(), listDirectory(t, dir), tree); err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		if file == "reverse.tgz" {
			if got := digest(t, makeTest(t, tree, testOptions(t))); got != want {
				t.Errorf("%s becomes something else", file)
			}
		}
	}
}

// entries makes a tar in memory.
func entries(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1_600_000_000, 0)
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		h.Format = tar.FormatPAX
		must(t, w.WriteHeader(&h))
		_, err := w.Write(make([]byte, h.Size))
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

func tarFile(t testing.TB, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.tar")
	must(t, os.WriteFile(path, data, 0o600))
	return path
}

// acl is an access control list as the system calls have it, of tags, permissions and identifiers.
func acl(entries ...uint32) string {
	p := binary.LittleEndian.AppendUint32(nil, 2)
	for i := 0; i < len(entries); i += 3 {
		p = binary.LittleEndian.AppendUint16(p, uint16(entries[i]))
		p = binary.LittleEndian.AppendUint16(p, uint16(entries[i+1]))
		p = binary.LittleEndian.AppendUint32(p, entries[i+2])
	}
	return string(p)
}

// What only root can make comes into a file system from a tar: devices, owners, capabilities, access control lists.
func TestTarWithPrivileges(t *testing.T) {
	const none = 0xffffffff
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	list := acl(1, 6, none, 2, 4, 1000, 4, 4, none, 8, 5, 70000, 0x10, 7, none, 0x20, 0, none)
	data := entries(t,
		tar.Header{Name: "dev/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666},
		tar.Header{Name: "dev/disk", Typeflag: tar.TypeBlock, Devmajor: 259, Devminor: 70000 % 65536, Gid: 6},
		tar.Header{Name: "dev/disk255", Typeflag: tar.TypeBlock, Devmajor: 8, Devminor: 255},
		tar.Header{Name: "dev/disk2", Typeflag: tar.TypeLink, Linkname: "./dev/disk"},
		tar.Header{Name: "bin/ping", Typeflag: tar.TypeReg, Size: 10, Mode: 0o4755, Uid: 2_000_000_000, Gid: 70000,
			PAXRecords: map[string]string{"SCHILY.xattr.security.capability": capability, "SCHILY.xattr.trusted.a": "b", "RHT.security.selinux": "system_u:object_r:bin_t:s0"}},
		tar.Header{Name: "acl", Typeflag: tar.TypeDir, Mode: 0o755, PAXRecords: map[string]string{
			"SCHILY.xattr.system.posix_acl_access": list, "SCHILY.xattr.system.posix_acl_default": list}},
		tar.Header{Name: "lost+found/", Typeflag: tar.TypeDir, Mode: 0o711},
		tar.Header{Name: "lost+found/#1", Typeflag: tar.TypeReg, Size: 1},
		tar.Header{Name: "sub/./dir//file", Typeflag: tar.TypeReg},
		tar.Header{Name: "sub/", Typeflag: tar.TypeDir, Mode: 0o700},
		tar.Header{Name: "sub/", Typeflag: tar.TypeDir, Mode: 0o750},
	)
	tree := listTar(t, tarFile(t, data))
	f := makeTest(t, tree, testOptions(t))
	for path, want := range map[string]string{
		"/dev/null": "Device major/minor number: 01:03", "/dev/disk": "Links: 2", "/dev/disk255": "Device major/minor number: 08:255",
		"/bin/ping": "User: 2000000000   Group: 70000", "/sub": "Mode:  0750", "/lost+found": "Mode:  0711", "/sub/dir": "Mode:  0755",
	} {
		if out := debug(t, f, "stat "+path); !strings.Contains(out, want) {
			t.Errorf("%s: no %s in %s", path, want, out)
		}
	}
	for path, want := range map[string]string{"/bin/ping": "security.capability (20)", "/acl": "system.posix_acl_default (36)"} {
		if out := debug(t, f, "ea_list "+path); !strings.Contains(out, want) {
			t.Errorf("%s: no %s in %s", path, want, out)
		}
	}
}

// Tars that cannot be taken are refused with a reason.
func TestRefusedTars(t *testing.T) {
	file := tar.Header{Name: "a", Typeflag: tar.TypeReg, Size: 1000}
	whole := entries(t, file)
	long := tar.Header{Name: "x", Typeflag: tar.TypeReg, PAXRecords: map[string]string{}}
	for i := range 4 {
		long.PAXRecords[fmt.Sprint("SCHILY.xattr.user.", i)] = strings.Repeat("v", 1300)
	}
	for what, data := range map[string][]byte{
		"leads out of the tree":        entries(t, tar.Header{Name: "a/../../b", Typeflag: tar.TypeReg}),
		"an absolute path":             entries(t, tar.Header{Name: "/etc/passwd", Typeflag: tar.TypeReg}),
		"is there twice":               entries(t, file, file),
		"has something in it":          entries(t, file, tar.Header{Name: "a/b", Typeflag: tar.TypeReg}),
		"no file before it":            entries(t, tar.Header{Name: "b", Typeflag: tar.TypeLink, Linkname: "a"}, file),
		"hard link to \"d\"":           entries(t, tar.Header{Name: "d/", Typeflag: tar.TypeDir}, tar.Header{Name: "b", Typeflag: tar.TypeLink, Linkname: "d"}),
		"of type '7'":                  entries(t, tar.Header{Name: "c", Typeflag: tar.TypeCont}),
		"line breaks":                  entries(t, tar.Header{Name: "a\nb", Typeflag: tar.TypeReg}),
		"lists as text":                entries(t, tar.Header{Name: "c", Typeflag: tar.TypeReg, PAXRecords: map[string]string{"SCHILY.acl.access": "user::rw-"}}),
		"is not understood":            entries(t, tar.Header{Name: "c", Typeflag: tar.TypeReg, PAXRecords: map[string]string{"SCHILY.xattr.system.posix_acl_access": "text"}}),
		"more than some 4 KiB":         entries(t, long),
		"a name has 256 bytes":         entries(t, tar.Header{Name: strings.Repeat("n", 256), Typeflag: tar.TypeReg}),
		"cannot be written":            entries(t, tar.Header{Name: "d", Typeflag: tar.TypeChar, Devmajor: 1 << 12, Devminor: 1}),
		"ext4 has no time":             entries(t, tar.Header{Name: "d", Typeflag: tar.TypeReg, ModTime: time.Unix(1<<34, 0)}),
		"has a directory of that name": entries(t, tar.Header{Name: "lost+found", Typeflag: tar.TypeReg}),
		"is empty":                     entries(t),
		"its end is missing":           whole[:512+1024],
		"is cut short at byte 900":     whole[:900],
		"behind byte 0":                bytes.Repeat([]byte("no tar "), 1000),
		"holds no tar":                 packed(t, []byte("a disk")),
		"unpack: unexpected EOF":       packed(t, whole)[:60],
		"a symbolic link to nothing":   entries(t, tar.Header{Name: "l", Typeflag: tar.TypeSymlink}),
		"symbolic link's target has ":  entries(t, tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("t", 4096)}),
	} {
		tree, err := Tar(context.Background(), tarFile(t, data), t.TempDir())
		if err == nil {
			_, err = Make(context.Background(), tree, testOptions(t))
			tree.Close()
		}
		if err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func packed(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(data)
	must(t, errors.Join(err, w.Close()))
	return b.Bytes()
}

func TestTarPackedByZstd(t *testing.T) {
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b)
	must(t, err)
	_, err = w.Write(entries(t, tar.Header{Name: "a", Typeflag: tar.TypeReg, Size: 100000}))
	must(t, errors.Join(err, w.Close()))
	tree := listTar(t, tarFile(t, b.Bytes()))
	n, ok := tree.find("a")
	if !ok || n.Size != 100000 || tree.Files() != 2 {
		t.Fatalf("%d files, %+v", tree.Files(), n)
	}
	r, err := tree.open(n.Node)
	must(t, err)
	if got, err := io.ReadAll(r); err != nil || len(got) != 100000 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// A tar that changes while it is read is no image.
func TestTarChanges(t *testing.T) {
	path := tarFile(t, entries(t, tar.Header{Name: "a", Typeflag: tar.TypeReg, Size: 3000}))
	tree := listTar(t, path)
	must(t, os.WriteFile(path, entries(t, tar.Header{Name: "a", Typeflag: tar.TypeReg, Size: 4000}), 0o600))
	if _, err := Make(context.Background(), tree, testOptions(t)); !errors.Is(err, image.ErrChanged) {
		t.Errorf("%v", err)
	}
}

func TestWhatIsNoTar(t *testing.T) {
	for _, data := range []string{"", "short", strings.Repeat("disk", 1000)} {
		if is, err := IsTar(tarFile(t, []byte(data))); is || err != nil {
			t.Errorf("%.10q: %v, %v", data, is, err)
		}
	}
	if is, err := IsTar(t.TempDir()); is || err != nil {
		t.Errorf("a directory: %v, %v", is, err)
	}
}
