package ublk

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"coppice/ublk/uring"
)

// ErrFilesFull says that a reactor's table of registered files has no free slot.
var ErrFilesFull = errors.New("table of registered files is full: raise ReactorConfig.Files and RLIMIT_NOFILE")

// fileTable is the registered files of one ring. Files are told apart by their *os.File, not by
// descriptor: a number is reused after Close, and would then name another file.
type fileTable struct {
	ring *uring.Ring
	byOS map[*os.File]*fileSlot
	free []File
}

type fileSlot struct {
	file File
	refs int
}

// newFileTable registers a table of n empty slots, or as many as RLIMIT_NOFILE allows.
func newFileTable(ring *uring.Ring, n int) (*fileTable, error) {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return nil, fmt.Errorf("read RLIMIT_NOFILE: %w", err)
	}
	n = int(min(uint64(n), lim.Cur))
	if err := ring.RegisterFilesSparse(uint32(n)); err != nil {
		return nil, err
	}
	t := &fileTable{ring: ring, byOS: make(map[*os.File]*fileSlot), free: make([]File, 0, n)}
	for i := n - 1; i >= 0; i-- {
		t.free = append(t.free, File(i))
	}
	return t, nil
}

// hold registers f, or counts one more user of it.
func (t *fileTable) hold(f *os.File) (File, error) {
	if s := t.byOS[f]; s != nil {
		s.refs++
		return s.file, nil
	}
	if len(t.free) == 0 {
		return 0, ErrFilesFull
	}
	file := t.free[len(t.free)-1]
	if err := t.update(file, f); err != nil {
		return 0, err
	}
	t.free = t.free[:len(t.free)-1]
	t.byOS[f] = &fileSlot{file: file, refs: 1}
	return file, nil
}

func (t *fileTable) update(slot File, f *os.File) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("use descriptor of %s: %w", f.Name(), err)
	}
	var updateErr error
	err = conn.Control(func(fd uintptr) { updateErr = t.ring.UpdateFile(uint32(slot), int(fd)) })
	if err != nil {
		return fmt.Errorf("use descriptor of %s: %w", f.Name(), err)
	}
	return updateErr
}

// drop counts one user less, and empties the slot after the last one.
func (t *fileTable) drop(f *os.File) error {
	s := t.byOS[f]
	if s == nil {
		return nil
	}
	if s.refs--; s.refs > 0 {
		return nil
	}
	delete(t.byOS, f)
	if err := t.ring.UpdateFile(uint32(s.file), -1); err != nil {
		return err // the slot still holds the file: never give it to another one
	}
	t.free = append(t.free, s.file)
	return nil
}
