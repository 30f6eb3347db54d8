package union

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

// disk is what a store keeps its blocks on. Offsets and lengths are multiples of 4 KiB and buffers come
// from alignedBuffer, because the file may be open with O_DIRECT. These calls block: they serve
// opening, checkpoints and tools, while requests go to the same file through their queue's ring.
type disk interface {
	io.ReaderAt
	io.WriterAt
	// Sync makes all completed writes durable.
	Sync() error
	Size() int64
	// File is what queues register for their requests.
	File() *os.File
	Close() error
}

// growable is a disk that can become larger while it is open.
type growable interface {
	// Grow makes a regular file at least sizeBytes long, durably, and returns what there is now. The size of a block device is for
	// others to change: less than asked for is an error.
	Grow(sizeBytes int64) (int64, error)
}

var _ growable = (*fileDisk)(nil)

// alignedBuffer returns n zero bytes at a page boundary. It is a Go slice whose backing array is
// garbage collected like any other.
func alignedBuffer(n int) []byte {
	b := make([]byte, n+blockSize)
	skip := (blockSize - int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))%blockSize)) % blockSize
	return b[skip : skip+n : skip+n]
}

// fileDisk is a regular file or a block device.
type fileDisk struct {
	f     *os.File
	size  int64
	block bool
	close sync.Once
}

// openDisk opens path exclusively: O_EXCL on a block device, a lock on a regular file. O_DIRECT is
// used where the file system has it.
func openDisk(path string, readOnly bool) (*fileDisk, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	flags := os.O_RDWR
	if readOnly {
		flags = os.O_RDONLY
	}
	block := st.Mode()&os.ModeDevice != 0 && st.Mode()&os.ModeCharDevice == 0
	switch {
	case st.IsDir():
		return nil, &os.PathError{Op: "open", Path: path, Err: syscall.EISDIR}
	case block:
		if !readOnly {
			flags |= os.O_EXCL
		}
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("open %s: neither a block device nor a regular file", path)
	}
	f, err := os.OpenFile(path, flags|unix.O_DIRECT, 0)
	if errors.Is(err, syscall.EINVAL) {
		f, err = os.OpenFile(path, flags, 0)
	}
	if errors.Is(err, syscall.EBUSY) {
		return nil, fmt.Errorf("open %s: %w", path, ErrInUse)
	}
	if err != nil {
		return nil, err
	}
	d := &fileDisk{f: f, block: block}
	if err := d.claim(readOnly); err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", path, err), f.Close())
	}
	return d, nil
}

func (d *fileDisk) claim(readOnly bool) error {
	how := unix.LOCK_EX
	if readOnly {
		how = unix.LOCK_SH
	}
	if err := lockFile(d.f, how); err != nil {
		return err
	}
	size, err := sizeOf(d.f)
	d.size = size
	return err
}

// sizeOf is the length of a file or block device now.
func sizeOf(f *os.File) (int64, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, fmt.Errorf("find size: %w", err)
	}
	return size, nil
}

// lockFile waits a second for the lock: udev holds it while it probes a device.
func lockFile(f *os.File, how int) error {
	for try := 0; ; try++ {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
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

func (d *fileDisk) ReadAt(p []byte, off int64) (int, error)  { return d.f.ReadAt(p, off) }
func (d *fileDisk) WriteAt(p []byte, off int64) (int, error) { return d.f.WriteAt(p, off) }
func (d *fileDisk) Size() int64                              { return d.size }
func (d *fileDisk) File() *os.File                           { return d.f }

func (d *fileDisk) Sync() error {
	for {
		err := unix.Fdatasync(int(d.f.Fd()))
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (d *fileDisk) Close() (err error) {
	d.close.Do(func() { err = d.f.Close() })
	return err
}
