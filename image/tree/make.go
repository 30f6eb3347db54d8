package tree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"coppice/image"
)

// Options say how a file system is made. The zero value is complete, but for UUID.
type Options struct {
	// Scratch is the directory of the file that holds the file system, which has no name there. Empty means that of temporary files.
	Scratch string
	// SizeBytes is that of the file system. 0 means what the tree needs, and a quarter, and 64 MiB.
	SizeBytes int64
	// UUID is that of the file system. Directories are ordered by it, too.
	UUID string
	// Label is the name of the file system, of up to 16 bytes.
	Label string
	// Seconds, since 1970, is all times but those of files' modification. 0 means that of the tree's newest file.
	Seconds int64
	// KeepTimes lets files that are as they were keep their time of modification, too, when a file system is changed.
	KeepTimes bool
	// Progress is told how many bytes of files are done, of how many.
	Progress func(done, total int64)
}

const (
	mib        = 1 << 20
	smallestFS = 16 * mib
	largestFS  = 1 << 44
	inodeBytes = 256
	// bytesPerInode is the space for which there is one more file.
	bytesPerInode = 16 << 10
	// mended is e2fsck's exit code where it has changed something.
	mended   = 1
	features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum"
)

// Make makes a new ext4 file system of a tree. It is the caller's to close. Equal trees and options make equal bytes.
func Make(ctx context.Context, t *Tree, o Options) (*image.File, error) {
	f, err := makeFS(ctx, t, o)
	if err != nil {
		return nil, fmt.Errorf("make file system of %s: %w", t.Label, ended(ctx, err))
	}
	return f, nil
}

func makeFS(ctx context.Context, t *Tree, o Options) (*image.File, error) {
	if err := t.check(); err != nil {
		return nil, err
	}
	size, inodes, err := t.geometry(o.SizeBytes)
	if err != nil {
		return nil, err
	}
	m, err := newMaker(t, o)
	if err != nil {
		return nil, err
	}
	defer m.content.Close()
	if err := m.fill(ctx, size, inodes); err != nil {
		m.image.Close()
		return nil, t.blame(ctx, err)
	}
	return image.NewFile(m.image)
}

// blame prefers to say that the source has changed.
func (t *Tree) blame(ctx context.Context, err error) error {
	if t.unchanged == nil || ctx.Err() != nil {
		return err
	}
	if changed := t.unchanged(); changed != nil {
		return changed
	}
	return err
}

// check refuses a tree that cannot be written, before anything is.
func (t *Tree) check() error {
	if len(t.names) <= 1 {
		return fmt.Errorf("is empty: %w", image.ErrBadOption)
	}
	for _, n := range t.names {
		if err := n.check(); err != nil {
			return err
		}
	}
	if root := t.names[0]; root.path != "" || !root.isDir() {
		return fmt.Errorf("its root is no directory: %w", image.ErrBadOption)
	}
	return nil
}

// geometry returns how large a file system is to be, and for how many files.
func (t *Tree) geometry(asked int64) (size, inodes int64, err error) {
	need := t.blocks()*blockSize + int64(len(t.names))*inodeBytes
	size = asked
	if asked == 0 {
		size = roundUp(need*5/4+64*mib, 16*mib)
	}
	inodes = max(int64(len(t.names))*5/4+1024, size/bytesPerInode)
	if asked == 0 {
		size = roundUp(size+inodes*inodeBytes, 16*mib)
	}
	switch {
	case size < smallestFS || size > largestFS || size%blockSize != 0:
		return 0, 0, fmt.Errorf("a file system has 16 MiB to 16 TiB, in blocks of 4 KiB, and not %d bytes: %w", size, image.ErrBadOption)
	case inodes*inodeBytes > size/2: // holes need no space, so only debugfs finds out about the content
		return 0, 0, fmt.Errorf("%d bytes are too little for %d files: %w", size, len(t.names), ErrFull)
	}
	return size, inodes, nil
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

// journalMiB is the size of a journal. Small file systems have a small one.
func journalMiB(size int64) int64 {
	switch {
	case size < 128*mib:
		return 4
	case size < 1024*mib:
		return 16
	case size < 16<<30:
		return 64
	}
	return 128
}

// maker makes or changes one file system.
type maker struct {
	tools
	tree    *Tree
	o       Options
	content *os.File
}

func newMaker(t *Tree, o Options) (*maker, error) {
	if o.Progress == nil {
		o.Progress = func(int64, int64) {}
	}
	now := o.Seconds
	if now == 0 {
		now = t.newest()
	}
	now = min(max(now, 1), 1<<32-1) // what the tools take; to them 0 is no time
	m := &maker{tools: tools{now: now}, tree: t, o: o}
	var err error
	if m.image, err = scratchFile(o.Scratch); err != nil {
		return nil, err
	}
	if m.content, err = scratchFile(o.Scratch); err != nil {
		m.image.Close()
		return nil, err
	}
	return m, nil
}

func (m *maker) fill(ctx context.Context, size, inodes int64) error {
	if err := m.image.Truncate(size); err != nil {
		return err
	}
	args := []string{"-q", "-F", "-t", "ext4", "-b", "4096", "-I", strconv.Itoa(inodeBytes), "-m", "0", "-o", "Linux", "-U", m.o.UUID, "-L", m.o.Label,
		"-N", strconv.FormatInt(inodes, 10), "-O", features, "-J", fmt.Sprintf("size=%d", journalMiB(size)), "-e", "continue",
		"-E", "hash_seed=" + m.o.UUID + ",lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0,nodiscard", imagePath, strconv.FormatInt(size/blockSize, 10)}
	if err := m.run(ctx, 0, "mke2fs", args...); err != nil {
		return err
	}
	err := m.session(ctx, func(w *writer) error {
		w.fresh = true
		return w.create(m.tree.names)
	})
	if err != nil {
		return err
	}
	if err := m.run(ctx, mended, "e2fsck", "-f", "-y", "-D", imagePath); err != nil {
		return err
	}
	return m.verify(ctx, nil)
}

// session lets a writer work.
func (m *maker) session(ctx context.Context, work func(*writer) error) error {
	dir := m.tree.host
	if dir == "" {
		dir = "/"
	}
	d, err := m.startDebugfs(ctx, dir, m.content)
	if err != nil {
		return err
	}
	total := m.tree.Bytes()
	w := &writer{debugfs: d, tree: m.tree, content: m.content, made: map[*Node]uint64{}, progress: func(n int64) { m.o.Progress(n, total) }}
	err = work(w)
	return errors.Join(err, d.end())
}

// verify has the file system checked, and compares all of it with the tree.
func (m *maker) verify(ctx context.Context, times map[*Node]*Node) error {
	if err := m.run(ctx, 0, "e2fsck", "-f", "-n", imagePath); err != nil {
		return err
	}
	info, err := m.image.Stat()
	if err != nil {
		return err
	}
	got, err := Open(ctx, m.image, info.Size())
	if err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	err = compare(ctx, m.tree, got, times)
	if err == nil {
		err = m.tree.blame(ctx, nil)
	}
	return err
}
