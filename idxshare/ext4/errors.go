package ext4

import (
	"errors"
	"fmt"
)

// Causes that callers tell apart. They are wrapped with what was read and where.
var (
	ErrNotExt4     = errors.New("not an ext2, ext3 or ext4 file system")
	ErrCorrupt     = errors.New("corrupt")
	ErrUnsupported = errors.New("not supported")
	ErrEncrypted   = errors.New("encrypted: it cannot be read without its key")
)

// CorruptError says which structure of a file system is not what it should be. It matches [ErrCorrupt].
type CorruptError struct {
	What   string // the kind of structure: superblock, group descriptor, inode, extent block, …
	Where  string // which one: its number, and the block that it lies in where that is not the same
	Detail string // what is wrong with it
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s %s is corrupt: %s", e.What, e.Where, e.Detail)
}

// Is makes errors.Is(err, ErrCorrupt) hold.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }

func corrupt(what, where, format string, args ...any) error {
	return &CorruptError{What: what, Where: where, Detail: fmt.Sprintf(format, args...)}
}

func unsupported(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), ErrUnsupported)
}
