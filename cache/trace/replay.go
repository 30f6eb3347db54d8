package trace

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"
)

// ErrWrong is wrapped by errors that say that a replay read something else than the disk has.
var ErrWrong = errors.New("wrong content")

// Tally is what came of a replay. Its durations are in nanoseconds in JSON.
type Tally struct {
	Sum     time.Duration `json:"sum"`     // of all reads
	Longest time.Duration `json:"longest"` // read
	Errors  int           `json:"errors"`
	Wrong   int           `json:"wrong"` // reads with other bytes than the disk has
	First   string        `json:"first"` // what went wrong first
}

// Replay reads what a trace has read, one after the other, as fast as it goes, and compares it with the disk. before is called with the number of each read;
// nil is nobody.
func (t *Trace) Replay(read func(p []byte, off int64) error, disk *Disk, before func(i int)) (y Tally) {
	var got, want []byte
	for i, r := range t.Reads {
		if before != nil {
			before(i)
		}
		got, want = slices.Grow(got[:0], int(r.Len))[:r.Len], slices.Grow(want[:0], int(r.Len))[:r.Len]
		began := time.Now()
		err := read(got, r.Off)
		took := time.Since(began)
		y.Sum += took
		y.Longest = max(y.Longest, took)
		if err == nil {
			_, err = disk.ReadAt(want, r.Off)
		}
		switch {
		case err != nil:
			y.Errors++
		case !bytes.Equal(got, want):
			y.Wrong++
			err = fmt.Errorf("%d bytes at %d: %w", r.Len, r.Off, ErrWrong)
		}
		if err != nil && y.First == "" {
			y.First = err.Error()
		}
	}
	return y
}

// Err says what went wrong, if anything.
func (y Tally) Err() error {
	if y.Errors == 0 && y.Wrong == 0 {
		return nil
	}
	return fmt.Errorf("%d reads failed, and %d were wrong: %s", y.Errors, y.Wrong, y.First)
}
