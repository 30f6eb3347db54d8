package tree

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"coppice/image"
)

const (
	tarBlock   = 512
	tarMagicAt = 257
	tarMagic   = "ustar"
)

// compressions are what a tar may be packed in, by how it begins.
var compressions = []struct {
	magic  string
	unpack func(ctx context.Context, in io.Reader, out io.Writer) error
}{
	{"\x1f\x8b", func(_ context.Context, in io.Reader, out io.Writer) error {
		r, err := gzip.NewReader(in)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, r)
		return err
	}},
	{"\x28\xb5\x2f\xfd", func(_ context.Context, in io.Reader, out io.Writer) error {
		r, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128*mib))
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = io.Copy(out, r)
		return err
	}},
	{"BZh", func(_ context.Context, in io.Reader, out io.Writer) error {
		_, err := io.Copy(out, bzip2.NewReader(in))
		return err
	}},
	{"\xfd7zXZ\x00", unpackXZ},
}

// unpackXZ leaves that to the program of this name.
func unpackXZ(ctx context.Context, in io.Reader, out io.Writer) error {
	path, err := exec.LookPath("xz")
	if err != nil {
		return fmt.Errorf("a tar that is packed by xz is read by that program, which is not there: install xz-utils: %w", err)
	}
	var said bytes.Buffer
	c := exec.CommandContext(ctx, path, "-dc")
	c.Stdin, c.Stdout, c.Stderr = in, out, &said
	if err := c.Run(); err != nil {
		return fmt.Errorf("xz: %w: %.300s", err, bytes.TrimSpace(said.Bytes()))
	}
	return nil
}

// IsTar reports whether a file looks like a tar, or like something compressed, which then should be one.
func IsTar(path string) (bool, error) {
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() {
		return false, err
	}
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	head := make([]byte, tarBlock)
	n, err := io.ReadFull(f, head)
	return looksLikeTar(head[:n]) || compression(head[:n]) >= 0, unlessEnd(err)
}

func looksLikeTar(head []byte) bool {
	return len(head) == tarBlock && string(head[tarMagicAt:][:len(tarMagic)]) == tarMagic
}

// compression returns the number of a compression, or -1.
func compression(head []byte) int {
	for i, c := range compressions {
		if bytes.HasPrefix(head, []byte(c.magic)) {
			return i
		}
	}
	return -1
}

// tarball lists a tar.
type tarball struct {
	tree  *Tree
	file  *os.File
	info  os.FileInfo
	size  int64
	nodes map[string]*Node
	said  map[string]bool // paths that have an entry of their own; others only have something in them
}

// Tar lists a tar, plain or compressed by gzip, zstd, bzip2 or xz. What is compressed is unpacked to a file in the directory scratch, which is
// gone when the tree is closed.
func Tar(ctx context.Context, path, scratch string) (*Tree, error) {
	t, err := openTar(ctx, path, scratch)
	if err != nil {
		return nil, fmt.Errorf("read tar %s: %w", path, ended(ctx, err))
	}
	return t, nil
}

func openTar(ctx context.Context, path, scratch string) (*Tree, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	b := &tarball{tree: &Tree{Label: path, closers: []io.Closer{f}}, file: f, nodes: map[string]*Node{}, said: map[string]bool{}}
	b.tree.open, b.tree.unchanged = b.open, func() error { return b.check(path) }
	if b.info, err = f.Stat(); err == nil {
		b.size = b.info.Size()
		err = b.unpack(ctx, scratch)
	}
	if err == nil {
		err = b.list(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, b.tree.Close())
	}
	return b.tree, nil
}

// unpack makes the file that is read one that is not compressed.
func (b *tarball) unpack(ctx context.Context, scratch string) error {
	head := make([]byte, tarBlock)
	n, err := b.file.ReadAt(head, 0)
	packed := compression(head[:n])
	if packed < 0 || unlessEnd(err) != nil {
		return unlessEnd(err)
	}
	plain, err := scratchFile(scratch)
	if err != nil {
		return err
	}
	out := &holeWriter{f: plain}
	err = compressions[packed].unpack(ctx, &contextReader{ctx, bufio.NewReaderSize(b.file, mib)}, out)
	b.tree.closers = append(b.tree.closers, plain)
	b.file, b.size = plain, out.at
	if err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	if n, err = plain.ReadAt(head, 0); unlessEnd(err) != nil {
		return err
	}
	if !looksLikeTar(head[:n]) {
		return fmt.Errorf("is compressed, and holds no tar: a disk has to be unpacked first: %w", image.ErrBadOption)
	}
	return plain.Truncate(out.at)
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

// Read reads on.
func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

func (b *tarball) check(path string) error {
	info, err := os.Stat(path)
	if err == nil && (info.Size() != b.info.Size() || !info.ModTime().Equal(b.info.ModTime())) {
		err = fmt.Errorf("read tar %s: %w", path, image.ErrChanged)
	}
	return err
}

// counter counts what is read.
type counter struct {
	r  io.Reader
	at int64
}

// Read reads on.
func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.at += int64(n)
	return n, err
}

// list reads the tar from its beginning to its end.
func (b *tarball) list(ctx context.Context) error {
	in := &counter{r: bufio.NewReaderSize(&contextReader{ctx, io.NewSectionReader(b.file, 0, b.size)}, mib)}
	r := tar.NewReader(in)
	end := int64(0)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = b.entry(h, end)
		}
		if err == nil {
			_, err = io.Copy(io.Discard, r)
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("is cut short at byte %d, in the entry at byte %d: %w", b.size, end, image.ErrBadOption)
		}
		if err != nil {
			return fmt.Errorf("behind byte %d: %w", end, err)
		}
		end = roundUp(in.at, tarBlock)
	}
	last := make([]byte, tarBlock)
	if _, err := b.file.ReadAt(last, end); err != nil || !isZero(last) {
		return fmt.Errorf("is cut short at byte %d: its end is missing: %w", b.size, errors.Join(unlessEnd(err), image.ErrBadOption))
	}
	b.finish()
	return nil
}

// finish makes the directories that have no entry of their own, and lists all.
func (b *tarball) finish() {
	for _, path := range slices.Collect(maps.Keys(b.nodes)) {
		b.tree.names = append(b.tree.names, name{path, b.nodes[path]})
	}
	newest := b.tree.newest()
	for path, n := range b.nodes {
		if !b.said[path] {
			n.Seconds = newest
		}
	}
	b.tree.finish()
}

// entry takes an entry that begins at a byte.
func (b *tarball) entry(h *tar.Header, at int64) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	path, err := cleanPath(h.Name)
	if err != nil {
		return err
	}
	fail := func(err error) error { return fmt.Errorf("%s: %w", show(path), err) }
	n, err := b.node(h, at)
	if err != nil {
		return fail(err)
	}
	if err := b.parents(path); err != nil {
		return err
	}
	if old := b.nodes[path]; old != nil {
		if !old.isDir() || !n.isDir() {
			return fail(fmt.Errorf("is there twice: %w", image.ErrBadOption))
		}
		*old = *n // a directory may be said again
		n = old
	}
	b.nodes[path], b.said[path] = n, true
	return nil
}

// cleanPath refuses what leads out of the tree.
func cleanPath(path string) (string, error) {
	bad := func(why string) (string, error) {
		return "", fmt.Errorf("%s: %s: %w", show(path), why, image.ErrBadOption)
	}
	if strings.HasPrefix(path, "/") {
		return bad("an absolute path: make the tar with paths from its directory on (tar -C DIR .)")
	}
	var parts []string
	for part := range strings.SplitSeq(path, "/") {
		switch part {
		case "", ".":
		case "..":
			return bad("leads out of the tree")
		default:
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, "/"), nil
}

// parents sees to it that a path is in a directory.
func (b *tarball) parents(path string) error {
	for path != "" {
		path, _ = split(path)
		n := b.nodes[path]
		if n == nil {
			b.nodes[path] = &Node{Mode: unix.S_IFDIR | 0o755}
			continue
		}
		if !n.isDir() {
			return fmt.Errorf("%s: is a %s, and has something in it: %w", show(path), kindName(n.Mode), image.ErrBadOption)
		}
	}
	return nil
}

var tarKinds = map[byte]uint32{
	tar.TypeReg: unix.S_IFREG, tar.TypeGNUSparse: unix.S_IFREG, tar.TypeSymlink: unix.S_IFLNK, tar.TypeChar: unix.S_IFCHR,
	tar.TypeBlock: unix.S_IFBLK, tar.TypeDir: unix.S_IFDIR, tar.TypeFifo: unix.S_IFIFO,
}

func (b *tarball) node(h *tar.Header, at int64) (*Node, error) {
	if h.Typeflag == tar.TypeLink {
		return b.linked(h)
	}
	kind := tarKinds[h.Typeflag]
	if kind == 0 {
		return nil, fmt.Errorf("entries of type %q are not understood: %w", h.Typeflag, image.ErrBadOption)
	}
	if h.Uid < 0 || h.Uid > math.MaxUint32 || h.Gid < 0 || h.Gid > math.MaxUint32 || h.Devmajor < 0 || h.Devmajor > math.MaxUint32 ||
		h.Devminor < 0 || h.Devminor > math.MaxUint32 {
		return nil, fmt.Errorf("owner %d:%d or device %d:%d does not exist: %w", h.Uid, h.Gid, h.Devmajor, h.Devminor, image.ErrBadOption)
	}
	n := &Node{Mode: kind | uint32(h.Mode)&0o7777, UID: uint32(h.Uid), GID: uint32(h.Gid), Seconds: h.ModTime.Unix(), Nanoseconds: uint32(h.ModTime.Nanosecond()),
		at: uint64(at)}
	switch kind {
	case unix.S_IFREG:
		n.Size = h.Size
	case unix.S_IFLNK:
		n.Target, n.Mode = h.Linkname, kind|0o777
	case unix.S_IFCHR, unix.S_IFBLK:
		n.Major, n.Minor = uint32(h.Devmajor), uint32(h.Devminor)
	}
	var err error
	n.Xattrs, err = paxXattrs(h.PAXRecords)
	return n, err
}

// linked returns what a hard link leads to.
func (b *tarball) linked(h *tar.Header) (*Node, error) {
	to, err := cleanPath(h.Linkname)
	if err != nil {
		return nil, err
	}
	n := b.nodes[to]
	if n == nil || n.isDir() {
		return nil, fmt.Errorf("is a hard link to %s, which is no file before it: %w", show(to), image.ErrBadOption)
	}
	return n, nil
}

// paxXattrs returns the attributes that an entry has in the way of GNU tar and star.
func paxXattrs(records map[string]string) ([]Xattr, error) {
	const prefix, selinux = "SCHILY.xattr.", "RHT.security.selinux"
	var all []Xattr
	for _, key := range slices.Sorted(maps.Keys(records)) {
		attr, found := strings.CutPrefix(key, prefix)
		value := []byte(records[key])
		switch {
		case strings.HasPrefix(key, "SCHILY.acl."):
			return nil, fmt.Errorf("access control lists as text are not understood: make the tar with --xattrs --xattrs-include='*', and without --acls: %w", image.ErrBadOption)
		case key == selinux && records[prefix+"security.selinux"] == "":
			attr, value = "security.selinux", append(value, 0)
		case !found || !isKept(attr):
			continue
		}
		if err := checkXattr(attr, value); err != nil {
			return nil, err
		}
		all = append(all, Xattr{attr, value})
	}
	return all, nil
}

// open reads an entry again.
func (b *tarball) open(n *Node) (io.ReadCloser, error) {
	at := int64(n.at)
	r := tar.NewReader(bufio.NewReader(io.NewSectionReader(b.file, at, b.size-at)))
	h, err := r.Next()
	if err != nil || h.Size != n.Size {
		return nil, errors.Join(err, image.ErrChanged)
	}
	return io.NopCloser(r), nil
}
