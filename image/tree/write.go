package tree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"coppice/image"
)

// lostFound is the directory that e2fsprogs makes in every file system.
const lostFound = "lost+found"

// writer writes files of a tree to a file system.
type writer struct {
	*debugfs
	tree     *Tree
	content  *os.File // what debugfs reads as contentPath
	cwd      string
	made     map[*Node]uint64
	fresh    bool // the file system has just been made
	written  int64
	progress func(written int64)
}

// create makes names in their order: directories first, so that they lie together.
func (w *writer) create(names []name) error {
	for _, n := range names {
		if n.isDir() {
			if err := w.directory(n); err != nil {
				return fmt.Errorf("write %s: %w", show(n.path), err)
			}
		}
	}
	for _, n := range names {
		if !n.isDir() {
			if err := w.file(n); err != nil {
				return fmt.Errorf("write %s: %w", show(n.path), err)
			}
		}
	}
	_, err := w.do()
	return err
}

func (w *writer) enter(dir string) error {
	if w.cwd == dir {
		return nil
	}
	w.cwd = dir
	return w.add("cd", "/"+dir)
}

func (w *writer) directory(n name) error {
	if n.path == "" {
		return w.describe("<2>", n.Node)
	}
	dir, base := split(n.path)
	if err := w.enter(dir); err != nil {
		return err
	}
	if n.path != lostFound || !w.fresh {
		if err := w.add("mkdir", base); err != nil {
			return err
		}
	}
	return w.describe("./"+base, n.Node)
}

func (w *writer) file(n name) error {
	dir, base := split(n.path)
	if err := w.enter(dir); err != nil {
		return err
	}
	if inode := w.made[n.Node]; inode != 0 {
		return w.link(inode, base)
	}
	inode, err := w.make(n, base)
	if err != nil {
		return err
	}
	spec := "./" + base
	if inode != 0 {
		spec = fmt.Sprintf("<%d>", inode)
	}
	if err := w.describe(spec, n.Node); err != nil || n.Node.names == 1 {
		return err
	}
	if inode == 0 {
		return fmt.Errorf("a %s with several names cannot be written: %w", kindName(n.Mode), image.ErrBadOption)
	}
	w.made[n.Node] = inode
	return w.add("set_inode_field", spec, "links_count", strconv.Itoa(n.Node.names))
}

// make makes a file of whatever kind, and returns its inode where debugfs says it.
func (w *writer) make(n name, base string) (uint64, error) {
	switch n.kind() {
	case unix.S_IFREG:
		return w.regular(n, base)
	case unix.S_IFLNK:
		return 0, w.add("symlink", base, n.Target)
	case unix.S_IFIFO:
		return w.do("mknod", base, "p")
	case unix.S_IFCHR:
		return w.do("mknod", base, "c", strconv.Itoa(int(n.Major)), strconv.Itoa(int(n.Minor)))
	case unix.S_IFBLK:
		return w.do("mknod", base, "b", strconv.Itoa(int(n.Major)), strconv.Itoa(int(n.Minor)))
	}
	return w.socket(n, base)
}

// socket makes what debugfs cannot: a pipe that becomes a socket, and then gets an entry that says so.
func (w *writer) socket(n name, base string) (uint64, error) {
	inode, err := w.do("mknod", base, "p")
	if err != nil {
		return 0, err
	}
	spec := fmt.Sprintf("<%d>", inode)
	err = errors.Join(w.add("unlink", base), w.add("set_inode_field", spec, "mode", fmt.Sprintf("0%o", n.Mode)))
	if err != nil {
		return 0, err
	}
	return inode, w.link(inode, base)
}

// link gives a file another name. debugfs makes no room for it by itself.
func (w *writer) link(inode uint64, base string) error {
	if _, err := w.do(); err != nil {
		return err
	}
	_, err := w.do("ln", fmt.Sprintf("<%d>", inode), base)
	if err != nil && strings.Contains(err.Error(), "No free space in the directory") {
		if _, err = w.do("expand_dir", "."); err == nil {
			_, err = w.do("ln", fmt.Sprintf("<%d>", inode), base)
		}
	}
	return err
}

// regular copies a file's content.
func (w *writer) regular(n name, base string) (uint64, error) {
	from := contentPath
	if w.tree.host != "" {
		from = "./" + n.path
	} else if err := w.fetch(n.Node); err != nil {
		return 0, err
	}
	inode, err := w.do("write", from, base)
	if err == nil && inode == 0 {
		err = errors.New("debugfs made no file")
	}
	w.written += n.Size
	w.progress(w.written)
	return inode, err
}

// fetch copies a file's content to where debugfs can read it.
func (w *writer) fetch(n *Node) error {
	in, err := w.tree.open(n)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := w.content.Truncate(0); err != nil {
		return err
	}
	_, err = io.Copy(&holeWriter{f: w.content}, in)
	return errors.Join(err, w.content.Truncate(n.Size))
}

// describe writes all that a file is beside its content.
func (w *writer) describe(spec string, n *Node) error {
	for _, f := range fields(n) {
		if err := w.add("set_inode_field", spec, f.name, f.value); err != nil {
			return err
		}
	}
	for _, x := range n.Xattrs {
		if err := w.attribute(spec, x); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) attribute(spec string, x Xattr) error {
	_, err := w.content.WriteAt(x.Value, 0)
	if err := errors.Join(err, w.content.Truncate(int64(len(x.Value)))); err != nil {
		return err
	}
	_, err = w.do("ea_set", "-f", contentPath, spec, x.Name)
	if err != nil && strings.Contains(err.Error(), "Insufficient space to store extended attribute") {
		err = fmt.Errorf("its attributes have more than some 4 KiB: %w", image.ErrBadOption)
	}
	return err
}

type field struct{ name, value string }

// fields are the fields of an inode that do not follow from the content.
func fields(n *Node) []field {
	return []field{
		{"mode", fmt.Sprintf("0%o", n.Mode)}, {"uid", strconv.FormatUint(uint64(n.UID), 10)}, {"gid", strconv.FormatUint(uint64(n.GID), 10)},
		{"mtime", fmt.Sprintf("@%d", uint32(n.Seconds))}, {"mtime_extra", strconv.FormatUint(uint64(extraTime(n)), 10)},
	}
}

// extraTime has the nanoseconds, and the two bits that lead beyond the year 2038.
func extraTime(n *Node) uint32 {
	return n.Nanoseconds<<2 | uint32((n.Seconds-int64(int32(n.Seconds)))>>32)&3
}

const (
	firstTime = -1 << 31
	lastTime  = 1<<34 - 1<<31 - 1
	// mostDevices is what debugfs takes as number of a device.
	mostDevices = 1<<12 - 1
	mostMinors  = 1<<16 - 1
)

// check refuses what cannot be written.
func (n name) check() error {
	switch {
	case n.Seconds < firstTime || n.Seconds > lastTime:
		return fmt.Errorf("%s: ext4 has no time %d: %w", show(n.path), n.Seconds, image.ErrBadOption)
	case n.Major > mostDevices || n.Minor > mostMinors:
		return fmt.Errorf("%s: device %d:%d cannot be written: %w", show(n.path), n.Major, n.Minor, image.ErrBadOption)
	case n.kind() == unix.S_IFLNK && n.Target == "":
		return fmt.Errorf("%s: a symbolic link to nothing cannot be written: %w", show(n.path), image.ErrBadOption)
	case n.path == lostFound && !n.isDir():
		return fmt.Errorf("%s: a file system has a directory of that name, and not a %s: %w", show(n.path), kindName(n.Mode), image.ErrBadOption)
	case strings.ContainsAny(n.Target, "\n\r\x00"):
		return fmt.Errorf("%s: the target of this symbolic link has line breaks, which cannot be written: %w", show(n.path), image.ErrBadOption)
	case len(n.Target) >= maxSymlink:
		return fmt.Errorf("%s: a symbolic link's target has %d bytes, at most %d are fit: %w", show(n.path), len(n.Target), maxSymlink-1, image.ErrBadOption)
	}
	_, base := split(n.path)
	if len(base) > 255 {
		return fmt.Errorf("%s: a name has %d bytes, at most 255 are fit: %w", show(n.path), len(base), image.ErrBadOption)
	}
	return checkName(n.path)
}

func kindName(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFREG:
		return "file"
	case unix.S_IFLNK:
		return "symbolic link"
	case unix.S_IFIFO:
		return "pipe"
	case unix.S_IFSOCK:
		return "socket"
	}
	return "device"
}

// holeWriter writes a file from a byte on, and leaves holes where there are blocks of zeros. There must be nothing yet.
type holeWriter struct {
	f  *os.File
	at int64
}

var zeroBlock = make([]byte, blockSize)

// Write writes on.
func (h *holeWriter) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		n, zeros := run(p)
		if !zeros {
			if _, err := h.f.WriteAt(p[:n], h.at); err != nil {
				return total - len(p), err
			}
		}
		h.at += int64(n)
		p = p[n:]
	}
	return total, nil
}

// run returns how many bytes in front are zeros, or are not, in blocks.
func run(p []byte) (n int, zeros bool) {
	for n < len(p) {
		block := p[n:min(n+blockSize, len(p))]
		z := bytes.Equal(block, zeroBlock[:len(block)])
		if n > 0 && z != zeros {
			return n, zeros
		}
		zeros = z
		n += len(block)
	}
	return n, zeros
}

// scratchFile makes a file that is gone when it is closed, or the process ends.
func scratchFile(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "coppice-tree-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// ended prefers what the context says to what a program says that was killed.
func ended(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}
