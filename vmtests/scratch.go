package vmtests

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Scratch makes an empty sparse disk for each "NAME=SIZE". They lie in a temporary directory that cleanup removes.
func (b *Build) Scratch(specs []string) (disks []Disk, cleanup func(), err error) {
	dir, err := os.MkdirTemp(b.dir, "scratch-")
	if err != nil {
		return nil, nil, err
	}
	cleanup = func() { _ = os.RemoveAll(dir) }
	for _, spec := range specs {
		name, size, ok := strings.Cut(spec, "=")
		bytes, sizeErr := parseSize(size)
		if !ok || sizeErr != nil {
			cleanup()
			return nil, nil, fmt.Errorf("make scratch disk %q: want NAME=SIZE such as leaf=4G: %w", spec, sizeErr)
		}
		path := filepath.Join(dir, name)
		if err := SparseFile(path, bytes); err != nil {
			cleanup()
			return nil, nil, err
		}
		disks = append(disks, Disk{Name: name, Path: path})
	}
	return disks, cleanup, nil
}

// SparseFile makes an empty file of the given size in bytes.
func SparseFile(path string, sizeBytes int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("make disk file: %w", err)
	}
	return errors.Join(f.Truncate(sizeBytes), f.Close())
}

// parseSize reads a number with an optional binary unit K, M, G or T.
func parseSize(text string) (int64, error) {
	shift := 0
	if i := strings.IndexByte("KMGT", lastByte(text)); i >= 0 {
		shift, text = 10*(i+1), text[:len(text)-1]
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n <= 0 || n > 1<<62>>shift {
		return 0, fmt.Errorf("read size %q: want a positive number with K, M, G or T", text)
	}
	return n << shift, nil
}

func lastByte(s string) byte {
	if s == "" {
		return 0
	}
	return s[len(s)-1]
}
