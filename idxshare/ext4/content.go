package ext4

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
)

// symlinkMax is the longest target that Linux follows, with the zero byte after it.
const symlinkMax = 4096

// Content reads the bytes of a regular file. It is an [io.ReaderAt], safe for concurrent use, and serves as long as the context does that it was made with.
type Content struct {
	fs     *FS
	ctx    context.Context
	number uint32
	size   int64
	inline []byte
	data   []Extent // in order of Logical
}

// Content opens a regular file, or an inode that holds an attribute's value. Its map is read at once: 40 bytes of memory for an extent.
// The content of an encrypted file is an error that matches [ErrEncrypted].
func (fs *FS) Content(ctx context.Context, i *Inode) (*Content, error) {
	if i.Type() != ModeRegular {
		return nil, fmt.Errorf("inode %d is no regular file: its mode is %#o", i.Number, i.Mode)
	}
	if i.Encrypted() {
		return nil, fmt.Errorf("content of inode %d: %w", i.Number, ErrEncrypted)
	}
	return fs.content(ctx, i)
}

func (fs *FS) content(ctx context.Context, i *Inode) (*Content, error) {
	c := &Content{fs: fs, ctx: ctx, number: i.Number, size: i.Size}
	if i.Flags&FlagInlineData != 0 {
		var err error
		c.inline, err = fs.inlineContent(i)
		return c, err
	}
	err := fs.Extents(ctx, i, func(e Extent) error {
		if e.Kind == ExtentData && !e.Unwritten {
			c.data = append(c.data, e)
		}
		return nil
	})
	return c, err
}

// Size is the length in bytes.
func (c *Content) Size() int64 { return c.size }

// ReadAt implements [io.ReaderAt]. Holes, and blocks that were allocated and not written, are zeros.
func (c *Content) ReadAt(p []byte, offset int64) (int, error) {
	if offset < 0 {
		return 0, errors.New("read before the beginning of a file")
	}
	if offset >= c.size {
		return 0, io.EOF
	}
	if err := cause(c.ctx); err != nil {
		return 0, err
	}
	end := error(nil)
	if int64(len(p)) > c.size-offset {
		p, end = p[:c.size-offset], io.EOF
	}
	if c.inline != nil {
		return copy(p, c.inline[offset:]), end
	}
	if err := c.read(p, offset); err != nil {
		return 0, fmt.Errorf("content of inode %d: %w", c.number, err)
	}
	return len(p), end
}

// read fills p from the extents, which overlay what is zero.
func (c *Content) read(p []byte, offset int64) error {
	bs := int64(c.fs.super.blockSize)
	next := sort.Search(len(c.data), func(n int) bool { return (c.data[n].Logical+c.data[n].Length)*bs > offset })
	for len(p) > 0 {
		if next == len(c.data) || c.data[next].Logical*bs >= offset+int64(len(p)) {
			clear(p)
			return nil
		}
		e := c.data[next]
		if hole := e.Logical*bs - offset; hole > 0 {
			clear(p[:hole])
			p, offset = p[hole:], offset+hole
		}
		n := min(int64(len(p)), (e.Logical+e.Length)*bs-offset)
		if err := c.fs.readBytes(p[:n], e.Physical*bs+offset-e.Logical*bs); err != nil {
			return err
		}
		p, offset = p[n:], offset+n
		next++
	}
	return nil
}

// readBytes reads any bytes of the file system, as they are with the journal replayed.
func (fs *FS) readBytes(p []byte, offset int64) error {
	bs := int64(fs.super.blockSize)
	if len(fs.overlay) == 0 || offset%bs == 0 && int64(len(p))%bs == 0 {
		if len(fs.overlay) == 0 {
			return ReadFull(fs.r, p, offset)
		}
		return fs.readBlocks(uint64(offset/bs), p)
	}
	first := offset / bs
	whole := make([]byte, (offset+int64(len(p))-1)/bs*bs+bs-first*bs)
	if err := fs.readBlocks(uint64(first), whole); err != nil {
		return err
	}
	copy(p, whole[offset-first*bs:])
	return nil
}

// Readlink returns the target of a symbolic link. That of an encrypted one is an error that matches [ErrEncrypted].
func (fs *FS) Readlink(ctx context.Context, i *Inode) ([]byte, error) {
	switch {
	case i.Type() != ModeSymlink:
		return nil, fmt.Errorf("inode %d is no symbolic link: its mode is %#o", i.Number, i.Mode)
	case i.Encrypted():
		return nil, fmt.Errorf("target of symbolic link, inode %d: %w", i.Number, ErrEncrypted)
	case i.Size == 0 || i.Size >= symlinkMax && i.Size > int64(fs.super.blockSize):
		return nil, corrupt("symbolic link", fmt.Sprintf("inode %d", i.Number), "its target would have %d bytes", i.Size)
	case i.fastSymlink():
		return slices.Clone(i.blockMap[:i.Size]), nil
	}
	content, err := fs.content(ctx, i)
	if err != nil {
		return nil, err
	}
	target := make([]byte, i.Size)
	return target, ReadFull(content, target, 0)
}
