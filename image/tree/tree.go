package tree

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Xattr is an extended attribute as the system calls have it.
type Xattr struct {
	Name  string
	Value []byte
}

// Node is a file of whatever kind, under one name or several.
type Node struct {
	Mode         uint32 // as in struct stat, with the kind of file
	UID, GID     uint32
	Seconds      int64 // of the last modification
	Nanoseconds  uint32
	Size         int64  // of a regular file, in bytes
	Target       string // of a symbolic link
	Major, Minor uint32 // of a device
	Xattrs       []Xattr

	names int
	path  string // the first one
	at    uint64 // where the tree's source has it
	extra bool   // whether it has a block for attributes
}

func (n *Node) kind() uint32    { return n.Mode & unix.S_IFMT }
func (n *Node) isDir() bool     { return n.kind() == unix.S_IFDIR }
func (n *Node) isRegular() bool { return n.kind() == unix.S_IFREG }

// name is one entry of a directory.
type name struct {
	path string // without a slash at either end; empty for the tree's root
	*Node
}

// Tree is a list of files, in an order in which every directory stands before what is in it. It reads their content when it is asked.
type Tree struct {
	// Label says what it was read from, for messages.
	Label string

	names []name
	// open opens the content of a regular file.
	open func(*Node) (io.ReadCloser, error)
	// unchanged fails where the source is known to have changed since it was listed. It may be nil.
	unchanged func() error
	// host is the directory that has the files by their paths, where there is one.
	host    string
	closers []io.Closer
}

// Close closes the source.
func (t *Tree) Close() error {
	var first error
	for _, c := range t.closers {
		if err := c.Close(); first == nil {
			first = err
		}
	}
	t.closers = nil
	return first
}

// comparePaths sorts as a walk does: a directory, then all that is in it, then what comes after it.
func comparePaths(a, b string) int {
	for i := range min(len(a), len(b)) {
		if a[i] == b[i] {
			continue
		}
		if a[i] == '/' || b[i] == '/' {
			return cmp.Compare(order(a[i]), order(b[i]))
		}
		return cmp.Compare(a[i], b[i])
	}
	return cmp.Compare(len(a), len(b))
}

func order(c byte) int {
	if c == '/' {
		return 0
	}
	return int(c) + 1
}

// finish sorts the names and tells each node its first one.
func (t *Tree) finish() {
	slices.SortFunc(t.names, func(a, b name) int { return comparePaths(a.path, b.path) })
	for i := range t.names {
		n := &t.names[i]
		if n.Node.names == 0 {
			n.Node.path = n.path
		}
		n.Node.names++
		slices.SortFunc(n.Xattrs, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	}
}

// isFirst reports whether this is the name that a node is made under; others are links to it.
func (n name) isFirst() bool { return n.Node.path == n.path }

// Files is the number of names.
func (t *Tree) Files() int { return len(t.names) }

// newest is the time of the last modification of all, in seconds.
func (t *Tree) newest() int64 {
	var newest int64
	for _, n := range t.names {
		newest = max(newest, n.Seconds)
	}
	return newest
}

// Bytes is how much is in the regular files.
func (t *Tree) Bytes() int64 {
	var bytes int64
	for _, n := range t.names {
		if n.isFirst() && n.isRegular() {
			bytes += n.Size
		}
	}
	return bytes
}

const blockSize = 4096

func blocksOf(bytes int64) int64 { return (bytes + blockSize - 1) / blockSize }

// blocks is the space that the content takes at most, in blocks.
func (t *Tree) blocks() int64 {
	var blocks int64
	inDir := map[string]int64{}
	for _, n := range t.names {
		if n.path != "" {
			dir, base := split(n.path)
			inDir[dir] += int64(8 + (len(base)+3)&^3)
		}
		if n.isFirst() {
			blocks += n.blocks()
		}
	}
	for _, bytes := range inDir {
		blocks += blocksOf(bytes * 5 / 4)
	}
	return blocks
}

func (n *Node) blocks() int64 {
	var blocks int64
	switch {
	case n.isRegular():
		blocks = blocksOf(n.Size)
		blocks += blocks / 1024 // extents, where they are many
	case n.isDir(), len(n.Target) >= fastSymlink:
		blocks = 1
	}
	if len(n.Xattrs) > 0 {
		blocks++
	}
	return blocks
}

// split returns the directory of a path, and its last part.
func split(path string) (dir, base string) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return "", path
	}
	return path[:i], path[i+1:]
}

// show is how a path is said to people.
func show(path string) string {
	if path == "" {
		return "/"
	}
	return fmt.Sprintf("%.300q", path)
}

// UUID returns an identifier that depends on nothing but what and seed.
func UUID(what, seed string) string {
	h := sha256.Sum256(fmt.Appendf(nil, "coppice %s\x00%s", what, seed))
	binary.BigEndian.PutUint16(h[6:], binary.BigEndian.Uint16(h[6:])&0x0fff|0x8000) // version 8: of one's own making
	h[8] = h[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", h[:4], h[4:6], h[6:8], h[8:10], h[10:16])
}
