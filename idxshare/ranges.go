package idxshare

import (
	"slices"
	"sort"
)

// blockRange is a run of blocks of a volume.
type blockRange struct{ first, count int64 }

func (r blockRange) end() int64 { return r.first + r.count }

// blockSet is a set of blocks: runs in order that do not touch each other.
type blockSet []blockRange

// add adds blocks that begin at or behind the last run's beginning.
func (s *blockSet) add(r blockRange) {
	if n := len(*s); n > 0 && (*s)[n-1].end() >= r.first {
		last := &(*s)[n-1]
		last.count = max(last.end(), r.end()) - last.first
		return
	}
	*s = append(*s, r)
}

// with returns the set with more runs, which are in no order.
func (s blockSet) with(more []blockRange) blockSet {
	all := slices.Concat(s, more)
	slices.SortFunc(all, func(a, b blockRange) int {
		switch {
		case a.first < b.first:
			return -1
		case a.first > b.first:
			return 1
		}
		return 0
	})
	var out blockSet
	for _, r := range all {
		out.add(r)
	}
	return out
}

// in returns the parts of the set that lie in a run.
func (s blockSet) in(r blockRange) blockSet {
	from := sort.Search(len(s), func(i int) bool { return s[i].end() > r.first })
	to := sort.Search(len(s), func(i int) bool { return s[i].first >= r.end() })
	if from >= to {
		return nil
	}
	out := slices.Clone(s[from:to])
	for i := range out {
		first := max(out[i].first, r.first)
		out[i] = blockRange{first, min(out[i].end(), r.end()) - first}
	}
	return out
}

// touches tells whether a run has a block of the set.
func (s blockSet) touches(r blockRange) bool {
	i := sort.Search(len(s), func(i int) bool { return s[i].end() > r.first })
	return i < len(s) && s[i].first < r.end()
}

// without returns the set without the blocks of other runs, which are in order and do not overlap.
func (s blockSet) without(others []blockRange) blockSet {
	var out blockSet
	for _, r := range s {
		first := r.first
		i := sort.Search(len(others), func(i int) bool { return others[i].end() > first })
		for ; i < len(others) && others[i].first < r.end(); i++ {
			if others[i].first > first {
				out.add(blockRange{first, others[i].first - first})
			}
			first = others[i].end()
		}
		if first < r.end() {
			out.add(blockRange{first, r.end() - first})
		}
	}
	return out
}

// blocks counts them.
func (s blockSet) blocks() (n int64) {
	for _, r := range s {
		n += r.count
	}
	return n
}
