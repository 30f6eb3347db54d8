package tree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"coppice/image"
)

// Compare reads two trees in full and fails where they differ. What e2fsprogs adds to a file system, an empty lost+found, may be missing in want.
func Compare(ctx context.Context, want, got *Tree) error { return compare(ctx, want, got, nil) }

// compare takes the times of some of want's nodes from others.
func compare(ctx context.Context, want, got *Tree, times map[*Node]*Node) error {
	gotNames := got.names
	if !want.has(lostFound) {
		gotNames = withoutLostFound(gotNames)
	}
	pairs, back := map[*Node]*Node{}, map[*Node]*Node{}
	for i, w := range want.names {
		if i >= len(gotNames) || gotNames[i].path != w.path {
			return fmt.Errorf("%s is not there as it should be", show(w.path))
		}
		g := gotNames[i]
		if p, b := pairs[w.Node], back[g.Node]; p != nil || b != nil {
			if p != g.Node || b != w.Node {
				return fmt.Errorf("%s is linked to something else", show(w.path))
			}
			continue
		}
		pairs[w.Node], back[g.Node] = g.Node, w.Node
		if what := difference(w.Node, g.Node, times[w.Node]); what != "" {
			return fmt.Errorf("%s has another %s", show(w.path), what)
		}
		if !w.isRegular() {
			continue
		}
		if err := errors.Join(ctx.Err(), compareContent(want, got, w.Node, g.Node)); err != nil {
			return fmt.Errorf("%s: %w", show(w.path), err)
		}
	}
	if len(gotNames) > len(want.names) {
		return fmt.Errorf("%s should not be there", show(gotNames[len(want.names)].path))
	}
	return nil
}

func (t *Tree) has(path string) bool {
	_, ok := t.find(path)
	return ok
}

func (t *Tree) find(path string) (name, bool) {
	i, ok := slices.BinarySearchFunc(t.names, path, func(n name, p string) int { return comparePaths(n.path, p) })
	if !ok {
		return name{}, false
	}
	return t.names[i], true
}

// withoutLostFound leaves an empty directory of that name out.
func withoutLostFound(names []name) []name {
	i := slices.IndexFunc(names, func(n name) bool { return n.path == lostFound })
	if i < 0 || !names[i].isDir() {
		return names
	}
	if i+1 < len(names) && len(names[i+1].path) > len(lostFound) && names[i+1].path[:len(lostFound)+1] == lostFound+"/" {
		return names
	}
	return slices.Concat(names[:i], names[i+1:])
}

// difference names what differs but for the content, where anything does. The time is want's, or that of another node.
func difference(want, got, time *Node) string {
	if time == nil {
		time = want
	}
	switch {
	case want.kind() != got.kind():
		return "kind: " + kindName(got.Mode) + ", not " + kindName(want.Mode)
	case want.Mode != got.Mode:
		return fmt.Sprintf("mode: %#o, not %#o", got.Mode, want.Mode)
	case want.UID != got.UID || want.GID != got.GID:
		return fmt.Sprintf("owner: %d:%d, not %d:%d", got.UID, got.GID, want.UID, want.GID)
	case time.Seconds != got.Seconds || time.Nanoseconds != got.Nanoseconds:
		return fmt.Sprintf("time: %d.%09d, not %d.%09d", got.Seconds, got.Nanoseconds, time.Seconds, time.Nanoseconds)
	case want.Size != got.Size:
		return fmt.Sprintf("size: %d, not %d: the tree may have been changed meanwhile", got.Size, want.Size)
	case want.Target != got.Target:
		return "target"
	case want.Major != got.Major || want.Minor != got.Minor:
		return fmt.Sprintf("device: %d:%d, not %d:%d", got.Major, got.Minor, want.Major, want.Minor)
	case !slices.EqualFunc(want.Xattrs, got.Xattrs, equalXattrs):
		return fmt.Sprintf("list of attributes, or values of them: %d, not %d", len(got.Xattrs), len(want.Xattrs))
	}
	return ""
}

func equalXattrs(a, b Xattr) bool { return a.Name == b.Name && bytes.Equal(a.Value, b.Value) }

const compareBytes = 256 << 10

func compareContent(want, got *Tree, w, g *Node) error {
	a, err := want.open(w)
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := got.open(g)
	if err != nil {
		return err
	}
	defer b.Close()
	p, q := make([]byte, compareBytes), make([]byte, compareBytes)
	for at := int64(0); ; at += compareBytes {
		n, err := io.ReadFull(a, p)
		m, gotErr := io.ReadFull(b, q)
		if err := errors.Join(unlessEnd(err), unlessEnd(gotErr)); err != nil {
			return err
		}
		if !bytes.Equal(p[:n], q[:m]) {
			return fmt.Errorf("other content behind byte %d: %w", at, image.ErrChanged)
		}
		if n < len(p) {
			if at+int64(n) != w.Size {
				return changed(w.path)
			}
			return nil
		}
	}
}

// unlessEnd is the error of a read, but for the end.
func unlessEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}
