package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"coppice/image"
)

// directory lists a directory of this machine.
type directory struct {
	tree  *Tree
	root  *os.Root
	dev   uint64
	links map[inodeKey]*Node
}

type inodeKey struct{ dev, ino uint64 }

// Directory lists a directory with all that is in it. Other file systems that are mounted in it are refused.
func Directory(ctx context.Context, path string) (*Tree, error) {
	t, err := scanDirectory(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("read directory %s: %w", path, err)
	}
	return t, nil
}

func scanDirectory(ctx context.Context, path string) (*Tree, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	d := &directory{tree: &Tree{Label: path, host: path, closers: []io.Closer{root}}, root: root, links: map[inodeKey]*Node{}}
	d.tree.open, d.tree.unchanged = d.open, d.unchanged
	if err := d.walk(ctx); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	d.tree.finish()
	return d.tree, nil
}

func (d *directory) walk(ctx context.Context) error {
	err := filepath.WalkDir(d.tree.host, func(full string, _ fs.DirEntry, err error) error {
		if err := errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		path := strings.TrimPrefix(strings.TrimPrefix(full, d.tree.host), "/")
		n, err := d.node(path)
		if err != nil {
			return err
		}
		d.tree.names = append(d.tree.names, name{path, n})
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", err, image.ErrChanged)
	}
	return err
}

// node reads what a path is, but for its content.
func (d *directory) node(path string) (*Node, error) {
	if err := checkName(path); err != nil {
		return nil, err
	}
	full := filepath.Join(d.tree.host, path)
	info, err := os.Lstat(full)
	if err != nil {
		return nil, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, fmt.Errorf("%s: no struct stat", full)
	}
	if path == "" {
		d.dev = st.Dev
	}
	n := &Node{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Seconds: st.Mtim.Sec, Nanoseconds: uint32(st.Mtim.Nsec), at: st.Ino}
	switch n.kind() {
	case unix.S_IFDIR:
		if st.Dev != d.dev {
			return nil, fmt.Errorf("%s: another file system is mounted there: build from a copy, or unmount it: %w", show(path), image.ErrBadOption)
		}
	case unix.S_IFREG:
		n.Size = st.Size
	case unix.S_IFLNK:
		n.Target, err = os.Readlink(full)
	case unix.S_IFCHR, unix.S_IFBLK:
		n.Major, n.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	}
	if err == nil && !n.isDir() && st.Nlink > 1 {
		key := inodeKey{st.Dev, st.Ino}
		if first := d.links[key]; first != nil {
			return first, nil
		}
		d.links[key] = n
	}
	if err == nil {
		n.Xattrs, err = readXattrs(full)
	}
	return n, err
}

// checkName refuses what a path cannot be for debugfs, whose commands are lines.
func checkName(path string) error {
	if strings.ContainsAny(path, "\n\r") {
		return fmt.Errorf("%s: names with line breaks cannot be written: %w", show(path), image.ErrBadOption)
	}
	return nil
}

// open opens a file that still is the one that was listed.
func (d *directory) open(n *Node) (io.ReadCloser, error) {
	f, err := d.root.OpenFile(n.path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	r := &listed{File: f, node: n}
	if err := r.check(); err != nil {
		f.Close()
		return nil, err
	}
	return r, nil
}

// unchanged looks whether all that was listed is as it was.
func (d *directory) unchanged() error {
	for _, n := range d.tree.names {
		info, err := os.Lstat(filepath.Join(d.tree.host, n.path))
		if err != nil || !n.isSame(info) {
			return changed(n.path)
		}
	}
	return nil
}

func changed(path string) error { return fmt.Errorf("%s: %w", show(path), image.ErrChanged) }

// isSame reports whether what was listed is what is there now.
func (n *Node) isSame(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && st.Ino == n.at && st.Mode == n.Mode && st.Mtim.Sec == n.Seconds && uint32(st.Mtim.Nsec) == n.Nanoseconds &&
		(!n.isRegular() || st.Size == n.Size)
}

// listed is a file that was listed. It fails at its end where it has changed since.
type listed struct {
	*os.File
	node *Node
}

func (l *listed) check() error {
	info, err := l.Stat()
	if err == nil && !l.node.isSame(info) {
		err = changed(l.node.path)
	}
	return err
}

// Read reads on.
func (l *listed) Read(p []byte) (int, error) {
	n, err := l.File.Read(p)
	if errors.Is(err, io.EOF) {
		if changed := l.check(); changed != nil {
			err = changed
		}
	}
	return n, err
}

// WriteTo would go round Read.
func (l *listed) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, struct{ io.Reader }{l}) }
