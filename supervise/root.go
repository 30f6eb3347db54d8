package supervise

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// kernelDirs are what the daemon shares with the whole system.
var kernelDirs = []string{"/dev", "/proc", "/run", "/sys"}

// emptyDirs are what programs expect.
var emptyDirs = []string{"/tmp", "/var/lib/coppice", "/var/cache/coppice"}

// maxFiles is how much the copied files may have together, in bytes.
const maxFiles = 32 << 20

// enterRoot makes a tmpfs with copies of files the root of this process, which has a mount namespace of its own, with the kernel's directories and binds
// as they are seen now. Nothing else stays mounted in the namespace, but for an initramfs, which the kernel
// itself keeps, empty, for ever.
func enterRoot(files, binds []string) error {
	dir, err := os.MkdirTemp("/run", ".coppice-")
	if err != nil {
		return fmt.Errorf("make a root of its own: %w", err)
	}
	// The directory is below another mount once the tmpfs has become the root.
	err = errors.Join(fillRoot(dir, files, binds), changeRoot(dir))
	if err != nil {
		return fmt.Errorf("make a root of its own: %w", err)
	}
	return os.Remove(dir)
}

func fillRoot(dir string, files, binds []string) error {
	if err := mountMemory(dir); err != nil {
		return err
	}
	for _, path := range slices.Concat(kernelDirs, binds) {
		if err := bind(path, dir+path); err != nil {
			return err
		}
	}
	for _, path := range emptyDirs {
		if err := os.MkdirAll(dir+path, 0o755); err != nil {
			return err
		}
	}
	left := int64(maxFiles)
	for _, path := range files {
		if slices.ContainsFunc(binds, func(b string) bool { return within(path, b) }) {
			continue
		}
		if err := copyTree(path, dir+path, &left); err != nil {
			return err
		}
	}
	return nil
}

func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

// mountMemory mounts a tmpfs, which is never swapped out where the kernel can do that (Linux 6.4).
func mountMemory(dir string) error {
	const options = "mode=0755,size=64m"
	err := unix.Mount("coppice", dir, "tmpfs", unix.MS_NOSUID, options+",noswap")
	if err != nil {
		err = unix.Mount("coppice", dir, "tmpfs", unix.MS_NOSUID, options)
	}
	if err != nil {
		return &fs.PathError{Op: "mount tmpfs on", Path: dir, Err: err}
	}
	return nil
}

func bind(path, to string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(path, to, "", unix.MS_BIND, ""); err != nil {
		return &fs.PathError{Op: "bind", Path: path, Err: err}
	}
	return nil
}

// changeRoot makes dir the root, and drops what was. An initramfs cannot be dropped (pivot_root(2)): it is covered, as
// the change to the real root does it.
func changeRoot(dir string) error {
	if err := unix.Chdir(dir); err != nil {
		return &fs.PathError{Op: "chdir", Path: dir, Err: err}
	}
	err := unix.PivotRoot(".", ".")
	if err == nil {
		err = unix.Unmount(".", unix.MNT_DETACH)
	} else if errors.Is(err, unix.EINVAL) {
		err = unix.Mount(".", "/", "", unix.MS_MOVE, "")
	}
	if err == nil {
		err = unix.Chroot(".")
	}
	if err == nil {
		err = unix.Chdir("/")
	}
	if err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	return nil
}

// copyTree copies what path leads to, if anything; left is how many bytes may still be copied.
func copyTree(path, to string, left *int64) error {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.Mode().IsRegular():
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		return copyFile(path, to, st.Mode().Perm(), left)
	case !st.IsDir():
		return nil
	}
	if err := os.MkdirAll(to, st.Mode().Perm()); err != nil {
		return err
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := copyTree(filepath.Join(path, e.Name()), filepath.Join(to, e.Name()), left); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(path, to string, mode fs.FileMode, left *int64) error {
	src, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	n, err := io.Copy(dst, io.LimitReader(src, *left+1))
	if *left -= n; err == nil && *left < 0 {
		err = fmt.Errorf("copy %s: the files have more than %d bytes together", path, maxFiles)
	}
	return errors.Join(err, dst.Close())
}
