package indextest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// Tree is a directory whose files are changed at random. What is drawn decides all of it, so that a sequence that shows a fault is made smaller by rapid, if every
// one begins with the same files.
type Tree struct {
	dir   string
	dirs  []string // relative paths that are there, or were; "." first
	files []string // of everything else
	open  []*os.File
}

// NewTree takes over a directory with what is in it.
func NewTree(dir string) (*Tree, error) {
	t := &Tree{dir: dir}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		switch {
		case err != nil:
			return err
		case d.Name() == "lost+found":
			return filepath.SkipDir
		case d.IsDir():
			t.dirs = append(t.dirs, name)
		default:
			t.files = append(t.files, name)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("take over %s: %w", dir, err)
	}
	return t, nil
}

// Close closes the files that were deleted while they were open.
func (t *Tree) Close() error {
	var errs []error
	for _, f := range t.open {
		errs = append(errs, f.Close())
	}
	t.open = nil
	return errors.Join(errs...)
}

// refusals are what a file system may say to an operation that was drawn without looking.
var refusals = []unix.Errno{
	unix.ENOENT, unix.EEXIST, unix.ENOTEMPTY, unix.ENOTDIR, unix.EISDIR, unix.EINVAL, unix.ENOSPC, unix.ENAMETOOLONG, unix.ELOOP, unix.EMLINK, unix.E2BIG,
	unix.EOPNOTSUPP, unix.ENXIO, unix.EFBIG, unix.EBUSY, unix.EACCES,
}

// operations are what a step may be. Their order is part of what a drawn number means.
var operations = []struct {
	name string
	do   func(*Tree, *rapid.T) error
}{
	{"create", (*Tree).create},
	{"append", (*Tree).append},
	{"overwrite", (*Tree).overwrite},
	{"truncate", (*Tree).truncate},
	{"rename", (*Tree).rename},
	{"rename directory", (*Tree).renameDir},
	{"exchange", (*Tree).exchange},
	{"link", (*Tree).link},
	{"unlink", (*Tree).unlink},
	{"mkdir", (*Tree).mkdir},
	{"rmdir", (*Tree).rmdir},
	{"remove tree", (*Tree).removeTree},
	{"symlink", (*Tree).symlink},
	{"xattr", (*Tree).xattr},
	{"chmod", (*Tree).chmod},
	{"chown", (*Tree).chown},
	{"utimes", (*Tree).utimes},
	{"sparse", (*Tree).sparse},
	{"fallocate", (*Tree).fallocate},
	{"punch", (*Tree).punch},
	{"many", (*Tree).many},
	{"few", (*Tree).few},
	{"reuse", (*Tree).reuse},
	{"node", (*Tree).node},
	{"orphan", (*Tree).orphan},
	{"replace", (*Tree).replace},
	{"remap", (*Tree).remap},
}

// Mutate does some operations, 1 to limit. What the file system refuses because it cannot be done, as a rename into nowhere, is passed over.
func (t *Tree) Mutate(rt *rapid.T, limit int) {
	for range rapid.IntRange(1, limit).Draw(rt, "operations") {
		o := operations[rapid.IntRange(0, len(operations)-1).Draw(rt, "operation")]
		if err := o.do(t, rt); err != nil && !refused(err) {
			rt.Fatalf("%s: %v", o.name, err)
		}
	}
}

func refused(err error) bool {
	for _, e := range refusals {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (t *Tree) path(name string) string { return t.dir + "/" + name }

// hostile are names that many a program stumbles over.
var hostile = []string{
	"-rf", " ", "new\nline", "tab\there", "\xff\xfe\x80", "ü", "é", "e\u0301", "%s%n", "*", "?[a-z]", `back\slash`, `"quotes'`, "$(reboot)", "..hidden", "...", "\x01\x1b[31m",
	strings.Repeat("x", 255), strings.Repeat("ä", 127), "name.with.dots", "\u202etxt.exe", "a:b", "~", "#", "CON",
}

// name draws the name of a file in one of the directories. There are few enough of them that they come again.
func (t *Tree) name(rt *rapid.T) string {
	var base string
	if rapid.IntRange(0, 3).Draw(rt, "hostile") == 0 {
		base = rapid.SampledFrom(hostile).Draw(rt, "name")
	} else {
		base = fmt.Sprintf("f%d", rapid.IntRange(0, 40).Draw(rt, "name"))
	}
	return filepath.Join(t.someDir(rt), base)
}

func (t *Tree) someDir(rt *rapid.T) string {
	return t.dirs[rapid.IntRange(0, len(t.dirs)-1).Draw(rt, "directory")]
}

// some draws a file that is not a directory, as far as is known.
func (t *Tree) some(rt *rapid.T) string {
	if len(t.files) == 0 {
		return "none"
	}
	return t.files[rapid.IntRange(0, len(t.files)-1).Draw(rt, "file")]
}

// any draws a file or a directory.
func (t *Tree) any(rt *rapid.T) string {
	if rapid.IntRange(0, 3).Draw(rt, "kind") == 0 {
		return t.someDir(rt)
	}
	return t.some(rt)
}

// regular opens a regular file that was drawn for writing.
func (t *Tree) regular(rt *rapid.T, flags int) (*os.File, error) {
	name := t.some(rt)
	st, err := os.Lstat(t.path(name))
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, unix.EINVAL
	}
	return os.OpenFile(t.path(name), flags|unix.O_NOFOLLOW, 0)
}

// sizes are around where a file changes how it lies: in its inode, in a block, in more extents.
var sizes = []int{0, 1, 59, 60, 61, 150, 160, 1023, 1024, 4095, 4096, 4097, 12 << 10, 64 << 10, 200<<10 + 7}

func content(rt *rapid.T) []byte {
	p := make([]byte, rapid.SampledFrom(sizes).Draw(rt, "size"))
	r := rand.NewChaCha8([32]byte{byte(rapid.IntRange(0, 255).Draw(rt, "content"))})
	_, _ = r.Read(p) // which never fails
	return p
}

func offset(rt *rapid.T) int64 { return int64(rapid.IntRange(0, 256<<10).Draw(rt, "offset")) }

func writeNew(path string, p []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(p)
	return errors.Join(err, f.Close())
}

func (t *Tree) create(rt *rapid.T) error {
	name := t.name(rt)
	t.files = append(t.files, name)
	return writeNew(t.path(name), content(rt))
}

func (t *Tree) append(rt *rapid.T) error {
	f, err := t.regular(rt, os.O_WRONLY|os.O_APPEND)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(content(rt))
	return err
}

func (t *Tree) overwrite(rt *rapid.T) error {
	f, err := t.regular(rt, os.O_WRONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return err
	}
	p := content(rt)
	_, err = f.WriteAt(p[:min(int64(len(p)), st.Size())], 0)
	return err
}

// remap writes into a file by way of memory, and puts its time back: only its blocks, and the time of change, tell.
func (t *Tree) remap(rt *rapid.T) error {
	f, err := t.regular(rt, os.O_RDWR)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return err
	}
	p, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	p[len(p)/2] ^= 0x55
	if err := errors.Join(unix.Msync(p, unix.MS_SYNC), unix.Munmap(p)); err != nil {
		return err
	}
	return os.Chtimes(f.Name(), st.ModTime(), st.ModTime())
}

func (t *Tree) truncate(rt *rapid.T) error {
	f, err := t.regular(rt, os.O_WRONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Truncate(offset(rt))
}

func (t *Tree) sparse(rt *rapid.T) error {
	f, err := t.regular(rt, os.O_WRONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	for i := range int64(rapid.IntRange(1, 12).Draw(rt, "pieces")) {
		if _, err := f.WriteAt([]byte("x"), offset(rt)+i*rapid.SampledFrom([]int64{8 << 10, 256 << 10, 4 << 20}).Draw(rt, "distance")); err != nil {
			return err
		}
	}
	return nil
}

func (t *Tree) fallocate(rt *rapid.T) error {
	f, err := t.regular(rt, os.O_WRONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	mode := rapid.SampledFrom([]uint32{0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE, unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE}).Draw(rt, "mode")
	return unix.Fallocate(int(f.Fd()), mode, offset(rt), 1+offset(rt))
}

func (t *Tree) punch(rt *rapid.T) error {
	f, err := t.regular(rt, os.O_WRONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	if rapid.Bool().Draw(rt, "collapse") {
		return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_COLLAPSE_RANGE, offset(rt)&^4095, 4096)
	}
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset(rt), 1+offset(rt)/4)
}

func (t *Tree) rename(rt *rapid.T) error {
	from, to := t.some(rt), t.name(rt)
	t.files = append(t.files, to)
	return os.Rename(t.path(from), t.path(to))
}

func (t *Tree) replace(rt *rapid.T) error { return os.Rename(t.path(t.some(rt)), t.path(t.some(rt))) }

func (t *Tree) exchange(rt *rapid.T) error {
	a, b := t.some(rt), t.some(rt)
	return unix.Renameat2(unix.AT_FDCWD, t.path(a), unix.AT_FDCWD, t.path(b), unix.RENAME_EXCHANGE)
}

func (t *Tree) renameDir(rt *rapid.T) error {
	from, to := t.someDir(rt), t.name(rt)
	if from == "." {
		return nil
	}
	if err := os.Rename(t.path(from), t.path(to)); err != nil {
		return err
	}
	moved := func(list []string) {
		for i, name := range list {
			if name == from || strings.HasPrefix(name, from+"/") {
				list[i] = to + name[len(from):]
			}
		}
	}
	moved(t.dirs)
	moved(t.files)
	return nil
}

func (t *Tree) link(rt *rapid.T) error {
	from, to := t.some(rt), t.name(rt)
	t.files = append(t.files, to)
	err := os.Link(t.path(from), t.path(to))
	if st, statErr := os.Lstat(t.path(from)); errors.Is(err, unix.EPERM) && statErr == nil && st.IsDir() {
		return nil // an exchange of names has made a directory of it
	}
	return err
}

func (t *Tree) unlink(rt *rapid.T) error { return unix.Unlink(t.path(t.some(rt))) }

func (t *Tree) mkdir(rt *rapid.T) error {
	name := t.name(rt)
	if strings.Count(name, "/") > 6 {
		return nil
	}
	if err := os.Mkdir(t.path(name), 0o755); err != nil {
		return err
	}
	t.dirs = append(t.dirs, name)
	return nil
}

func (t *Tree) rmdir(rt *rapid.T) error {
	name := t.someDir(rt)
	if name == "." {
		return nil
	}
	return unix.Rmdir(t.path(name))
}

func (t *Tree) removeTree(rt *rapid.T) error {
	name := t.someDir(rt)
	if name == "." {
		return nil
	}
	return os.RemoveAll(t.path(name))
}

func (t *Tree) symlink(rt *rapid.T) error {
	name := t.name(rt)
	t.files = append(t.files, name)
	target := strings.Repeat("t/", rapid.SampledFrom([]int{1, 29, 30, 31, 60, 500, 2000}).Draw(rt, "length"))
	return os.Symlink(target[:len(target)-1], t.path(name))
}

func (t *Tree) xattr(rt *rapid.T) error {
	name := fmt.Sprintf("user.a%d", rapid.IntRange(0, 3).Draw(rt, "attribute"))
	path := t.path(t.any(rt))
	st, err := os.Lstat(path)
	if err != nil || st.Mode()&os.ModeSymlink != 0 || !st.Mode().IsRegular() && !st.IsDir() {
		return err // only these two have attributes of users
	}
	size := rapid.SampledFrom([]int{-1, 0, 10, 60, 500, 3000}).Draw(rt, "size")
	if size >= 0 {
		return unix.Lsetxattr(path, name, []byte(strings.Repeat("v", size)), 0)
	}
	if err := unix.Lremovexattr(path, name); err != unix.ENODATA {
		return err
	}
	return nil
}

func (t *Tree) chmod(rt *rapid.T) error {
	path := t.path(t.any(rt))
	if st, err := os.Lstat(path); err != nil || st.Mode()&os.ModeSymlink != 0 {
		return err
	}
	return unix.Chmod(path, rapid.Uint32Range(0, 0o7777).Draw(rt, "mode"))
}

func (t *Tree) chown(rt *rapid.T) error {
	id := rapid.SampledFrom([]int{0, 1000, 65534, 65536, 1<<32 - 2})
	return os.Lchown(t.path(t.any(rt)), id.Draw(rt, "uid"), id.Draw(rt, "gid"))
}

func (t *Tree) utimes(rt *rapid.T) error {
	// From 1901 on, and behind 2038, where further bits begin.
	moment := rapid.Int64Range(-1<<31, 1<<32)
	times := []unix.Timespec{
		{Sec: moment.Draw(rt, "atime"), Nsec: rapid.Int64Range(0, int64(time.Second)-1).Draw(rt, "nanoseconds")},
		{Sec: moment.Draw(rt, "mtime"), Nsec: rapid.Int64Range(0, int64(time.Second)-1).Draw(rt, "nanoseconds")},
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, t.path(t.any(rt)), times, unix.AT_SYMLINK_NOFOLLOW)
}

// many makes a directory grow, so that it gets a hash tree and its blocks are split.
func (t *Tree) many(rt *rapid.T) error {
	dir := t.someDir(rt)
	n := rapid.IntRange(100, 500).Draw(rt, "files")
	for i := range n {
		name := filepath.Join(dir, fmt.Sprintf("many-%0*d", 20+i%3*20, i))
		f, err := os.OpenFile(t.path(name), os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
		if err != nil {
			return err
		}
		f.Close()
		if i%50 == 0 {
			t.files = append(t.files, name)
		}
	}
	return nil
}

// few deletes every nth file of a directory.
func (t *Tree) few(rt *rapid.T) error {
	dir := t.path(t.someDir(rt))
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	n := rapid.IntRange(1, 5).Draw(rt, "every")
	for i, e := range entries {
		if i%n == 0 && !e.IsDir() {
			if err := unix.Unlink(dir + "/" + e.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}

// reuse deletes a file and creates another kind of file at once, which mostly gets its inode.
func (t *Tree) reuse(rt *rapid.T) error {
	old := t.some(rt)
	if err := unix.Unlink(t.path(old)); err != nil {
		return err
	}
	if rapid.Bool().Draw(rt, "same name") {
		return writeNew(t.path(old), content(rt))
	}
	return t.create(rt)
}

func (t *Tree) node(rt *rapid.T) error {
	name := t.name(rt)
	t.files = append(t.files, name)
	mode := rapid.SampledFrom([]uint32{unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK}).Draw(rt, "mode")
	dev := unix.Mkdev(rapid.SampledFrom([]uint32{1, 8, 259, 4095}).Draw(rt, "major"), rapid.SampledFrom([]uint32{3, 255, 256, 1 << 19}).Draw(rt, "minor"))
	return unix.Mknod(t.path(name), mode|0o600, int(dev))
}

// orphan deletes a file that stays open.
func (t *Tree) orphan(rt *rapid.T) error {
	f, err := os.OpenFile(t.path(t.name(rt)), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	t.open = append(t.open, f)
	_, err = f.Write(content(rt))
	return errors.Join(err, unix.Unlink(f.Name()))
}
