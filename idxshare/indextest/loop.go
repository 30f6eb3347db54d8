package indextest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Loop is a file system in a file, mounted through a loop device. It needs root.
type Loop struct {
	Image string // the file
	Mount string // where
}

// NewLoop mounts a file in a new directory below dir.
func NewLoop(image, dir string) (*Loop, error) {
	point, err := os.MkdirTemp(dir, "mount-")
	if err != nil {
		return nil, err
	}
	l := &Loop{Image: image, Mount: point}
	if err := command("mount", "-o", "loop,noatime,nodev,user_xattr", image, point); err != nil {
		return nil, errors.Join(err, os.Remove(point))
	}
	return l, nil
}

// Close unmounts it.
func (l *Loop) Close() error {
	return errors.Join(command("umount", l.Mount), os.Remove(l.Mount))
}

// Cut copies the file as it is at one moment, and tells what was there then. A frozen file system has an empty journal and what is behind it in place; one that is
// only written back has in its journal what it would recover from after a power cut.
func (l *Loop) Cut(dest string, freeze bool) (map[string]Record, error) {
	f, err := os.Open(l.Mount)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return nil, fmt.Errorf("write back: %w", err)
	}
	if freeze {
		if err := unix.IoctlSetInt(int(f.Fd()), fiFreeze, 0); err != nil {
			return nil, fmt.Errorf("freeze: %w", err)
		}
		defer unix.IoctlSetInt(int(f.Fd()), fiThaw, 0) //nolint:errcheck // there is nobody to tell
	}
	records, err := Walk(l.Mount)
	if err != nil {
		return nil, err
	}
	return records, command("cp", "--sparse=always", l.Image, dest)
}

// The requests of include/uapi/linux/fs.h.
const (
	fiFreeze = 0xC0045877
	fiThaw   = 0xC0045878
)

func command(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(name), err, bytes.TrimSpace(out))
	}
	return nil
}

// Differences calls fn with the ranges, in order and in multiples of 4 KiB, in which two files of the same length differ.
func Differences(before, after string, fn func(off, length int64)) error {
	a, err := os.Open(before)
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := os.Open(after)
	if err != nil {
		return err
	}
	defer b.Close()
	p, q := make([]byte, 1<<20), make([]byte, 1<<20)
	begin, at := int64(-1), int64(0)
	for {
		n, errA := io.ReadFull(a, p)
		m, errB := io.ReadFull(b, q)
		if n != m {
			return fmt.Errorf("compare %s with %s: they are of different lengths", before, after)
		}
		for k := 0; k < n; k += 4096 {
			end := min(k+4096, n)
			switch same := bytes.Equal(p[k:end], q[k:end]); {
			case !same && begin < 0:
				begin = at
			case same && begin >= 0:
				fn(begin, at-begin)
				begin = -1
			}
			at += int64(end - k)
		}
		if errA != nil || errB != nil {
			if begin >= 0 {
				fn(begin, at-begin)
			}
			if errors.Is(errA, io.EOF) || errors.Is(errA, io.ErrUnexpectedEOF) {
				return nil
			}
			return errors.Join(errA, errB)
		}
	}
}
