package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const fillChunk = 1 << 20

// fill writes size bytes of value to the start of a device or file, with direct I/O.
func fill(path string, size int64, value byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	buf, err := unix.Mmap(-1, 0, fillChunk, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("map buffer: %w", err)
	}
	defer func() { _ = unix.Munmap(buf) }()
	if value != 0 { // a fresh mapping is zeros, and stays one shared page until written
		for i := range buf {
			buf[i] = value ^ byte(i>>12) // blocks differ, so that no one can fold them
		}
	}
	for off := int64(0); off < size; off += fillChunk {
		if _, err := f.WriteAt(buf[:min(fillChunk, size-off)], off); err != nil {
			return fmt.Errorf("fill %s at %d: %w", path, off, err)
		}
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return nil
}
