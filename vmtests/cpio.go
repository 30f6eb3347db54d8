package vmtests

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// cpioWriter writes the "newc" cpio format, the one that kernels unpack as initramfs
// (Documentation/driver-api/early-userspace/buffer-format.rst). Names are relative; parents are made as needed.
type cpioWriter struct {
	w    *bufio.Writer
	size int64
	ino  uint32
	dirs map[string]bool
}

const (
	modeDir     = 0o040000
	modeFile    = 0o100000
	modeSymlink = 0o120000
)

// writeArchive makes the file at path, lets add fill it and ends it with the trailer.
func writeArchive(path string, add func(*cpioWriter) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := &cpioWriter{w: bufio.NewWriterSize(f, 1<<20), dirs: map[string]bool{".": true, "/": true}}
	err = add(w)
	if err == nil {
		err = w.close()
	}
	return errors.Join(err, f.Close())
}

func (c *cpioWriter) header(name string, mode uint32, size int64) error {
	c.ino++
	fields := []any{c.ino, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name) + 1, 0}
	text := "070701" + fmt.Sprintf(strings.Repeat("%08X", len(fields)), fields...) + name + "\x00"
	return c.write(text)
}

func (c *cpioWriter) write(text string) error {
	n, err := c.w.WriteString(text)
	c.size += int64(n)
	return errors.Join(err, c.pad(4))
}

func (c *cpioWriter) pad(to int64) error {
	for ; c.size%to != 0; c.size++ {
		if err := c.w.WriteByte(0); err != nil {
			return err
		}
	}
	return nil
}

func (c *cpioWriter) dir(name string) error {
	if c.dirs[name] {
		return nil
	}
	if err := c.dir(path.Dir(name)); err != nil {
		return err
	}
	c.dirs[name] = true
	return c.header(name, modeDir|0o755, 0)
}

// bytes adds a file with the given content.
func (c *cpioWriter) bytes(name string, perm fs.FileMode, content []byte) error {
	return c.stream(name, perm, int64(len(content)), strings.NewReader(string(content)))
}

// file adds a copy of a file of the host, with its permission bits.
func (c *cpioWriter) file(name, hostPath string) error {
	f, err := os.Open(hostPath)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return c.stream(name, info.Mode().Perm(), info.Size(), f)
}

func (c *cpioWriter) stream(name string, perm fs.FileMode, size int64, content io.Reader) error {
	if err := c.dir(path.Dir(name)); err != nil {
		return err
	}
	if err := c.header(name, modeFile|uint32(perm), size); err != nil {
		return err
	}
	n, err := io.Copy(c.w, content)
	c.size += n
	if err == nil && n != size {
		err = fmt.Errorf("archive %s: %d bytes where %d were announced", name, n, size)
	}
	return errors.Join(err, c.pad(4))
}

func (c *cpioWriter) symlink(name, target string) error {
	if err := c.dir(path.Dir(name)); err != nil {
		return err
	}
	return errors.Join(c.header(name, modeSymlink|0o777, int64(len(target))), c.write(target))
}

// addTree adds the directories, files and links below hostDir under name.
func (c *cpioWriter) addTree(hostDir, name string) error {
	return filepath.WalkDir(hostDir, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(hostDir, file)
		if err != nil {
			return err
		}
		switch inside := path.Join(name, filepath.ToSlash(rel)); {
		case entry.IsDir():
			return c.dir(inside)
		case entry.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(file)
			if err != nil {
				return err
			}
			return c.symlink(inside, target)
		case entry.Type().IsRegular():
			return c.file(inside, file)
		}
		return nil
	})
}

func (c *cpioWriter) close() error {
	if err := c.header("TRAILER!!!", 0, 0); err != nil {
		return err
	}
	return errors.Join(c.pad(512), c.w.Flush())
}
