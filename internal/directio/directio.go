// Package directio opens regular files and block devices for one process alone, past the page cache where the file system can do that. It keeps no state: what it opens
// is the caller's.
package directio

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Align is what offsets, lengths and the addresses of buffers are to be multiples of.
const Align = 4096

// ErrInUse is the cause where somebody else has a file or a device.
var ErrInUse = errors.New("in use by another process")

// Buffer returns n zero bytes at a multiple of [Align]. It is a Go slice whose backing array is garbage collected like any other.
func Buffer(n int) []byte {
	b := make([]byte, n+Align)
	skip := (Align - int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))%Align)) % Align
	return b[skip : skip+n : skip+n]
}

// Kind tells whether st is that of a block device, or why it is neither that nor a regular file.
func Kind(st os.FileInfo) (block bool, err error) {
	switch mode := st.Mode(); {
	case mode.IsRegular():
		return false, nil
	case mode.IsDir():
		return false, syscall.EISDIR
	case mode&os.ModeDevice != 0 && mode&os.ModeCharDevice == 0:
		return true, nil
	}
	return false, errors.New("neither a block device nor a regular file")
}

// Open is [os.OpenFile] with O_DIRECT, or without where the file system does not have it. O_EXCL on a block device is answered with [ErrInUse] where
// somebody has it open so, mounted, or as a part of another one, and does not let go of it within a second, as [Unclaimed] does.
func Open(path string, flags int, perm os.FileMode) (*os.File, error) {
	f, err := os.OpenFile(path, flags|unix.O_DIRECT, perm)
	if errors.Is(err, syscall.EINVAL) {
		if flags&os.O_CREATE != 0 {
			flags &^= os.O_EXCL // the call that failed made the file
		}
		f, err = os.OpenFile(path, flags, perm)
	}
	for try := 0; errors.Is(err, syscall.EBUSY) && try < lockTries; try++ {
		time.Sleep(lockPause)
		f, err = os.OpenFile(path, flags|unix.O_DIRECT, perm)
	}
	if errors.Is(err, syscall.EBUSY) {
		return nil, ErrInUse
	}
	return f, err
}

// What others do for a moment is waited for, a second in all.
const (
	lockTries = 20
	lockPause = 50 * time.Millisecond
)

// Lock takes the lock of a file, LOCK_EX or LOCK_SH as flock(2) has them, and holds it until the file is closed. It waits a second where somebody else has it, as udev does
// while it probes a device, and fails with [ErrInUse] then.
func Lock(f *os.File, how int) error {
	for try := 0; ; try++ {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EWOULDBLOCK):
			return fmt.Errorf("lock: %w", err)
		case try == lockTries:
			return ErrInUse
		}
		time.Sleep(lockPause)
	}
}

// Yield turns the exclusive lock of a block device, which is open with O_EXCL, into a shared one. Nobody else can open it so, lock it exclusively, or mount it;
// but udev, which takes a shared lock while it probes a disk, does not wait for ever: events of a disk that is locked exclusively are put off for minutes, and with
// them whatever waits for udev to settle (systemd's BLOCK_DEVICE_LOCKING, and src/udev/udevd.c of version 252).
func Yield(f *os.File) error {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return fmt.Errorf("share lock: %w", err)
	}
	return nil
}

// Unclaimed fails with [ErrInUse] where somebody has the block device at path open with O_EXCL, mounted, or as a part of another one.
func Unclaimed(path string) error {
	f, err := Open(path, os.O_RDONLY|os.O_EXCL, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// Size is the length of a file or block device now, in bytes.
func Size(f *os.File) (int64, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, fmt.Errorf("find size: %w", err)
	}
	return size, nil
}

// Sync makes all completed writes to a file durable.
func Sync(f *os.File) error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
