package image

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// File is a raw file or block device that an image is built from. It knows its holes.
type File struct {
	*os.File
	size int64
}

// OpenFile opens a raw file or block device for reading.
func OpenFile(path string) (*File, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("open source: %w", err)
	}
	block := st.Mode()&os.ModeDevice != 0 && st.Mode()&os.ModeCharDevice == 0
	if !block && !st.Mode().IsRegular() {
		return nil, fmt.Errorf("open source %s: neither a file nor a block device: %w", path, ErrBadOption)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open source: %w", err)
	}
	file, err := NewFile(f)
	if err != nil {
		return nil, fmt.Errorf("open source %s: %w", path, err)
	}
	return file, nil
}

// NewFile makes a source of a file or block device that is open. It closes it, also where it returns an error.
func NewFile(f *os.File) (*File, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err == nil && size == 0 {
		err = fmt.Errorf("is empty: %w", ErrBadOption)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &File{f, size}, nil
}

// Size returns the length in bytes.
func (f *File) Size() int64 { return f.size }

// NextData returns where data begins that is no hole, at off or after it.
func (f *File) NextData(off int64) int64 {
	next, err := f.Seek(off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return math.MaxInt64
	case err != nil: // a block device, or a file system that does not know
		return off
	}
	return next
}
