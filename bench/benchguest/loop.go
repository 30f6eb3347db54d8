package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// newLoop presents size bytes of the file or device at path through the kernel's loop driver, with direct I/O
// or through the page cache, and refuses to go on where the kernel fell back from the one to the other.
func newLoop(path string, size int64, direct bool) (*device, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return nil, fmt.Errorf("find free loop device: %w", err)
	}
	flags, want := os.O_RDWR, "0"
	if direct {
		flags, want = flags|unix.O_DIRECT, "1"
	}
	backing, err := os.OpenFile(path, flags, 0)
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
	if direct {
		config.Info.Flags = unix.LO_FLAGS_DIRECT_IO
	}
	config.Info.Sizelimit = uint64(size)
	if err := unix.IoctlLoopConfigure(int(node.Fd()), &config); err != nil {
		return nil, errors.Join(fmt.Errorf("set up %s over %s: %w", name, path, err), node.Close())
	}
	d := &device{path: "/dev/" + name, close: func() error { return clearLoop(node, name) }}
	dio, err := os.ReadFile("/sys/block/" + name + "/loop/dio")
	if got := strings.TrimSpace(string(dio)); err == nil && got != want {
		err = fmt.Errorf("%s over %s has dio=%s, want %s", name, path, got, want)
	}
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
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
