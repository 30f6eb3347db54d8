package union

import (
	"errors"
	"fmt"

	"coppice/internal/directio"
)

// Causes that callers tell apart. They are wrapped with the path and with what to do.
var (
	ErrNotFormatted = errors.New("not a coppice leaf store")
	ErrNotEmpty     = errors.New("not empty")
	ErrTooSmall     = errors.New("too small")
	ErrInUse        = directio.ErrInUse
	ErrCorrupt      = errors.New("corrupt")
	ErrLayerInUse   = errors.New("layer in use")
	ErrNoLayer      = errors.New("no such layer")
	ErrLayerExists  = errors.New("layer exists")
	ErrSealed       = errors.New("layer is sealed")
	ErrNotSealed    = errors.New("layer is not sealed")
	ErrOtherRoot    = errors.New("made for another root")
	ErrRoot         = errors.New("root not readable")
	ErrReadOnly     = errors.New("opened read-only")
	ErrNoSpace      = errors.New("no free slots in the store")
	ErrLeased       = errors.New("held by another node")
	ErrNotLeased    = errors.New("not leased")
	ErrFenced       = errors.New("fenced: another node may have the store")
	ErrNearlyFull   = errors.New("nearly full")
	ErrCannotShrink = errors.New("a store never shrinks")
	ErrClosed       = errors.New("closed")
	ErrPendingLost  = errors.New("acknowledged records are missing")
	ErrVersion      = errors.New("format of another version")
)

// errFailed is the sticky state of a store.
var errFailed = errors.New("an earlier write or flush of the store failed, it takes no more writes until it is opened again")

// CorruptError says where a stored structure is damaged. It matches [ErrCorrupt].
type CorruptError struct {
	Structure string // superblock, log, run, catalog, data
	Offset    int64  // bytes from the start of the store; -1 where no single place is meant
	Detail    string
}

func (e *CorruptError) Error() string {
	if e.Offset < 0 {
		return fmt.Sprintf("%s corrupt: %s", e.Structure, e.Detail)
	}
	return fmt.Sprintf("%s at byte %d corrupt: %s", e.Structure, e.Offset, e.Detail)
}

// Is makes errors.Is(err, ErrCorrupt) hold.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }
