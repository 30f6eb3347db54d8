package idxshare

import (
	"context"
	"database/sql/driver"
	"fmt"
	"sort"
)

// maxID is above all ids.
const maxID = 1 << 62

// volumeOf returns the volume that has a file's id.
func (x *Index) volumeOf(id int64) (*ranged, error) {
	i := sort.Search(len(x.volumes), func(i int) bool { return x.volumes[i].lastFile >= id })
	if i == len(x.volumes) || id < x.volumes[i].firstFile {
		return nil, corruptf("file %d is of no volume", id)
	}
	return x.volumes[i], nil
}

// id returns the id of an inode, and false where the index cannot have it.
func (x *Index) id(volume int, inode uint64) (int64, bool) {
	for _, v := range x.volumes {
		if v.ID == volume {
			return v.firstFile + int64(inode), inode <= uint64(v.lastFile-v.firstFile)
		}
	}
	return 0, false
}

// blockVolume returns the volume that has a block of table extent.
func (x *Index) blockVolume(block int64) (*ranged, error) {
	i := sort.Search(len(x.volumes), func(i int) bool { return x.volumes[i].lastBlock >= block })
	if i == len(x.volumes) || block < x.volumes[i].firstBlock {
		return nil, corruptf("block %d is of no volume", block)
	}
	return x.volumes[i], nil
}

// scanFile reads a row of fileColumns. first is the id of the file's first name; 0: it has none here.
func (x *Index) scanFile(row []field) (f *File, first int64, err error) {
	r := scan{row: row}
	id := r.int(0, maxID)
	if name := r.next(); name.kind != nothing {
		first = name.n
		r.bad = r.bad || name.kind != integer || first <= 0
	}
	f = &File{Mode: uint32(r.int(0, 1<<32-1)), UID: uint32(r.int(0, 1<<32-1)), GID: uint32(r.int(0, 1<<32-1)), Size: r.int(0, maxID<<1-1), Links: uint32(r.int(0, 1<<32-1)),
		Blocks: r.int(0, maxID<<1-1), Generation: uint32(r.int(0, 1<<32-1)), Rdev: uint64(r.any()), Mtime: r.any(), Atime: r.any(), Ctime: r.any(), Crtime: r.any(),
		Target: r.bytes(maxTarget), Digest: r.bytes(digestSize)}
	r.bad = r.bad || len(f.Digest) != 0 && len(f.Digest) != digestSize
	if err := r.done("file"); err != nil {
		return nil, 0, err
	}
	v, err := x.volumeOf(id)
	if err != nil {
		return nil, 0, err
	}
	f.Volume, f.Inode = v.ID, uint64(id-v.firstFile)
	return f, first, nil
}

// Files calls fn with every inode, in order of volumes and of their numbers. fn may keep the file, and use the index.
func (x *Index) Files(ctx context.Context, fn func(*File) error) error {
	return x.use(ctx, func(c *reader) error {
		return c.trees.rows("file", 0, maxID, func(_ int64, row []field) error {
			f, _, err := x.scanFile(row)
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				return err
			}
			return fn(f)
		})
	})
}

// File returns an inode, or an error that wraps [ErrNotFound].
func (x *Index) File(ctx context.Context, volume int, inode uint64) (*File, error) {
	var f *File
	err := x.use(ctx, func(c *reader) (err error) {
		f, _, err = x.file(c, volume, inode)
		return err
	})
	return f, err
}

func (x *Index) file(c *reader, volume int, inode uint64) (f *File, first int64, err error) {
	if id, ok := x.id(volume, inode); ok {
		err = c.trees.row("file", id, func(row []field) (err error) {
			f, first, err = x.scanFile(row)
			return err
		})
	}
	if err == nil && f == nil {
		err = fmt.Errorf("inode %d of volume %d: %w", inode, volume, ErrNotFound)
	}
	return f, first, err
}

// firstName returns the id of a file's first name; 0: it has none here, or there is no such file.
func (x *Index) firstName(c *reader, id int64) (first int64, err error) {
	err = c.trees.row("file", id, func(row []field) error {
		if len(row) < 2 || row[1].kind != nothing && (row[1].kind != integer || row[1].n <= 0) {
			return corruptf("file %d has no name that it can have", id)
		}
		first = row[1].n
		return nil
	})
	return first, err
}

// entry is a row of table name.
type entry struct {
	id, parent, file int64
	name             []byte
}

func scanEntry(row []field) (entry, error) {
	r := scan{row: row}
	e := entry{id: r.int(1, maxID), parent: r.int(0, maxID), file: r.int(0, maxID), name: r.name()}
	return e, r.done("name")
}

func (x *Index) toName(e entry) (Name, error) {
	v, err := x.volumeOf(e.parent)
	if err != nil {
		return Name{}, err
	}
	if e.file < v.firstFile || e.file > v.lastFile {
		return Name{}, corruptf("name %d is of a file of another volume", e.id)
	}
	return Name{Volume: v.ID, Parent: uint64(e.parent - v.firstFile), Name: e.name, Inode: uint64(e.file - v.firstFile)}, nil
}

// Names calls fn with every name, in order of volumes, directories and bytes. fn may keep the name, and use the index.
func (x *Index) Names(ctx context.Context, fn func(Name) error) error {
	return x.use(ctx, func(c *reader) error {
		return x.names(ctx, c, 0, maxID, fn)
	})
}

func (x *Index) names(ctx context.Context, c *reader, first, last int64, fn func(Name) error) error {
	return x.namesWith(ctx, c, nil, first, last, fn)
}

// namesWith is names, but may leave out those that a text is no part of; nil: none.
func (x *Index) namesWith(ctx context.Context, c *reader, text []byte, first, last int64, fn func(Name) error) error {
	return c.trees.rowsWith(text, "name", first, last, func(_ int64, row []field) error {
		e, err := scanEntry(row)
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		n, err := x.toName(e)
		if err != nil {
			return err
		}
		return fn(n)
	})
}

// children returns the ids of the names of a directory: none where last is less than first.
func (x *Index) children(c *reader, volume int, inode uint64) (first, last int64, err error) {
	last = -1
	if id, ok := x.id(volume, inode); ok {
		err = c.trees.row("directory", id, func(row []field) error {
			r := scan{row: row}
			r.any()
			first, last = r.int(1, maxID), r.int(1, maxID)
			return r.done("directory")
		})
	}
	return first, last, err
}

// Directory calls fn with the names of a directory, in order of their bytes; of an inode that is no directory, or that the index does not have, there are none.
func (x *Index) Directory(ctx context.Context, volume int, inode uint64, fn func(Name) error) error {
	return x.use(ctx, func(c *reader) error {
		first, last, err := x.children(c, volume, inode)
		if err != nil || last < first {
			return err
		}
		return x.names(ctx, c, first, last, func(n Name) error {
			if n.Volume != volume || n.Parent != inode {
				return corruptf("directory %d of volume %d has a name of another", inode, volume)
			}
			return fn(n)
		})
	})
}

// Extents calls fn with every extent: first with those that overlap none before them, in order of volumes and blocks, then with the others.
func (x *Index) Extents(ctx context.Context, fn func(Extent) error) error {
	return x.use(ctx, func(c *reader) error {
		tell := func(row []field) error {
			e, err := x.scanExtent(row)
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				return err
			}
			return fn(e)
		}
		if err := c.trees.rows("extent", 0, maxID, func(_ int64, row []field) error { return tell(row) }); err != nil {
			return err
		}
		return c.query(ctx, "SELECT start, length, file, logical, kind FROM shared", nil, func(row []driver.Value) error { return tell(fieldsOf(row)) })
	})
}

// scanExtent reads start, length, file, logical and kind.
func (x *Index) scanExtent(row []field) (Extent, error) {
	r := scan{row: row}
	start, length, file, logical, kind := r.int(0, maxID), r.int(1, maxID), r.int(0, maxID), r.int(0, maxID), r.int(0, 2*unwrittenBit-1)
	if err := r.done("extent"); err != nil {
		return Extent{}, err
	}
	v, err := x.blockVolume(start)
	if err != nil {
		return Extent{}, err
	}
	if length > v.lastBlock-start+1 || file < v.firstFile || file > v.lastFile || kind&^unwrittenBit > int64(ExtentMetadata) {
		return Extent{}, corruptf("the extent at block %d does not fit in its volume", start)
	}
	return Extent{Volume: v.ID, Inode: uint64(file - v.firstFile), Kind: ExtentKind(kind &^ unwrittenBit), Unwritten: kind&unwrittenBit != 0,
		Logical: logical, Physical: start - v.firstBlock, Length: length}, nil
}

// Replaced calls fn with each inode that a delta replaces, and each directory whose names it replaces, in order.
func (x *Index) Replaced(ctx context.Context, fn func(volume int, inode uint64, directory bool) error) error {
	return x.use(ctx, func(c *reader) error {
		for i, table := range []string{"replaced_file", "replaced_directory"} {
			err := c.trees.rows(table, 0, maxID, func(id int64, _ []field) error {
				v, err := x.volumeOf(id)
				if err != nil {
					return err
				}
				return fn(v.ID, uint64(id-v.firstFile), i == 1)
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
}
