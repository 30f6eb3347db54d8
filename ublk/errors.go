package ublk

import (
	"errors"
	"io/fs"
	"syscall"
)

// Errors that callers branch on. They wrap the errno of the kernel where there is one.
var (
	// ErrNoDriver says that the kernel has no ublk driver, or that it is not loaded.
	ErrNoDriver = errors.New("the ublk driver is not loaded: run modprobe ublk_drv")

	// ErrPermission says that the process may not control devices.
	ErrPermission = errors.New("no permission to control ublk devices: run as root")

	// ErrInUse says that somebody has the block device open for exclusive use (it is mounted, or part
	// of another device), or that another process is serving it.
	ErrInUse = errors.New("device is in use")

	// ErrNoDevice says that there is no device of that id.
	ErrNoDevice = errors.New("no such ublk device")

	// ErrIDTaken says that a device of that id exists.
	ErrIDTaken = errors.New("a ublk device of this id exists")

	// ErrNotRecoverable says that a device was not made with Params.Recoverable.
	ErrNotRecoverable = errors.New("device is not recoverable")

	// ErrUnsupported says that the kernel is too old for what was asked.
	ErrUnsupported = errors.New("not supported by this kernel")

	// ErrStuck says that a command did not end although it was told to. It goes on in the
	// kernel, and the device may be anywhere between its states.
	ErrStuck = errors.New("the driver does not answer")

	// ErrClosed is the answer of a closed Control.
	ErrClosed = errors.New("control of ublk devices is closed")

	// ErrBroken says that the driver refused commands of a device's queues.
	ErrBroken = errors.New("device is not served completely")
)

// enotsupp is what some drivers' code answers for unknown commands; it has no name in userspace.
const enotsupp = syscall.Errno(524)

// commandErr makes the errno of a control command an error of this package.
func controlErr(op uint32, errno syscall.Errno) error {
	var kind error
	switch errno {
	case syscall.ENODEV:
		kind = ErrNoDevice
	case syscall.EPERM, syscall.EACCES:
		kind = ErrPermission
	case syscall.EEXIST:
		kind = ErrIDTaken
	case syscall.EOPNOTSUPP, enotsupp:
		kind = ErrUnsupported
	default:
		return errno
	}
	if kind == ErrIDTaken && op != opAdd.encoded || kind == ErrPermission && op == opSetParams.encoded {
		return errno
	}
	return errors.Join(kind, errno)
}

// openErr makes the error of opening the control device one of this package.
func openErr(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENXIO):
		return errors.Join(ErrNoDriver, err)
	case errors.Is(err, fs.ErrPermission):
		return errors.Join(ErrPermission, err)
	}
	return err
}
