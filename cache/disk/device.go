package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
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

func (f *file) Sync() error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

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
	switch {
	case created:
		flags |= os.O_CREATE | os.O_EXCL
	case st.Mode()&os.ModeDevice != 0 && st.Mode()&os.ModeCharDevice == 0:
		flags |= os.O_EXCL
		block = true
	case !st.Mode().IsRegular():
		return nil, &os.PathError{Op: "open", Path: path, Err: errors.New("neither a block device nor a regular file")}
	}
	f, err := openDirect(path, flags)
	if err != nil {
		return nil, err
	}
	f.block = block
	if err := f.claim(sizeBytes); err != nil {
		f.Close()
		if created {
			err = errors.Join(err, os.Remove(path))
		}
		return nil, err
	}
	return f, nil
}

func openDirect(path string, flags int) (*file, error) {
	f, err := os.OpenFile(path, flags|unix.O_DIRECT, 0o600)
	if errors.Is(err, syscall.EINVAL) {
		if flags&os.O_CREATE != 0 {
			flags &^= os.O_EXCL // the call that failed made the file
		}
		f, err = os.OpenFile(path, flags, 0o600)
	}
	if errors.Is(err, syscall.EBUSY) {
		err = ErrInUse
	}
	if err != nil {
		return nil, err
	}
	return &file{File: f}, nil
}

func (f *file) claim(sizeBytes int64) (err error) {
	if err := f.lock(); err != nil {
		return err
	}
	if f.size, err = f.Seek(0, io.SeekEnd); err != nil {
		return fmt.Errorf("find size: %w", err)
	}
	if f.size >= sizeBytes {
		return nil
	}
	if f.block {
		return fmt.Errorf("%d bytes asked for, the device has %d: %w", sizeBytes, f.size, ErrTooSmall)
	}
	return f.extend(sizeBytes)
}

// lock waits a second for the lock: udev holds it while it probes a device.
func (f *file) lock() error {
	for try := 0; ; try++ {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EWOULDBLOCK):
			return fmt.Errorf("lock: %w", err)
		case try == 20:
			return ErrInUse
		}
		time.Sleep(50 * time.Millisecond)
	}
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

// alignedBuffer returns n bytes at a page boundary.
func alignedBuffer(n int) []byte {
	b := make([]byte, n+blockSize)
	skip := (blockSize - int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))%blockSize)) % blockSize
	return b[skip : skip+n : skip+n]
}

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
