package idxshare

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"golang.org/x/sync/errgroup"

	"coppice/idxshare/ext4"
)

const (
	digestBuffer  = 256 << 10
	digestReaders = 2
	// absurdLength is how many times its device a file may be long, holes included, to be read for its digest.
	absurdLength = 64
	// sharedMost is how many files have a block, on average, at most, in a file system where files may share blocks.
	sharedMost = 64
)

// ext4Volume is an ext2, ext3 or ext4 file system that is read from its blocks.
type ext4Volume struct {
	fs *ext4.FS
	v  Volume

	contents []content // of regular files with a digest, in order of inode once they are read
	unmapped int64     // blocks that files may still have
}

func newExt4Volume(fs *ext4.FS, v Volume) *ext4Volume {
	info := fs.Info()
	e := &ext4Volume{fs: fs, v: v, unmapped: int64(info.Blocks)}
	if slices.Contains(info.Features, "shared_blocks") {
		e.unmapped *= sharedMost
	}
	return e
}

// content is a regular file that is read.
type content struct {
	inode uint32
	first int64 // block that it begins in
	sum   [sha256.Size]byte
}

func (e *ext4Volume) close() error { return nil }

// digests reads the files in the order in which they lie, each whole.
func (e *ext4Volume) digests(ctx context.Context) (none int64, err error) {
	err = e.fs.Scan(ctx, func(i *ext4.Inode) error {
		if i.Type() != ext4.ModeRegular || e.fs.Internal(i) != "" {
			return nil
		}
		if i.Encrypted() || i.Size/absurdLength > e.v.Length {
			none++
			return nil
		}
		first, err := e.first(ctx, i)
		e.contents = append(e.contents, content{inode: i.Number, first: first})
		return err
	})
	if err != nil {
		return none, err
	}
	slices.SortFunc(e.contents, func(a, b content) int { return cmp.Compare(a.first, b.first) })
	work := make(chan *content)
	group, ctx := errgroup.WithContext(ctx)
	for range digestReaders {
		group.Go(func() error {
			buffer := make([]byte, digestBuffer)
			for c := range work {
				if err := e.digest(ctx, c, buffer); err != nil {
					return fmt.Errorf("digest of inode %d: %w", c.inode, err)
				}
			}
			return nil
		})
	}
	group.Go(func() error {
		defer close(work)
		for n := range e.contents {
			select {
			case work <- &e.contents[n]:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	if err := group.Wait(); err != nil {
		return none, err
	}
	slices.SortFunc(e.contents, func(a, b content) int { return cmp.Compare(a.inode, b.inode) })
	return none, nil
}

var errFound = errors.New("found")

// first is the block that a file's data begins in; 0 for one without.
func (e *ext4Volume) first(ctx context.Context, i *ext4.Inode) (first int64, err error) {
	err = e.fs.Extents(ctx, i, func(x ext4.Extent) error {
		if x.Kind == ext4.ExtentXattr {
			return nil
		}
		first = x.Physical
		return errFound
	})
	if errors.Is(err, errFound) {
		err = nil
	}
	return first, err
}

func (e *ext4Volume) digest(ctx context.Context, c *content, buffer []byte) error {
	i, err := e.fs.Inode(ctx, c.inode)
	if err != nil {
		return err
	}
	data, err := e.fs.Content(ctx, i)
	if err != nil {
		return err
	}
	sum := sha256.New()
	if _, err := io.CopyBuffer(sum, io.NewSectionReader(data, 0, data.Size()), buffer); err != nil {
		return err
	}
	sum.Sum(c.sum[:0])
	return nil
}

// DigestOf reads the content of one regular file of a device, and returns its SHA-256. The volume is one that the device has now, of which files are known by blocks. That a file is encrypted, or
// all but empty and absurdly long, is an error that wraps [ErrNotFound].
func DigestOf(ctx context.Context, device io.ReaderAt, v Volume, inode uint64) ([]byte, error) {
	fail := func(err error) ([]byte, error) {
		return nil, fmt.Errorf("digest of inode %d of volume %d: %w", inode, v.ID, err)
	}
	if inode > math.MaxUint32 || !v.Mapped {
		return fail(ErrNotFound)
	}
	fs, err := ext4.Open(io.NewSectionReader(&contentReader{r: device, size: v.Start + v.Length}, v.Start, v.Length), v.Length)
	if err != nil {
		return fail(err)
	}
	i, err := fs.Inode(ctx, uint32(inode))
	switch {
	case err != nil:
		return fail(err)
	case i.Type() != ext4.ModeRegular || i.Encrypted() || i.Size/absurdLength > v.Length:
		return fail(ErrNotFound)
	}
	e, c := newExt4Volume(fs, v), content{inode: i.Number}
	if err := e.digest(ctx, &c, make([]byte, digestBuffer)); err != nil {
		return fail(err)
	}
	return c.sum[:], nil
}

// write goes over the inodes in their order, and then over the directories in the order in which they lie.
func (e *ext4Volume) write(ctx context.Context, b *builder) error {
	type directory struct {
		*ext4.Inode
		first int64
	}
	var directories []directory
	contents := e.contents
	err := e.fs.Scan(ctx, func(i *ext4.Inode) error {
		if e.fs.Internal(i) != "" {
			return e.internal(ctx, b, i)
		}
		f := fileOf(e.v.ID, i)
		for len(contents) > 0 && contents[0].inode < i.Number {
			contents = contents[1:]
		}
		if len(contents) > 0 && contents[0].inode == i.Number {
			f.Digest = contents[0].sum[:]
		}
		if i.Type() == ext4.ModeSymlink {
			var err error
			if f.Target, err = e.fs.Readlink(ctx, i); err != nil && !errors.Is(err, ext4.ErrEncrypted) {
				return err
			}
		}
		if err := b.file(f); err != nil {
			return err
		}
		first := int64(0)
		err := e.fs.Extents(ctx, i, func(x ext4.Extent) error {
			if first == 0 && x.Kind == ext4.ExtentData {
				first = x.Physical
			}
			if err := e.count(x); err != nil {
				return err
			}
			return b.w.AddExtent(extentOf(e.v.ID, i, x))
		})
		if i.Type() == ext4.ModeDir {
			directories = append(directories, directory{i, first})
		}
		return err
	})
	if err != nil {
		return err
	}
	slices.SortFunc(directories, func(a, b directory) int { return cmp.Compare(a.first, b.first) })
	for _, d := range directories {
		err := e.fs.ReadDir(ctx, d.Inode, func(entry ext4.DirEntry) error {
			return b.name(nameOf(e.v.ID, d.Inode, entry))
		})
		if err != nil {
			return err
		}
	}
	return e.fs.Regions(func(first, count uint64, _ ext4.PlaceKind) error {
		return b.w.AddExtent(Extent{Volume: e.v.ID, Kind: ExtentMetadata, Physical: int64(first), Length: int64(count)})
	})
}

// count refuses files that have more blocks than there are, which some of them must share then: a limit of time and memory for a file system that was made to harm.
// Blocks of attributes are shared.
func (e *ext4Volume) count(x ext4.Extent) error {
	if x.Kind == ext4.ExtentXattr {
		return nil
	}
	if e.unmapped -= x.Length; e.unmapped < 0 {
		return &ext4.CorruptError{What: "map of blocks", Where: "of all files", Detail: "files have more blocks than the file system, so that some have the same"}
	}
	return nil
}

// internal adds the blocks of an inode without a name, of the journal for one, as the file system's own. One keeps blocks for descriptors, which are that already.
func (e *ext4Volume) internal(ctx context.Context, b *builder, i *ext4.Inode) error {
	return e.fs.Extents(ctx, i, func(x ext4.Extent) error {
		if e.fs.Place(uint64(x.Physical)).Kind != ext4.PlaceOther {
			return nil
		}
		if err := e.count(x); err != nil {
			return err
		}
		return b.w.AddExtent(Extent{Volume: e.v.ID, Kind: ExtentMetadata, Physical: x.Physical, Length: x.Length})
	})
}

// fileOf is a file as its inode tells it, without target and digest.
func fileOf(volume int, i *ext4.Inode) *File {
	f := &File{
		Volume: volume, Inode: uint64(i.Number), Generation: i.Generation, Mode: i.Mode, UID: i.UID, GID: i.GID, Size: i.Size, Links: i.Links, Blocks: i.Blocks, Rdev: i.Rdev,
		Atime: i.Atime.UnixNano(), Mtime: i.Mtime.UnixNano(), Ctime: i.Ctime.UnixNano(), Crtime: i.Crtime.UnixNano(),
	}
	// As stat(2) tells it (Linux 6.12, ext4_file_getattr): some programs take a file without blocks for one without content. What it has are blocks of attributes.
	if i.Type() == ext4.ModeRegular && i.Flags&ext4.FlagInlineData != 0 {
		f.Blocks += (f.Size + 511) / 512
	}
	return f
}

// nameOf is an entry of a directory as an index has it. What is stored of an encrypted name may be any bytes, also a slash: of it the index has base64 for URLs, without padding.
func nameOf(volume int, directory *ext4.Inode, e ext4.DirEntry) Name {
	n := Name{Volume: volume, Parent: uint64(directory.Number), Name: e.Name, Inode: uint64(e.Inode)}
	if directory.Encrypted() {
		n.Name = base64.RawURLEncoding.AppendEncode(nil, e.Name)
	}
	return n
}

// extentOf is an extent of an inode as an index has it.
func extentOf(volume int, i *ext4.Inode, e ext4.Extent) Extent {
	x := Extent{Volume: volume, Inode: uint64(i.Number), Kind: ExtentData, Logical: e.Logical, Physical: e.Physical, Length: e.Length, Unwritten: e.Unwritten}
	switch {
	case e.Kind == ext4.ExtentTree:
		x.Kind, x.Logical = ExtentTree, 0
	case e.Kind == ext4.ExtentXattr:
		x.Kind, x.Logical = ExtentXattr, 0
	case i.Type() == ext4.ModeDir:
		x.Kind = ExtentDirectory
	}
	return x
}
