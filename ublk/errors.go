package ublk

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"coppice/ublk/uapi"
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

	// ErrTooMany says that the driver has as many devices as it allows.
	ErrTooMany = errors.New("no more ublk devices are allowed (parameter ublks_max of module ublk_drv)")

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

// controlErr makes the errno of a control command an error of this package.
func controlErr(cmd uint32, errno syscall.Errno) error {
	adding := uapi.Legacy(cmd) == uapi.NrAddDev
	switch {
	case errno == syscall.ENODEV:
		return fmt.Errorf("%w: %w", ErrNoDevice, errno)
	case errno == syscall.EPERM:
		return fmt.Errorf("%w: %w", ErrPermission, errno)
	case errno == syscall.EEXIST && adding:
		return fmt.Errorf("%w: %w", ErrIDTaken, errno)
	case errno == syscall.EACCES && adding:
		return fmt.Errorf("%w: %w", ErrTooMany, errno)
	case errno == syscall.EOPNOTSUPP || errno == enotsupp:
		return fmt.Errorf("%w: %w", ErrUnsupported, errno)
	}
	return errno
}

// openErr makes the error of opening the control device one of this package.
func openErr(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENXIO):
		return fmt.Errorf("%w: %w", ErrNoDriver, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %w", ErrPermission, err)
	}
	return err
}
