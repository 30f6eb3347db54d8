package idxshare

import (
	"context"
	"errors"
	"slices"
)

// place is an inode of a volume.
type place struct {
	volume int
	inode  uint64
}

// fileOrNil returns an inode, nil for one that is not in use.
func (v *View) fileOrNil(ctx context.Context, p place) (*File, error) {
	f, err := v.File(ctx, p.volume, p.inode)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	return f, err
}

// filesIn returns the inodes from first to last of a volume that are in use.
func (v *View) filesIn(ctx context.Context, volume int, first, last uint64) (map[uint64]*File, error) {
	found := map[uint64]*File{}
	err := v.base.filesIn(ctx, volume, first, last, func(f *File) error {
		if !has(v.files, volume, f.Inode) {
			found[f.Inode] = f
		}
		return nil
	})
	if err == nil && v.delta != nil {
		err = v.delta.filesIn(ctx, volume, first, last, func(f *File) error {
			found[f.Inode] = f
			return nil
		})
	}
	return found, err
}

// extentsIn returns the extents that have any of a run of blocks.
func (v *View) extentsIn(ctx context.Context, volume int, r blockRange) ([]Extent, error) {
	extents, err := v.base.extentsAt(ctx, volume, r.first, r.end()-1)
	if err != nil {
		return nil, err
	}
	extents = slices.DeleteFunc(extents, func(e Extent) bool { return has(v.files, e.Volume, e.Inode) })
	if v.delta == nil {
		return extents, nil
	}
	more, err := v.delta.extentsAt(ctx, volume, r.first, r.end()-1)
	return append(extents, more...), err
}

// hasExtent tells whether an extent is known as it is.
func (v *View) hasExtent(ctx context.Context, e Extent) (bool, error) {
	found, err := v.extentsIn(ctx, e.Volume, blockRange{e.Physical, 1})
	return slices.Contains(found, e), err
}

// filesIn calls fn with the inodes from first to last of a volume.
func (x *Index) filesIn(ctx context.Context, volume int, first, last uint64, fn func(*File) error) error {
	i := slices.IndexFunc(x.volumes, func(v *ranged) bool { return v.ID == volume })
	if i < 0 || first > uint64(x.volumes[i].lastFile-x.volumes[i].firstFile) {
		return nil
	}
	v := x.volumes[i]
	from, to := v.firstFile+int64(first), v.firstFile+int64(min(last, uint64(v.lastFile-v.firstFile)))
	return x.use(ctx, func(c *reader) error {
		return c.trees.rows("file", from, to, func(_ int64, row []field) error {
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
