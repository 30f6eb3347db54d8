package union

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"coppice/internal/directio"
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

// alignedBuffer is [directio.Buffer].
func alignedBuffer(n int) []byte { return directio.Buffer(n) }

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
	block, err := directio.Kind(st)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	if block && !readOnly {
		flags |= os.O_EXCL
	}
	f, err := directio.Open(path, flags, 0)
	if errors.Is(err, ErrInUse) {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	if err != nil {
		return nil, err
	}
	d := &fileDisk{f: f, block: block}
	if err := d.claim(path, readOnly); err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", path, err), f.Close())
	}
	return d, nil
}

// claim keeps other processes from writing, and from reading what is written to. A block device that is written to is open with O_EXCL: its lock need only be exclusive
// for as long as it takes to find that nobody reads it.
func (d *fileDisk) claim(path string, readOnly bool) error {
	how := unix.LOCK_EX
	if readOnly {
		how = unix.LOCK_SH
	}
	err := directio.Lock(d.f, how)
	switch {
	case err != nil || !d.block:
	case readOnly:
		err = directio.Unclaimed(path)
	default:
		err = directio.Yield(d.f)
	}
	if err == nil {
		d.size, err = directio.Size(d.f)
	}
	return err
}

func (d *fileDisk) ReadAt(p []byte, off int64) (int, error)  { return d.f.ReadAt(p, off) }
func (d *fileDisk) WriteAt(p []byte, off int64) (int, error) { return d.f.WriteAt(p, off) }
func (d *fileDisk) Size() int64                              { return d.size }
func (d *fileDisk) File() *os.File                           { return d.f }
func (d *fileDisk) Sync() error                              { return directio.Sync(d.f) }

func (d *fileDisk) Close() (err error) {
	d.close.Do(func() { err = d.f.Close() })
	return err
}
