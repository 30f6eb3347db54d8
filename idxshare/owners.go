package idxshare

import (
	"cmp"
	"context"
	"database/sql/driver"
	"fmt"
	"slices"
)

// Ownership says what is known of a range of the device.
type Ownership int

// What bytes of the device are.
const (
	Owned    Ownership = iota // a file's; Extent says whose, and what of it
	Metadata                  // the file system's own
	Free                      // no file's, by an index that knows all extents of the volume: free, or metadata that it does not tell of
	Unknown                   // in a volume of which the index does not have the extents
	Outside                   // in no volume: a partition table, or space between partitions
)

// String returns what is known in one word.
func (o Ownership) String() string {
	switch o {
	case Owned:
		return "owned"
	case Metadata:
		return "metadata"
	case Free:
		return "free"
	case Unknown:
		return "unknown"
	case Outside:
		return "outside"
	}
	return fmt.Sprintf("ownership-%d", int(o))
}

// Owner is a range of the device and whose it is.
type Owner struct {
	From, To int64 // bytes in the device; To is behind the last
	What     Ownership
	Volume   int    // but where it is Outside
	Extent   Extent // of Owned and Metadata
	Offset   int64  // of Owned: where in the file From is, in bytes
}

// Owners calls fn with whose the bytes from from to to-1 of the device are, in order of From. What several files share comes once for each, and what is nobody's
// comes as that, so that the answers cover the range. All extents in the range are kept in memory.
func (v *View) Owners(ctx context.Context, from, to int64, fn func(Owner) error) error {
	if from < 0 || to < from {
		return fmt.Errorf("owners of bytes %d to %d: %w", from, to, ErrBadQuery)
	}
	if from == to {
		return nil
	}
	volumes := slices.DeleteFunc(slices.Clone(v.volumes), func(r *ranged) bool { return r.Type == vanished })
	slices.SortFunc(volumes, func(a, b *ranged) int { return cmp.Compare(a.Start, b.Start) })
	at := from
	for _, r := range volumes {
		if r.Start >= to || r.Start+r.Length <= from {
			continue
		}
		if at < r.Start {
			if err := fn(Owner{From: at, To: r.Start, What: Outside}); err != nil {
				return err
			}
		}
		end := min(to, r.Start+r.Length)
		if err := v.ownersIn(ctx, r, max(from, r.Start), end, fn); err != nil {
			return fmt.Errorf("owners in volume %d: %w", r.ID, err)
		}
		at = max(at, end)
	}
	if at < to {
		return fn(Owner{From: at, To: to, What: Outside})
	}
	return nil
}

// ownersIn tells of bytes that lie in a volume.
func (v *View) ownersIn(ctx context.Context, r *ranged, from, to int64, fn func(Owner) error) error {
	size := int64(r.BlockSize)
	first, last := (from-r.Start)/size, (to-1-r.Start)/size
	extents, err := v.base.extentsAt(ctx, r.ID, first, last)
	if err != nil {
		return err
	}
	extents = slices.DeleteFunc(extents, func(e Extent) bool { return has(v.files, e.Volume, e.Inode) })
	if v.delta != nil {
		more, err := v.delta.extentsAt(ctx, r.ID, first, last)
		if err != nil {
			return err
		}
		extents = append(extents, more...)
	}
	slices.SortFunc(extents, compareExtents)
	nobody := Owner{What: Unknown, Volume: r.ID}
	if r.Mapped {
		nobody.What = Free
	}
	gap := func(a, b int64) error {
		if a >= b {
			return nil
		}
		nobody.From, nobody.To = a, b
		return fn(nobody)
	}
	at := from
	for _, e := range extents {
		o := Owner{What: Owned, Volume: r.ID, Extent: e, From: max(from, r.Start+e.Physical*size), To: min(to, r.Start+(e.Physical+e.Length)*size)}
		if err := gap(at, o.From); err != nil {
			return err
		}
		if e.Kind == ExtentMetadata {
			o.What = Metadata
		} else {
			o.Offset = e.Logical*size + o.From - (r.Start + e.Physical*size)
		}
		if err := fn(o); err != nil {
			return err
		}
		at = max(at, o.To)
	}
	return gap(at, to)
}

func compareExtents(a, b Extent) int {
	return cmp.Or(cmp.Compare(a.Volume, b.Volume), cmp.Compare(a.Physical, b.Physical), cmp.Compare(a.Inode, b.Inode), cmp.Compare(a.Logical, b.Logical),
		cmp.Compare(a.Length, b.Length), cmp.Compare(storedKind(a), storedKind(b)))
}

// extentsAt returns the extents that have any of the blocks first to last of a volume.
func (x *Index) extentsAt(ctx context.Context, volume int, first, last int64) (extents []Extent, err error) {
	i := slices.IndexFunc(x.volumes, func(v *ranged) bool { return v.ID == volume })
	if i < 0 {
		return nil, nil
	}
	r := x.volumes[i]
	first, last = r.firstBlock+first, r.firstBlock+last
	add := func(row []field) error {
		e, err := x.scanExtent(row)
		if start := r.firstBlock + e.Physical; err == nil && e.Volume == volume && start <= last && start+e.Length > first {
			extents = append(extents, e)
		}
		return err
	}
	err = x.use(ctx, func(c *reader) error {
		// In table extent nothing overlaps, and so only one that begins before the first block can have it.
		if err := c.trees.upTo("extent", first-1, add); err != nil {
			return err
		}
		if err := c.trees.rows("extent", first, last, func(_ int64, row []field) error { return add(row) }); err != nil {
			return err
		}
		classes, err := c.sharedClasses(ctx)
		if err != nil {
			return err
		}
		for _, class := range classes {
			// Those of this class are at most 1<<class long.
			err = c.query(ctx, "SELECT start, length, file, logical, kind FROM shared WHERE class=? AND start BETWEEN ? AND ?", []driver.Value{class, max(0, first-(1<<class)), last},
				func(row []driver.Value) error { return add(fieldsOf(row)) })
			if err != nil {
				return err
			}
		}
		return nil
	})
	return extents, err
}

// sharedClasses returns the classes of extents that overlap others.
func (c *reader) sharedClasses(ctx context.Context) ([]int64, error) {
	if c.classes != nil {
		return c.classes, nil
	}
	classes := []int64{}
	for class := int64(-1); ; {
		next := class
		err := c.query(ctx, "SELECT class FROM shared WHERE class>? ORDER BY class LIMIT 1", []driver.Value{class}, func(row []driver.Value) error {
			s := scan{row: fieldsOf(row)}
			next = s.int(class+1, 62)
			return s.done("shared")
		})
		if err != nil {
			return nil, err
		}
		if next == class {
			c.classes = classes
			return classes, nil
		}
		class = next
		classes = append(classes, class)
	}
}
