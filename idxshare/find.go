package idxshare

import (
	"bytes"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
)

// Query says which names are asked for.
type Query struct {
	// Pattern is looked for in names, or, where WholePath is set, in paths, which begin with a slash. "" matches all as a substring.
	Pattern    string
	Syntax     Syntax
	IgnoreCase bool
	WholePath  bool
	// Type is one of the types in a file's mode, as ModeDirectory; 0: all.
	Type uint32
	// Volumes are the only ones to look in; none: all.
	Volumes []int
	// Under is the path of a directory, below which a name must be; "": everywhere.
	Under string
	// Changed restricts the answer to names that are new in the delta or another inode's there, and to those of inodes that are another in the delta.
	Changed bool
	// Limit is how many matches are told at most; 0: all.
	Limit int
	// NamesOnly says that attributes are not wanted: Match has no File then.
	NamesOnly bool
}

// Match is a name that was asked for.
type Match struct {
	Volume int
	Inode  uint64
	Path   []byte // valid until the function that got it returns
	File   *File  // nil: not wanted, or the index has no such inode
}

// Find calls fn with what matches, as it is found, in no order that is promised. Names to which no path leads from the root are left out.
func (v *View) Find(ctx context.Context, q Query, fn func(Match) error) error {
	m, err := newMatcher(q.Pattern, q.Syntax, q.IgnoreCase)
	if err != nil {
		return fmt.Errorf("find: %w", err)
	}
	f := &finder{v: v, q: q, m: m, paths: newPaths(v), fn: fn}
	if err := f.run(ctx); err != nil && !errors.Is(err, errStop) {
		return fmt.Errorf("find %s %q: %w", q.Syntax, q.Pattern, err)
	}
	return nil
}

// finder is one call of Find.
type finder struct {
	v     *View
	q     Query
	m     *matcher
	paths *paths
	fn    func(Match) error
	found int
	under map[int]string // prefix of paths by volume, with a slash at the end; nil: everywhere
	piece string         // with WholePath: what is in one name of every path that matches
}

func (f *finder) run(ctx context.Context) error {
	if f.q.Under != "" {
		if err := f.findUnder(ctx); err != nil {
			return err
		}
	}
	switch query := f.m.required.query(); {
	case f.q.Changed:
		return f.changed(ctx)
	case f.q.WholePath:
		f.piece = f.m.required.longest()
		common := true
		if f.piece != "" {
			var err error
			if common, err = f.v.base.isCommon(ctx, needFolded(f.piece).query()); err != nil {
				return err
			}
		}
		if !common {
			return f.candidates(ctx, needFolded(f.piece).query(), nil, f.subtrees(ctx))
		}
		return f.scan(ctx)
	case query == "":
		return f.scan(ctx)
	default:
		return f.candidates(ctx, query, f.m.exact, func(n Name) error {
			if !f.m.match(n.Name) {
				return nil
			}
			return f.report(ctx, n)
		})
	}
}

// wanted tells whether a volume is looked in.
func (f *finder) wanted(volume int) bool {
	if f.under != nil && f.under[volume] == "" {
		return false
	}
	for _, v := range f.q.Volumes {
		if v == volume {
			return true
		}
	}
	return len(f.q.Volumes) == 0
}

// findUnder makes of the directory to look in the prefix of all paths. It is one in at least one volume.
func (f *finder) findUnder(ctx context.Context) error {
	under := map[int]string{}
	var missing error
	for _, v := range f.v.volumes {
		file, err := f.v.Lookup(ctx, v.ID, f.q.Under)
		switch {
		case errors.Is(err, ErrNotFound):
			missing = err
		case err != nil:
			return err
		case !file.IsDirectory():
			missing = fmt.Errorf("%q is no directory: %w", f.q.Under, ErrNotFound)
		default:
			paths, err := f.v.Paths(ctx, v.ID, file.Inode)
			if err != nil {
				return err
			}
			if len(paths) > 0 {
				under[v.ID] = strings.TrimSuffix(string(paths[0]), "/") + "/"
			}
		}
	}
	if len(under) == 0 {
		return missing
	}
	f.under = under
	return nil
}

// report tells of a name of which the pattern matches what it is to match.
func (f *finder) report(ctx context.Context, n Name) error {
	if !f.wanted(n.Volume) {
		return nil
	}
	path, err := f.paths.of(ctx, n)
	if errors.Is(err, errUnreachable) {
		return nil
	}
	if err != nil {
		return err
	}
	return f.reportPath(ctx, n, path)
}

func (f *finder) reportPath(ctx context.Context, n Name, path []byte) error {
	if f.under != nil && !bytes.HasPrefix(path, []byte(f.under[n.Volume])) {
		return nil
	}
	m := Match{Volume: n.Volume, Inode: n.Inode, Path: path}
	if !f.q.NamesOnly || f.q.Type != 0 {
		file, err := f.v.File(ctx, n.Volume, n.Inode)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		if f.q.Type != 0 && (file == nil || file.Mode&ModeType != f.q.Type) {
			return nil
		}
		if !f.q.NamesOnly {
			m.File = file
		}
	}
	if err := f.fn(m); err != nil {
		return err
	}
	if f.found++; f.found == f.q.Limit {
		return errStop
	}
	return nil
}

// matches tells whether a name or its path matches. The path is valid until the next call.
func (f *finder) matches(ctx context.Context, n Name) (path []byte, ok bool, err error) {
	if !f.q.WholePath && !f.m.match(n.Name) || !f.wanted(n.Volume) {
		return nil, false, nil
	}
	path, err = f.paths.of(ctx, n)
	if errors.Is(err, errUnreachable) {
		return nil, false, nil
	}
	if err != nil || f.q.WholePath && !f.m.match(path) {
		return nil, false, err
	}
	return path, true, nil
}

// consider tells of a name if it matches.
func (f *finder) consider(ctx context.Context, n Name) error {
	path, ok, err := f.matches(ctx, n)
	if err != nil || !ok {
		return err
	}
	return f.reportPath(ctx, n, path)
}

// scan looks at all names, or at all below a directory.
func (f *finder) scan(ctx context.Context) error {
	if f.under == nil {
		return f.v.Names(ctx, func(n Name) error { return f.consider(ctx, n) })
	}
	for volume := range f.under {
		if !f.wanted(volume) {
			continue
		}
		at, err := f.v.walk(ctx, volume, f.q.Under)
		if err != nil {
			return err
		}
		if err := f.subtree(ctx, volume, at, func(n Name) error { return f.consider(ctx, n) }); err != nil {
			return err
		}
	}
	return nil
}

// subtree calls fn with all names below a directory. A directory that lies in itself, as a hostile index may have it, is gone through once.
func (f *finder) subtree(ctx context.Context, volume int, directory uint64, fn func(Name) error) error {
	seen := map[uint64]struct{}{directory: {}}
	for todo := []uint64{directory}; len(todo) > 0; {
		at := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		err := f.v.Directory(ctx, volume, at, func(n Name) error {
			if err := fn(n); err != nil {
				return err
			}
			if _, again := seen[n.Inode]; again {
				return nil
			}
			isDirectory, err := f.v.hasNames(ctx, volume, n.Inode)
			if isDirectory {
				seen[n.Inode] = struct{}{}
				todo = append(todo, n.Inode)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// hasNames tells whether an inode is a directory with names in it.
func (v *View) hasNames(ctx context.Context, volume int, inode uint64) (yes bool, err error) {
	x := v.directory(volume, inode)
	err = x.use(ctx, func(c *reader) error {
		first, last, err := x.children(c, volume, inode)
		yes = first <= last
		return err
	})
	return yes, err
}

// subtrees returns what is to be done with each name that has the piece in it: of all below it, the paths have it, too.
func (f *finder) subtrees(ctx context.Context) func(Name) error {
	var buf []byte
	piece := []byte(f.piece)
	return func(n Name) error {
		buf = fold(buf[:0], n.Name)
		if !bytes.Contains(buf, piece) || !f.wanted(n.Volume) {
			return nil
		}
		path, err := f.paths.of(ctx, n)
		if errors.Is(err, errUnreachable) {
			return nil
		}
		if err != nil {
			return err
		}
		buf = fold(buf[:0], path[:len(path)-len(n.Name)])
		if bytes.Contains(buf, piece) {
			return nil // found below another
		}
		if err := f.consider(ctx, n); err != nil {
			return err
		}
		return f.subtree(ctx, n.Volume, n.Inode, func(n Name) error { return f.consider(ctx, n) })
	}
}

// candidates calls fn with every name that may match by its trigrams, and by the text that it must have, if that is not nil.
func (f *finder) candidates(ctx context.Context, query string, text []byte, fn func(Name) error) error {
	err := f.v.base.candidates(ctx, query, text, func(n Name) error {
		if has(f.v.directories, n.Volume, n.Parent) {
			return nil
		}
		return fn(n)
	})
	if err != nil || f.v.delta == nil {
		return err
	}
	return f.v.delta.candidates(ctx, query, text, fn)
}

// commonShare is how much of all documents has to have a text, at least, for it to be common: to look below each directory that has it in its name takes longer then than to look at all names.
const commonShare = 8

// isCommon tells whether much of the index has what a query of trigrams finds.
func (x *Index) isCommon(ctx context.Context, query string) (common bool, err error) {
	var last, found int64
	err = x.use(ctx, func(c *reader) (err error) {
		if last, err = c.lastName(ctx); err != nil {
			return err
		}
		found, err = c.number(ctx, "SELECT count(*) FROM trigram WHERE trigram MATCH ?", query)
		return err
	})
	return found > last>>blockShift/commonShare, err
}

// lastName returns the largest id of a name; they begin at 1.
func (c *reader) lastName(ctx context.Context) (int64, error) {
	return c.number(ctx, "SELECT coalesce(max(id), 0) FROM name")
}

// number returns the one number that a query answers.
func (c *reader) number(ctx context.Context, query string, args ...driver.Value) (n int64, err error) {
	err = c.query(ctx, query, args, func(row []driver.Value) error {
		r := scan{row: fieldsOf(row)}
		n = r.int(0, maxID)
		return r.done("name")
	})
	return n, err
}

// candidates calls fn with the names of the documents that a query of trigrams finds, and of a delta that has none with all names.
func (x *Index) candidates(ctx context.Context, query string, text []byte, fn func(Name) error) error {
	return x.use(ctx, func(c *reader) error {
		if x.header.Delta {
			last, err := c.lastName(ctx)
			if err != nil {
				return err
			}
			if last < leastTrigrams {
				return x.namesWith(ctx, c, text, 1, last, fn)
			}
		}
		return x.use(ctx, func(names *reader) error {
			first, last := int64(0), int64(-1) // a run of documents
			run := func() error {
				if last < first {
					return nil
				}
				return x.namesWith(ctx, names, text, first<<blockShift, last<<blockShift|(1<<blockShift-1), fn)
			}
			before := int64(-1)
			err := c.query(ctx, "SELECT rowid FROM trigram WHERE trigram MATCH ? ORDER BY rowid", []driver.Value{query}, func(row []driver.Value) error {
				r := scan{row: fieldsOf(row)}
				document := r.int(before+1, maxID>>blockShift)
				if err := r.done("trigram"); err != nil {
					return err
				}
				before = document
				const most = 64 // documents in a run
				if document == last+1 && last >= first && last-first < most {
					last = document
					return nil
				}
				err := run()
				first, last = document, document
				return err
			})
			if err != nil {
				return err
			}
			return run()
		})
	})
}

// changed looks at what the delta has, which is little: its names, and all names of its inodes.
func (f *finder) changed(ctx context.Context) error {
	if f.v.delta == nil {
		return fmt.Errorf("what changed is told by a delta, and this is an index without one: %w", ErrBadQuery)
	}
	err := f.v.delta.Names(ctx, func(n Name) error {
		path, ok, err := f.matches(ctx, n)
		if err != nil || !ok {
			return err
		}
		if !has(f.v.files, n.Volume, n.Inode) {
			before, err := f.v.base.lookup(ctx, n.Volume, n.Parent, n.Name)
			if err == nil && before == n.Inode {
				return nil
			}
			if err != nil && !errors.Is(err, ErrNotFound) {
				return err
			}
		}
		return f.reportPath(ctx, n, path)
	})
	if err != nil {
		return err
	}
	// The names of inodes of the delta that the base has, in directories that are as they were.
	return f.v.delta.ids(ctx, "file", func(key uint64) error {
		names, err := f.v.base.namesOf(ctx, int(key>>56), key&MaxInode, false)
		if err != nil {
			return err
		}
		for _, n := range names {
			if has(f.v.directories, n.Volume, n.Parent) {
				continue
			}
			if err := f.consider(ctx, n); err != nil {
				return err
			}
		}
		return nil
	})
}
