package idxshare

import (
	"errors"
	"fmt"
)

var (
	// ErrCorrupt marks an index that is damaged, was made by something else, or contradicts itself.
	ErrCorrupt = errors.New("corrupt index")
	// ErrVersion marks an index of a version of the format that is not known here.
	ErrVersion = errors.New("unknown version of the index format")
	// ErrBadInput marks what cannot be written into an index: a name with a slash, an inode added twice, an extent beyond the end.
	ErrBadInput = errors.New("cannot be indexed")
	// ErrNotFound marks a path or an inode that the index does not have.
	ErrNotFound = errors.New("not in the index")
	// ErrBadQuery marks a pattern that cannot be understood.
	ErrBadQuery = errors.New("bad query")
	// ErrPartitions marks a partition table that is damaged.
	ErrPartitions = errors.New("bad partition table")
	// ErrClosed is what calls to a closed index get.
	ErrClosed = errors.New("index is closed")
)

func corruptf(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, ErrCorrupt)...)
}

func badInputf(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, ErrBadInput)...)
}
