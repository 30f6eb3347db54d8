package disk

import (
	"errors"
	"fmt"

	"coppice/internal/directio"
)

var (
	// ErrInUse is for what somebody else has open.
	ErrInUse = directio.ErrInUse
	// ErrForeign is for what holds neither a cache nor nothing.
	ErrForeign = errors.New("holds something that is no cache; nothing was written")
	// ErrTooSmall is for less than [MinBytes].
	ErrTooSmall = errors.New("too small for a cache")
	// ErrHangs is for I/O that has not come to its end.
	ErrHangs = errors.New("the disk does not answer")
)

// formatError tells why a header or index block is not used.
type formatError struct {
	what string
	why  string
}

func (e *formatError) Error() string { return fmt.Sprintf("%s: %s", e.what, e.why) }
