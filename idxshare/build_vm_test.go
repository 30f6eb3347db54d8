//go:build vm

package idxshare

import (
	"cmp"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

var mountedImage = flag.String("image", "", "an image with a clean ext4 file system, on the whole of it, to compare beside those that the test makes")

// What is read from an ext4's blocks is what a walk through a mount of it finds, and xfs is read through one.
func TestBuildOfMounted(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) { compareMounted(t, makeMounted(t, kind), kind) })
	}
	if *mountedImage != "" {
		t.Run("image", func(t *testing.T) { compareMounted(t, *mountedImage, "ext4") })
	}
}

// makeMounted makes a file system and has the kernel fill it.
func makeMounted(t *testing.T, kind string) string {
	t.Helper()
	image, dir := filepath.Join(t.TempDir(), kind+".img"), t.TempDir()
	args := map[string][]string{"ext4": {"mkfs.ext4", "-q", "-O", "inline_data"}, "xfs": {"mkfs.xfs", "-q", "-L", "a label"}}[kind]
	for _, command := range [][]string{{"truncate", "-s", "320M", image}, append(args, image), {"mount", "-o", "loop", image, dir}} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", command, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && err != unix.EINVAL {
			t.Error(err)
		}
	})
	makeFiles(t, dir)
	mkdev := int(unix.Mkdev(259, 70_000))
	if err := cmp.Or(unix.Mknod(filepath.Join(dir, "dir/device"), unix.S_IFBLK|0o600, mkdev), unix.Mknod(filepath.Join(dir, "dir/pipe"), unix.S_IFIFO|0o600, 0),
		os.Chown(filepath.Join(dir, "sparse"), 70_000, 4_000_000_000), unix.Setxattr(filepath.Join(dir, "sparse"), "user.name", make([]byte, 900), 0)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	return image
}

func compareMounted(t *testing.T, image, kind string) {
	t.Helper()
	file, size := openImage(t, image)
	defer file.Close()
	in := BuildInput{Device: file, Size: size, Path: image}
	path := filepath.Join(t.TempDir(), "index")
	report, err := Build(t.Context(), path, in, BuildOptions{Digests: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Volumes) != 1 || report.Volumes[0].Type != kind || report.Volumes[0].Mapped != (kind == "ext4") || len(report.LeftOut) != 0 || report.NoDigest != 0 {
		t.Fatalf("report %+v", report)
	}
	got := read(t, openTest(t, path))

	// The same through a mount, whatever the kind.
	v := report.Volumes[0]
	m, err := openMounted(t.Context(), in, part{length: in.Size}, &v)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.close(); err != nil {
			t.Error(err)
		}
	})
	w, err := Create(filepath.Join(t.TempDir(), "mounted"), got.header)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if err := w.AddVolume(report.Volumes[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := m.digests(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.write(t.Context(), &builder{w: w}); err != nil {
		t.Fatal(err)
	}
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	want := read(t, openTest(t, w.path))
	if len(got.files) < 300 || len(got.files) != len(want.files) || !slices.EqualFunc(got.names, want.names, func(a, b Name) bool {
		return a.Parent == b.Parent && a.Inode == b.Inode && string(a.Name) == string(b.Name)
	}) {
		t.Fatalf("%d files and %d names, want %d and %d", len(got.files), len(got.names), len(want.files), len(want.names))
	}
	for n, g := range got.files {
		// A mount tells no generation, and reading through it changes no times: it is one that is read-only.
		g.Generation = 0
		if h := want.files[n]; string(g.Digest) != string(h.Digest) || string(g.Target) != string(h.Target) || !sameAttributes(g, h) {
			t.Errorf("got  %+v\nwant %+v", g, h)
		}
	}
	if kind == "xfs" && len(got.extents) < 100 {
		t.Errorf("%d extents of xfs", len(got.extents))
	}
	t.Logf("%d files, %d names, %d extents", len(got.files), len(got.names), len(got.extents))
}

func sameAttributes(a, b File) bool {
	a.Digest, a.Target, b.Digest, b.Target = nil, nil, nil, nil
	return a.Inode == b.Inode && a.Mode == b.Mode && a.UID == b.UID && a.GID == b.GID && a.Size == b.Size && a.Links == b.Links && a.Blocks == b.Blocks && a.Rdev == b.Rdev &&
		a.Atime == b.Atime && a.Mtime == b.Mtime && a.Ctime == b.Ctime && a.Crtime == b.Crtime
}
