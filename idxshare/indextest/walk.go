package indextest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Record is what lstat(2) and readlink(2) tell of a file.
type Record struct {
	Inode               uint64
	Mode, UID, GID      uint32
	Links               uint32
	Rdev                uint64
	Size                int64 // bytes
	Blocks              int64 // 512-byte units
	Atime, Mtime, Ctime int64 // nanoseconds since 1970
	Target              string
}

// Walk tells what is below a mount point, by path from there on: "/" is the mount point itself. It reads no content. Mount it with noatime, or what it
// tells is not what it leaves. It does not enter what is mounted below.
func Walk(mount string) (map[string]Record, error) {
	found := map[string]Record{}
	top, err := lstat(mount)
	if err != nil {
		return nil, fmt.Errorf("walk %s: %w", mount, err)
	}
	if err := walk(found, mount, "/", top); err != nil {
		return nil, fmt.Errorf("walk %s: %w", mount, err)
	}
	return found, nil
}

func walk(found map[string]Record, path, name string, st unix.Stat_t) error {
	r := Record{
		Inode: st.Ino, Mode: st.Mode, UID: st.Uid, GID: st.Gid, Links: uint32(st.Nlink), Rdev: st.Rdev, Size: st.Size, Blocks: st.Blocks,
		Atime: st.Atim.Nano(), Mtime: st.Mtim.Nano(), Ctime: st.Ctim.Nano(),
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		r.Target = target
	}
	found[name] = r
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	names, err := f.Readdirnames(-1)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	for _, child := range names {
		below := path + "/" + child
		sub, err := lstat(below)
		if err != nil {
			return err
		}
		if sub.Dev != st.Dev {
			continue
		}
		if err := walk(found, below, filepath.Join(name, child), sub); err != nil {
			return err
		}
	}
	return nil
}

func lstat(path string) (st unix.Stat_t, err error) {
	if err := unix.Lstat(path, &st); err != nil {
		return st, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	return st, nil
}
