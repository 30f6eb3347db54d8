package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// newLoop presents size bytes of the file or device at path through the kernel's loop driver, with direct I/O,
// and refuses to go on where the kernel fell back to buffered I/O.
func newLoop(path string, size int64) (*device, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return nil, fmt.Errorf("find free loop device: %w", err)
	}
	backing, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	defer backing.Close()
	name := fmt.Sprintf("loop%d", number)
	node, err := openNode("/dev/" + name)
	if err != nil {
		return nil, err
	}
	config := unix.LoopConfig{Fd: uint32(backing.Fd())}
	config.Info.Flags = unix.LO_FLAGS_DIRECT_IO
	config.Info.Sizelimit = uint64(size)
	if err := unix.IoctlLoopConfigure(int(node.Fd()), &config); err != nil {
		return nil, errors.Join(fmt.Errorf("set up %s over %s: %w", name, path, err), node.Close())
	}
	d := &device{path: "/dev/" + name, close: func() error { return clearLoop(node, name) }}
	dio, err := os.ReadFile("/sys/block/" + name + "/loop/dio")
	if err == nil && strings.TrimSpace(string(dio)) != "1" {
		err = fmt.Errorf("%s over %s does buffered I/O", name, path)
	}
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

const tmpfsDir = "/run/coppice-bench-tmpfs"

// newFileLoop presents a file of size bytes on a tmpfs of its own.
func newFileLoop(size int64) (*device, error) {
	if err := os.MkdirAll(tmpfsDir, 0o700); err != nil {
		return nil, err
	}
	if err := unix.Mount("tmpfs", tmpfsDir, "tmpfs", 0, ""); err != nil {
		return nil, fmt.Errorf("mount tmpfs: %w", err)
	}
	var clean cleanup
	clean.add(func() error { return unix.Unmount(tmpfsDir, 0) })
	path := filepath.Join(tmpfsDir, "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return nil, errors.Join(err, clean.run())
	}
	if err := fill(path, size, 0xa5); err != nil {
		return nil, errors.Join(err, clean.run())
	}
	d, err := newLoop(path, size)
	if err != nil {
		return nil, errors.Join(err, clean.run())
	}
	clean.add(d.close)
	return &device{path: d.path, close: clean.run}, nil
}

func clearLoop(node *os.File, name string) error {
	defer node.Close()
	if err := unix.IoctlSetInt(int(node.Fd()), unix.LOOP_CLR_FD, 0); err != nil {
		return fmt.Errorf("detach %s: %w", name, err)
	}
	return nil
}

// openNode opens a device node that devtmpfs may be about to make.
func openNode(path string) (*os.File, error) {
	deadline := time.Now().Add(5 * time.Second)
	for {
		node, err := os.OpenFile(path, os.O_RDWR, 0)
		if err == nil || !errors.Is(err, os.ErrNotExist) || time.Now().After(deadline) {
			return node, err
		}
		time.Sleep(5 * time.Millisecond)
	}
}
