package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"coppice/internal/directio"
)

const (
	fillChunk = 1 << 20
	fillBlock = 4 << 10
)

// fill writes the first size bytes of a device or file, with direct I/O: seed 0 for zeros, and otherwise what depends on seed and place, so that no two blocks
// are equal and nobody can store them once.
func fill(path string, size int64, seed uint64) error { return fillPart(path, size, seed, 0, 1) }

// stripe is the part that fillPart writes or leaves out.
const stripe = 64 << 10

// fillPart is fill for one of every so many stripes.
func fillPart(path string, size int64, seed uint64, part, of int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := directio.Buffer(fillChunk)
	step := int64(fillChunk)
	if of > 1 {
		step = stripe
	}
	for off := part * step; off < size; off += step * of {
		p := buf[:min(step, size-off)]
		for at := 0; seed != 0 && at < len(p); at += fillBlock {
			binary.LittleEndian.PutUint64(p[at:], uint64(off)+uint64(at))
			binary.LittleEndian.PutUint64(p[at+8:], seed)
		}
		if _, err := f.WriteAt(p, off); err != nil {
			return fmt.Errorf("fill %s at %d: %w", path, off, err)
		}
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return nil
}

// readAll reads the first size bytes of a device, past the page cache.
func readAll(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := directio.Buffer(fillChunk)
	for off := int64(0); off < size; off += fillChunk {
		if _, err := f.ReadAt(buf[:min(fillChunk, size-off)], off); err != nil && err != io.EOF {
			return fmt.Errorf("read %s at %d: %w", path, off, err)
		}
	}
	return nil
}
