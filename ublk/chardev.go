package ublk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"coppice/ublk/uapi"
)

const (
	// openPatience is how long /dev/ublkcN may be held by somebody else, udev as a rule.
	openPatience = 5 * time.Second
	retryPause   = 5 * time.Millisecond
)

// BlockPath is the block device of an id, /dev/ublkbN.
func BlockPath(id int) string { return fmt.Sprintf("/dev/ublkb%d", id) }

func charPath(id int) string { return fmt.Sprintf("/dev/ublkc%d", id) }

// retry calls f until it succeeds, fails with an error that is not transient, or patience or ctx end.
func retry(ctx context.Context, patience time.Duration, transient func(error) bool, f func() error) error {
	deadline := time.Now().Add(patience)
	for {
		err := f()
		if err == nil || !transient(err) || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-time.After(retryPause):
		}
	}
}

// openChar opens /dev/ublkcN, which has one opener at a time. Without O_NONBLOCK
// io_uring would hand every command to a worker thread.
func openChar(ctx context.Context, id int) (*os.File, error) {
	path := charPath(id)
	var fd int
	err := retry(ctx, openPatience,
		func(err error) bool { return errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOENT) },
		func() (err error) {
			fd, err = unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
			return err
		})
	if errors.Is(err, unix.EBUSY) {
		err = fmt.Errorf("%w: %w", ErrInUse, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// mapDescriptors maps the descriptor area of a queue.
func mapDescriptors(char *os.File, queue, depth int) ([]byte, error) {
	off, size := uapi.DescArea(queue, depth, os.Getpagesize())
	var area []byte
	conn, err := char.SyscallConn()
	if err == nil {
		// Not through Fd, which may make the descriptor blocking.
		err = errors.Join(err, conn.Control(func(fd uintptr) {
			area, err = unix.Mmap(int(fd), off, size, unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
		}))
	}
	if err != nil {
		return nil, fmt.Errorf("map descriptors of queue %d: %w", queue, err)
	}
	return area, nil
}

// openExclusive opens a block device that nobody else has for exclusive use: no mount, no
// other device on top of it or of one of its partitions. Until the file is closed nobody can get it.
func openExclusive(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		err = fmt.Errorf("%w: %w", ErrInUse, err)
	}
	if err != nil {
		return nil, fmt.Errorf("exclusive use: %w", err)
	}
	return f, nil
}

// syncExclusive writes back what the page cache has for a device. It may take as long as the
// device does; when ctx ends first, f is closed once the sync has ended.
func syncExclusive(ctx context.Context, f *os.File) error {
	done := make(chan error, 1)
	go func() { done <- f.Sync() }()
	select {
	case err := <-done:
		if err != nil {
			return errors.Join(err, f.Close())
		}
		return nil
	case <-ctx.Done():
		go func() { done <- errors.Join(<-done, f.Close()) }()
		return fmt.Errorf("sync %s: %w", f.Name(), ctx.Err())
	}
}
