package idxshare

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"slices"
)

// ChangeKind says what became of a name.
type ChangeKind string

// What became of a name.
const (
	Added    ChangeKind = "added"
	Modified ChangeKind = "modified"
	Deleted  ChangeKind = "deleted"
	Renamed  ChangeKind = "renamed" // and perhaps modified, too
)

// Change is what became of a name. What lies in a directory that was renamed is not told of for that alone, and of a directory only what its permissions and owner
// are, and no other time of change or size: what was added to it or deleted is told of by itself.
type Change struct {
	Kind   ChangeKind
	Volume int
	Inode  uint64 // of a name that was deleted: what it had
	Mode   uint32 // st_mode, likewise
	Path   []byte // from the root of the volume; where it was, of what was deleted
	// OldPath is another path that the same file had: the one before it was renamed, or before a directory above it was. Nil: it had none.
	OldPath []byte
	OldSize int64 // bytes; 0 for what was added
	NewSize int64 // bytes; 0 for what was deleted
	// Content says that its content may be another, Attributes that its owner, permissions or extended attributes are. Both are false for what was added or deleted.
	Content, Attributes bool
}

// Changes calls fn with what differs between the base and the view, in order of volumes and paths. All of it is kept in memory. Without a delta there is nothing.
func (v *View) Changes(ctx context.Context, fn func(Change) error) error {
	if v.delta == nil {
		return nil
	}
	old, err := NewView(ctx, v.base, nil)
	if err != nil {
		return err
	}
	c := &changes{v: v, old: old, oldPaths: newPaths(old), newPaths: newPaths(v), inodes: map[place]*changedInode{}, gone: map[entryKey]*Change{}}
	if err := c.collect(ctx); err != nil {
		return err
	}
	list, err := c.list(ctx)
	if err != nil {
		return err
	}
	slices.SortFunc(list, func(a, b *Change) int {
		return cmp.Or(cmp.Compare(a.Volume, b.Volume), bytes.Compare(a.Path, b.Path), cmp.Compare(a.Kind, b.Kind))
	})
	for _, one := range list {
		if err := fn(*one); err != nil {
			return err
		}
	}
	return nil
}

type changes struct {
	v, old             *View
	oldPaths, newPaths *paths
	inodes             map[place]*changedInode
	found              []*Change
	gone               map[entryKey]*Change // names that were deleted
	came               []arrival
}

// changedInode is an inode with the names that it lost and got.
type changedInode struct {
	removed, added []Name
}

// entryKey is a name in a directory.
type entryKey struct {
	place
	name string
}

func keyOf(n Name) entryKey { return entryKey{place{n.Volume, n.Parent}, string(n.Name)} }

func (c *changes) at(volume int, inode uint64) *changedInode {
	p := place{volume, inode}
	i, ok := c.inodes[p]
	if !ok {
		i = &changedInode{}
		c.inodes[p] = i
	}
	return i
}

// sameInode tells whether an inode is still the same file.
func sameInode(was, now *File) bool {
	return was != nil && now != nil && was.Generation == now.Generation && was.Crtime == now.Crtime && was.Mode&ModeType == now.Mode&ModeType
}

// collect finds the inodes that are another, and the names that went and came.
func (c *changes) collect(ctx context.Context) error {
	return c.v.delta.Replaced(ctx, func(volume int, inode uint64, directory bool) error {
		switch {
		case inode == 0: // the file system's own
			return nil
		case !directory:
			c.at(volume, inode)
			return nil
		}
		was, err := c.old.fileOrNil(ctx, place{volume, inode})
		if err != nil {
			return err
		}
		now, err := c.v.fileOrNil(ctx, place{volume, inode})
		if err != nil {
			return err
		}
		return c.names(ctx, volume, inode, sameInode(was, now))
	})
}

// names compares the names of a directory before and now. Where it is not the same directory, none of them is the same.
func (c *changes) names(ctx context.Context, volume int, inode uint64, same bool) error {
	before := map[string]uint64{}
	err := c.old.Directory(ctx, volume, inode, func(n Name) error {
		before[string(n.Name)] = n.Inode
		return nil
	})
	if err != nil {
		return err
	}
	err = c.v.Directory(ctx, volume, inode, func(n Name) error {
		if had, ok := before[string(n.Name)]; ok && same && had == n.Inode {
			kept, err := c.keptInode(ctx, volume, had)
			if err != nil {
				return err
			}
			if kept {
				delete(before, string(n.Name))
				return nil
			}
		}
		i := c.at(volume, n.Inode)
		i.added = append(i.added, n)
		return nil
	})
	for name, had := range before {
		i := c.at(volume, had)
		i.removed = append(i.removed, Name{Volume: volume, Parent: inode, Name: []byte(name), Inode: had})
	}
	return err
}

// keptInode tells whether the file behind an inode is the one that it was.
func (c *changes) keptInode(ctx context.Context, volume int, inode uint64) (bool, error) {
	if !has(c.v.files, volume, inode) {
		return true, nil
	}
	was, err := c.old.fileOrNil(ctx, place{volume, inode})
	if err != nil {
		return false, err
	}
	now, err := c.v.fileOrNil(ctx, place{volume, inode})
	return sameInode(was, now), err
}

// list makes changes of what was collected.
func (c *changes) list(ctx context.Context) ([]*Change, error) {
	for p, i := range c.inodes {
		was, err := c.old.fileOrNil(ctx, p)
		if err != nil {
			return nil, err
		}
		now, err := c.v.fileOrNil(ctx, p)
		if err != nil {
			return nil, err
		}
		if err := c.inode(ctx, p, i, was, now); err != nil {
			return nil, err
		}
	}
	return c.paired(), nil
}

func (c *changes) inode(ctx context.Context, p place, i *changedInode, was, now *File) error {
	slices.SortFunc(i.removed, compareNames)
	slices.SortFunc(i.added, compareNames)
	removed, added := i.removed, i.added
	if sameInode(was, now) {
		content, attributes := differs(was, now, len(removed)+len(added) > 0)
		for len(removed) > 0 && len(added) > 0 {
			if err := c.tell(ctx, Change{Kind: Renamed, Content: content, Attributes: attributes}, &removed[0], &added[0], was, now); err != nil {
				return err
			}
			removed, added = removed[1:], added[1:]
		}
		if content || attributes {
			if err := c.kept(ctx, p, i.added, Change{Kind: Modified, Content: content, Attributes: attributes}, was, now); err != nil {
				return err
			}
		}
	}
	for _, n := range removed {
		if err := c.tell(ctx, Change{Kind: Deleted}, &n, nil, was, nil); err != nil {
			return err
		}
	}
	for _, n := range added {
		if err := c.tell(ctx, Change{Kind: Added}, nil, &n, nil, now); err != nil {
			return err
		}
	}
	return nil
}

func compareNames(a, b Name) int {
	return cmp.Or(cmp.Compare(a.Parent, b.Parent), bytes.Compare(a.Name, b.Name))
}

// differs tells what of a file is another. The time of change alone is one of attributes, unless names explain it; an inode of which nothing is another is in the delta because of its blocks.
func differs(was, now *File, names bool) (content, attributes bool) {
	attributes = was.Mode != now.Mode || was.UID != now.UID || was.GID != now.GID || was.Rdev != now.Rdev
	if now.IsDirectory() {
		return false, attributes
	}
	same, read := sameFile(was, now)
	known := len(was.Digest) > 0 && bytes.Equal(was.Digest, now.Digest) || now.Mode&ModeType != ModeRegular // that blocks have the same content again
	content = was.Size != now.Size || was.Mtime != now.Mtime || same && !names && !known || !bytes.Equal(was.Target, now.Target) ||
		len(was.Digest) > 0 && !bytes.Equal(was.Digest, now.Digest)
	if !content && !attributes && !same && !read && !names && was.Links == now.Links {
		attributes = true
	}
	return content, attributes
}

// kept tells of a change by every name that an inode had before and still has.
func (c *changes) kept(ctx context.Context, p place, added []Name, change Change, was, now *File) error {
	if root, err := c.v.root(p.volume); err == nil && root == p.inode {
		change.Volume, change.Inode, change.Mode, change.Path, change.OldSize, change.NewSize = p.volume, p.inode, now.Mode, []byte("/"), was.Size, now.Size
		c.found = append(c.found, &change)
		return nil
	}
	names, err := c.v.NamesOf(ctx, p.volume, p.inode)
	if err != nil {
		return err
	}
	for _, n := range names {
		if slices.ContainsFunc(added, func(a Name) bool { return compareNames(a, n) == 0 }) {
			continue
		}
		if err := c.tell(ctx, change, &n, &n, was, now); err != nil {
			return err
		}
	}
	return nil
}

// tell notes a change of a name: old is nil for what was added, now for what was deleted.
func (c *changes) tell(ctx context.Context, change Change, old, now *Name, was, is *File) error {
	var oldPath []byte
	if old != nil {
		path, err := c.oldPaths.of(ctx, *old)
		if err != nil && !errors.Is(err, errUnreachable) {
			return err
		}
		oldPath = bytes.Clone(path)
		change.Volume, change.Inode, change.Path = old.Volume, old.Inode, oldPath
		if was != nil {
			change.Mode, change.OldSize = was.Mode, was.Size
		}
	}
	if now != nil {
		path, err := c.newPaths.of(ctx, *now)
		if errors.Is(err, errUnreachable) {
			return nil
		}
		if err != nil {
			return err
		}
		change.Volume, change.Inode, change.Path = now.Volume, now.Inode, bytes.Clone(path)
		if is != nil {
			change.Mode, change.NewSize = is.Mode, is.Size
		}
		if oldPath != nil && !bytes.Equal(oldPath, change.Path) {
			change.OldPath = oldPath
		}
	}
	if change.Path == nil {
		return nil
	}
	one := &change
	c.found = append(c.found, one)
	if change.Kind == Deleted {
		c.gone[keyOf(*old)] = one
	}
	if now != nil && change.Kind != Modified {
		c.replaces(one, keyOf(*now))
	}
	return nil
}

// replaces is put off to the end: what a name had before may be found later.
func (c *changes) replaces(one *Change, key entryKey) { c.came = append(c.came, arrival{one, key}) }

// arrival is a name that came, with the directory that it came to.
type arrival struct {
	change *Change
	key    entryKey
}

// paired makes one change of a name that went and came: a file that was replaced was modified, as far as its path is concerned, and one that another was renamed over is
// not told of by itself.
func (c *changes) paired() []*Change {
	drop := map[*Change]bool{}
	for _, a := range c.came {
		old := c.gone[a.key]
		switch {
		case old == nil:
		case a.change.Kind == Renamed:
			drop[old] = true
		case old.Mode&ModeType == a.change.Mode&ModeType:
			drop[old] = true
			a.change.Kind, a.change.OldSize = Modified, old.OldSize
			a.change.Content = old.Mode&ModeType != ModeDirectory
			a.change.Attributes = !a.change.Content
		}
	}
	return slices.DeleteFunc(c.found, func(one *Change) bool { return drop[one] })
}
