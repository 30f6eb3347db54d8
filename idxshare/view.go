package idxshare

import (
	"bytes"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// View answers from an index, or from one and a delta that stands on it. It is safe for concurrent use, and holds nothing that must be closed: the indexes
// are their owner's.
type View struct {
	base, delta *Index // delta may be nil
	// What the delta has another state of, sorted: the base's is not looked at. As keys.
	files, directories []uint64
	volumes            []*ranged // of the base, and instead of each what the delta says of it; then those that only the delta has
}

// inodeKey makes one number of a volume and an inode.
func inodeKey(volume int, inode uint64) uint64 { return uint64(volume)<<56 | inode }

// NewView returns what answers from a base and, if it is not nil, a delta. What the delta replaces is kept in memory: 8 bytes for each inode and directory.
func NewView(ctx context.Context, base, delta *Index) (*View, error) {
	v := &View{base: base, delta: delta, volumes: base.volumes}
	if delta == nil {
		return v, nil
	}
	b, d := base.header, delta.header
	switch {
	case b.Delta || !d.Delta:
		return nil, fmt.Errorf("view of a delta and its base: given are delta %v and delta %v: %w", b.Delta, d.Delta, ErrBadInput)
	case d.Base != b.Source:
		return nil, fmt.Errorf("view of a delta and its base: the delta stands on %s, the base is of %s: %w", d.Base, b.Source, ErrBadInput)
	}
	v.volumes = v.current()
	err := delta.Replaced(ctx, func(volume int, inode uint64, directory bool) error {
		if directory {
			v.directories = append(v.directories, inodeKey(volume, inode))
		} else {
			v.files = append(v.files, inodeKey(volume, inode))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	// What the delta has is replaced, even where it does not say so.
	for table, keys := range map[string]*[]uint64{"file": &v.files, "directory": &v.directories} {
		if err := delta.ids(ctx, table, func(key uint64) error {
			*keys = append(*keys, key)
			return nil
		}); err != nil {
			return nil, err
		}
		slices.Sort(*keys)
		*keys = slices.Compact(*keys)
	}
	return v, nil
}

// ids calls fn with the inodes that are the keys of a table.
func (x *Index) ids(ctx context.Context, table string, fn func(key uint64) error) error {
	return x.use(ctx, func(c *reader) error {
		return c.trees.rows(table, 0, maxID, func(id int64, _ []field) error {
			v, err := x.volumeOf(id)
			if err != nil {
				return err
			}
			return fn(inodeKey(v.ID, uint64(id-v.firstFile)))
		})
	})
}

func has(keys []uint64, volume int, inode uint64) bool {
	_, ok := slices.BinarySearch(keys, inodeKey(volume, inode))
	return ok
}

// Volumes returns the file systems, as they are by now: a partition that is there no more has none.
func (v *View) Volumes() (volumes []Volume) {
	for _, r := range v.volumes {
		if r.Type != vanished {
			volumes = append(volumes, r.Volume)
		}
	}
	return volumes
}

// Size returns how long the device is, in bytes, as it is by now.
func (v *View) Size() int64 {
	if v.delta != nil {
		return v.delta.header.Size
	}
	return v.base.header.Size
}

// vanished is the type of a volume of which a delta says that no partition begins there any more.
const vanished = ""

// current returns the volumes of the base, and instead of each what the delta says of it: another file system may have been made there.
func (v *View) current() []*ranged {
	volumes := slices.Clone(v.base.volumes)
	for _, r := range v.delta.volumes {
		i := slices.IndexFunc(volumes, func(b *ranged) bool { return b.ID == r.ID })
		if i < 0 {
			volumes = append(volumes, r)
		} else {
			volumes[i] = r
		}
	}
	return volumes
}

// File returns an inode, or an error that wraps [ErrNotFound].
func (v *View) File(ctx context.Context, volume int, inode uint64) (*File, error) {
	if has(v.files, volume, inode) {
		return v.delta.File(ctx, volume, inode)
	}
	return v.base.File(ctx, volume, inode)
}

// Files calls fn with every inode: those of the base that hold, then those of the delta.
func (v *View) Files(ctx context.Context, fn func(*File) error) error {
	err := v.base.Files(ctx, func(f *File) error {
		if has(v.files, f.Volume, f.Inode) {
			return nil
		}
		return fn(f)
	})
	if err != nil || v.delta == nil {
		return err
	}
	return v.delta.Files(ctx, fn)
}

// Names calls fn with every name: those of the base that hold, then those of the delta.
func (v *View) Names(ctx context.Context, fn func(Name) error) error {
	err := v.base.Names(ctx, func(n Name) error {
		if has(v.directories, n.Volume, n.Parent) {
			return nil
		}
		return fn(n)
	})
	if err != nil || v.delta == nil {
		return err
	}
	return v.delta.Names(ctx, fn)
}

// Extents calls fn with every extent: those of the base that hold, then those of the delta.
func (v *View) Extents(ctx context.Context, fn func(Extent) error) error {
	err := v.base.Extents(ctx, func(e Extent) error {
		if has(v.files, e.Volume, e.Inode) {
			return nil
		}
		return fn(e)
	})
	if err != nil || v.delta == nil {
		return err
	}
	return v.delta.Extents(ctx, fn)
}

// directory returns the index that has the names of a directory.
func (v *View) directory(volume int, inode uint64) *Index {
	if has(v.directories, volume, inode) {
		return v.delta
	}
	return v.base
}

// Directory calls fn with the names of a directory, in order of their bytes.
func (v *View) Directory(ctx context.Context, volume int, inode uint64, fn func(Name) error) error {
	return v.directory(volume, inode).Directory(ctx, volume, inode, fn)
}

// NamesOf returns all names of an inode.
func (v *View) NamesOf(ctx context.Context, volume int, inode uint64) ([]Name, error) {
	names, err := v.base.namesOf(ctx, volume, inode, false)
	if err != nil || v.delta == nil {
		return names, err
	}
	names = slices.DeleteFunc(names, func(n Name) bool { return has(v.directories, n.Volume, n.Parent) })
	more, err := v.delta.namesOf(ctx, volume, inode, false)
	return append(names, more...), err
}

// nameOf returns one name of an inode, if it has any: all that a directory has.
func (v *View) nameOf(ctx context.Context, volume int, inode uint64) ([]Name, error) {
	names, err := v.base.namesOf(ctx, volume, inode, true)
	if err == nil && (len(names) == 0 || has(v.directories, volume, names[0].Parent)) {
		return v.NamesOf(ctx, volume, inode)
	}
	return names, err
}

// namesOf returns the names that this index has of an inode, or only one of them: the first is told by the file, others by table link.
func (x *Index) namesOf(ctx context.Context, volume int, inode uint64, firstOnly bool) (names []Name, err error) {
	id, ok := x.id(volume, inode)
	if !ok {
		return nil, nil
	}
	err = x.use(ctx, func(c *reader) error {
		add := func(n Name) error {
			if n.Volume != volume || n.Inode != inode {
				return corruptf("a name is told to be of inode %d of volume %d, and is of another", inode, volume)
			}
			names = append(names, n)
			return nil
		}
		first, err := x.firstName(c, id)
		if err == nil && first > 0 {
			err = x.names(ctx, c, first, first, add)
		}
		if err != nil || firstOnly && len(names) > 0 {
			return err
		}
		return c.query(ctx, "SELECT name FROM link WHERE file=?", []driver.Value{id}, func(row []driver.Value) error {
			r := scan{row: fieldsOf(row)}
			name := r.int(1, maxID)
			if err := r.done("link"); err != nil {
				return err
			}
			return x.names(ctx, c, name, name, add)
		})
	})
	return names, err
}

// Lookup returns what a path leads to. Symbolic links are not followed. A path that leads nowhere gives an error that wraps [ErrNotFound].
func (v *View) Lookup(ctx context.Context, volume int, path string) (*File, error) {
	at, err := v.walk(ctx, volume, path)
	if err != nil {
		return nil, fmt.Errorf("look up %q: %w", path, err)
	}
	f, err := v.File(ctx, volume, at)
	if err != nil {
		return nil, fmt.Errorf("look up %q: %w", path, err)
	}
	return f, nil
}

// walk returns the inode that a path leads to.
func (v *View) walk(ctx context.Context, volume int, path string) (uint64, error) {
	root, err := v.root(volume)
	if err != nil {
		return 0, err
	}
	at := []uint64{root}
	for name := range strings.SplitSeq(path, "/") {
		switch name {
		case "", ".":
		case "..":
			at = at[:max(1, len(at)-1)]
		default:
			last := at[len(at)-1]
			inode, err := v.directory(volume, last).lookup(ctx, volume, last, []byte(name))
			if err != nil {
				return 0, err
			}
			at = append(at, inode)
		}
	}
	return at[len(at)-1], nil
}

// root returns the inode of a volume's root directory.
func (v *View) root(volume int) (uint64, error) {
	for _, r := range v.volumes {
		if r.ID == volume {
			return r.Root, nil
		}
	}
	return 0, fmt.Errorf("volume %d: %w", volume, ErrNotFound)
}

// lookup finds a name in a directory by halving.
func (x *Index) lookup(ctx context.Context, volume int, directory uint64, name []byte) (inode uint64, err error) {
	err = x.use(ctx, func(c *reader) error {
		first, last, err := x.children(c, volume, directory)
		if err != nil {
			return err
		}
		for first <= last {
			middle := first + (last-first)/2
			order := 2 // the name at the middle is not there
			err := x.names(ctx, c, middle, middle, func(n Name) error {
				order, inode = bytes.Compare(n.Name, name), n.Inode
				if n.Volume != volume || n.Parent != directory {
					return corruptf("directory %d of volume %d has a name of another", directory, volume)
				}
				return nil
			})
			switch {
			case err != nil:
				return err
			case order == 0:
				return nil
			case order < 0:
				first = middle + 1
			case order == 1:
				last = middle - 1
			default:
				return corruptf("directory %d of volume %d lacks name %d", directory, volume, middle)
			}
		}
		return fmt.Errorf("%q: %w", name, ErrNotFound)
	})
	return inode, err
}

// Digest returns the SHA-256 of a file's content. That it was not computed is an error that wraps [ErrNotFound].
func (v *View) Digest(ctx context.Context, volume int, path string) ([]byte, error) {
	f, err := v.Lookup(ctx, volume, path)
	switch {
	case err != nil:
		return nil, err
	case f.Mode&ModeType != ModeRegular:
		return nil, fmt.Errorf("digest of %q: it is no regular file: %w", path, ErrNotFound)
	case f.Digest == nil:
		return nil, fmt.Errorf("digest of %q: none was computed: %w", path, ErrNotFound)
	}
	return f.Digest, nil
}

// Paths returns all paths that lead to an inode from the root of its volume. There is none to one that was deleted while it is open.
func (v *View) Paths(ctx context.Context, volume int, inode uint64) ([][]byte, error) {
	if root, err := v.root(volume); err == nil && root == inode {
		return [][]byte{[]byte("/")}, nil
	}
	names, err := v.NamesOf(ctx, volume, inode)
	if err != nil {
		return nil, err
	}
	p := newPaths(v)
	var all [][]byte
	for _, n := range names {
		path, err := p.of(ctx, n)
		switch {
		case errors.Is(err, errUnreachable):
		case err != nil:
			return nil, err
		default:
			all = append(all, bytes.Clone(path))
		}
	}
	slices.SortFunc(all, bytes.Compare)
	return all, nil
}

const (
	// maxDepth is how many directories a path goes through at most. A loop of parents ends there.
	maxDepth = 2048
	// maxPath is the longest path in bytes.
	maxPath = 1 << 16
	// pathCache is how many bytes of paths of directories a query remembers at least, and half of what it remembers at most.
	pathCache = 16 << 20
)

// errUnreachable says that no path leads from the root to a name.
var errUnreachable = errors.New("not reachable from the root")

// paths puts paths together from names and their parents, and remembers those of directories.
type paths struct {
	v     *View
	known map[uint64]string // of directories, without a slash at the end; unreachable ones have a path that no directory has
	older map[uint64]string // what was remembered before known was begun: what is asked for again moves on
	bytes int               // of known
	buf   []byte
}

const unreachable = "?"

func newPaths(v *View) *paths { return &paths{v: v, known: map[uint64]string{}} }

// of returns the path of a name, or errUnreachable. It is valid until the next call.
func (p *paths) of(ctx context.Context, n Name) ([]byte, error) {
	directory, err := p.directory(ctx, n.Volume, n.Parent)
	if err != nil {
		return nil, err
	}
	if len(directory)+len(n.Name) >= maxPath {
		return nil, errUnreachable
	}
	p.buf = append(append(append(p.buf[:0], directory...), '/'), n.Name...)
	return p.buf, nil
}

func (p *paths) directory(ctx context.Context, volume int, inode uint64) (string, error) {
	root, err := p.v.root(volume)
	if err != nil {
		return "", err
	}
	type step struct {
		key  uint64
		name []byte
	}
	var steps []step
	path := ""
	for at := inode; at != root; {
		key := inodeKey(volume, at)
		known, ok := p.known[key]
		if !ok {
			if known, ok = p.older[key]; ok {
				p.remember(key, known)
			}
		}
		if ok {
			path = known
			break
		}
		names, err := p.v.nameOf(ctx, volume, at)
		if err != nil {
			return "", err
		}
		if len(names) == 0 || len(steps) == maxDepth {
			path = unreachable
			steps = append(steps, step{key: key})
			break
		}
		steps = append(steps, step{key, names[0].Name})
		at = names[0].Parent
	}
	for _, s := range slices.Backward(steps) {
		if path != unreachable {
			path += "/" + string(s.name)
		}
		if len(path) > maxPath {
			path = unreachable
		}
		p.remember(s.key, path)
	}
	if path == unreachable {
		return "", errUnreachable
	}
	return path, nil
}

func (p *paths) remember(key uint64, path string) {
	const overhead = 64
	if p.bytes += len(path) + overhead; p.bytes > pathCache {
		p.known, p.older = map[uint64]string{}, p.known
		p.bytes = len(path) + overhead
	}
	p.known[key] = path
}
