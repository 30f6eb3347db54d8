package image

import (
	"errors"
	"fmt"
)

// Causes that callers tell apart. They are wrapped with what was tried.
var (
	ErrCorrupt   = errors.New("corrupt")
	ErrNotImage  = errors.New("not a coppice image")
	ErrVersion   = errors.New("format of another version")
	ErrNotFound  = errors.New("not found")
	ErrExists    = errors.New("exists")
	ErrBusy      = errors.New("in use by another process")
	ErrBadOption = errors.New("cannot be built so")
	ErrBadRef    = errors.New("not a reference of an image")
	ErrClosed    = errors.New("closed")
	ErrChanged   = errors.New("the source changes while it is read")
	ErrRefused   = errors.New("refused by the server")
	ErrProtocol  = errors.New("unexpected answer of the server")
	ErrReadOnly  = errors.New("cannot be written")
	ErrNoRemoval = errors.New("cannot be removed there")
	ErrOther     = errors.New("other content")
	ErrNoReplica = errors.New("no replica answers")
	ErrLast      = errors.New("the last replica")

	// ErrNotAttached is the [ErrNotFound] of an image that has no artifact of a kind, and not that of one of which a part is missing.
	ErrNotAttached = fmt.Errorf("none is attached: %w", ErrNotFound)
)

// CorruptError says what of an image is not what it should be. It matches [ErrCorrupt].
type CorruptError struct {
	What   string // manifest, config, table page, chunk, blob
	Place  string // which one, and where it came from
	Detail string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s %s is corrupt: %s", e.What, e.Place, e.Detail)
}

// Is makes errors.Is(err, ErrCorrupt) hold.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }
