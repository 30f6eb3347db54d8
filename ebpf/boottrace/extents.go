package boottrace

import (
	"iter"
	"slices"
)

// extents is a set of bytes. The zero value is empty.
type extents struct {
	list []extent // in order, none touching the next
}

type extent struct{ from, to int64 }

// after returns the place of the first extent that ends at off or later.
func (x *extents) after(off int64) int {
	i, _ := slices.BinarySearchFunc(x.list, off, func(e extent, off int64) int {
		if e.to < off {
			return -1
		}
		return 1
	})
	return i
}

// add takes the bytes from from up to to, which is greater, into the set.
func (x *extents) add(from, to int64) {
	i := x.after(from)
	k := i
	for k < len(x.list) && x.list[k].from <= to {
		k++
	}
	if k > i {
		from, to = min(from, x.list[i].from), max(to, x.list[k-1].to)
	}
	x.list = slices.Replace(x.list, i, k, extent{from, to})
}

// covers tells whether all bytes from from up to to are in the set.
func (x *extents) covers(from, to int64) bool {
	for range x.gaps(from, to) {
		return false
	}
	return true
}

// touches tells whether any of the bytes from from up to to is in the set.
func (x *extents) touches(from, to int64) bool {
	i := x.after(from + 1)
	return i < len(x.list) && x.list[i].from < to
}

// gaps goes through those bytes from from up to to that are not in the set, in pieces.
func (x *extents) gaps(from, to int64) iter.Seq2[int64, int64] {
	return func(yield func(from, to int64) bool) {
		for i := x.after(from + 1); from < to; i++ {
			end := to
			if i < len(x.list) {
				end = min(end, x.list[i].from)
			}
			if from < end && !yield(from, end) || i >= len(x.list) {
				return
			}
			from = max(from, x.list[i].to)
		}
	}
}
