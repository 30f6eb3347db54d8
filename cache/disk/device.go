package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"coppice/internal/directio"
)

// device is what a cache lies on. Offsets and lengths are multiples of 4 KiB and buffers come from alignedBuffer, because a
// file may be open with O_DIRECT.
type device interface {
	io.ReaderAt
	io.WriterAt
	// Sync makes all completed writes durable. It is called when the cache is made and when it is closed.
	Sync() error
	Close() error
}

// Region is a part of an open file, which stays its owner's: it is neither locked nor synced nor closed here, and nothing else is written there.
type Region struct {
	Name   string // for messages
	File   *os.File
	Off    int64 // in bytes, a multiple of 4 KiB
	Length int64
}

func (r Region) ReadAt(p []byte, off int64) (int, error) {
	if err := r.check(p, off); err != nil {
		return 0, err
	}
	return r.File.ReadAt(p, r.Off+off)
}

func (r Region) WriteAt(p []byte, off int64) (int, error) {
	if err := r.check(p, off); err != nil {
		return 0, err
	}
	return r.File.WriteAt(p, r.Off+off)
}

// check keeps what goes beyond the region out of its neighbours.
func (r Region) check(p []byte, off int64) error {
	if off < 0 || int64(len(p)) > r.Length || off > r.Length-int64(len(p)) {
		return fmt.Errorf("%d bytes at byte %d of a region of %d: %w", len(p), off, r.Length, io.ErrUnexpectedEOF)
	}
	return nil
}

// Sync does nothing. A flush that fails is reported to one caller of a file only, and that must be the owner.
func (r Region) Sync() error { return nil }

// Close does nothing.
func (r Region) Close() error { return nil }

// file is a regular file or a block device of the cache's own.
type file struct {
	*os.File
	size  int64
	block bool
}

func (f *file) Sync() error { return directio.Sync(f.File) }

// openFile opens path exclusively: O_EXCL on a block device, a lock on a regular file. O_DIRECT is used where the file system has it. A
// regular file is made, and made sizeBytes long with its space taken, where that is more than it is.
func openFile(path string, sizeBytes int64) (*file, error) {
	created := false
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist) && sizeBytes > 0:
		created = true
	case err != nil:
		return nil, err
	}
	flags := os.O_RDWR
	block := false
	if created {
		flags |= os.O_CREATE | os.O_EXCL
	} else if block, err = directio.Kind(st); err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	if block {
		flags |= os.O_EXCL
	}
	direct, err := directio.Open(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	f := &file{File: direct, block: block}
	if err := f.claim(sizeBytes); err != nil {
		f.Close()
		if created {
			err = errors.Join(err, os.Remove(path))
		}
		return nil, err
	}
	return f, nil
}

func (f *file) claim(sizeBytes int64) (err error) {
	if err := directio.Lock(f.File, unix.LOCK_EX); err != nil {
		return err
	}
	if f.block {
		if err := directio.Yield(f.File); err != nil {
			return err
		}
	}
	if f.size, err = directio.Size(f.File); err != nil {
		return err
	}
	if f.size >= sizeBytes {
		return nil
	}
	if f.block {
		return fmt.Errorf("%d bytes asked for, the device has %d: %w", sizeBytes, f.size, ErrTooSmall)
	}
	return f.extend(sizeBytes)
}

// extend makes the file longer and takes the space, where the file system can do that.
func (f *file) extend(sizeBytes int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, sizeBytes)
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = f.Truncate(sizeBytes)
	}
	if err != nil {
		return fmt.Errorf("make it %d bytes long: %w", sizeBytes, errors.Join(err, f.Truncate(f.size)))
	}
	f.size = sizeBytes
	return nil
}

// alignedBuffer is [directio.Buffer].
func alignedBuffer(n int) []byte { return directio.Buffer(n) }

// buffers has aligned buffers of each class.
type buffers [classes]sync.Pool

// buffer is one of them.
type buffer struct {
	b     []byte
	class uint8
}

// get returns a buffer of at least n bytes, with anything in them.
func (bs *buffers) get(n int) *buffer {
	class := classOf(n)
	if b, ok := bs[class-minClass].Get().(*buffer); ok {
		return b
	}
	return &buffer{b: alignedBuffer(1 << class), class: class}
}

func (bs *buffers) put(b *buffer) { bs[b.class-minClass].Put(b) }
