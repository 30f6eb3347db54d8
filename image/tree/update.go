package tree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"coppice/image"
)

// UpdateReport counts what was done to files of an earlier file system. Files with several names count once.
type UpdateReport struct {
	Unchanged    int   `json:"unchanged"` // but for their times
	Patched      int   `json:"patched"`   // that have some other blocks in the place of their own
	Written      int   `json:"written"`   // anew, whether there was one of that name or not
	Removed      int   `json:"removed"`   // or written anew
	WrittenBytes int64 `json:"written_bytes"`
}

// Update makes the file system that an image has into that of a tree, by doing no more to it than it must: what is equal, by content, keeps its
// blocks. It returns a changed copy, which is the caller's to close. Equal images and trees make equal bytes. Of the options, those about
// the size, label and UUID are not for it.
func Update(ctx context.Context, base *image.Image, t *Tree, o Options) (*image.File, UpdateReport, error) {
	u := &updater{chunkBytes: int64(base.ChunkSize())}
	f, err := u.update(ctx, base, t, o)
	if err != nil {
		return nil, u.report, fmt.Errorf("change the base into %s: %w", t.Label, ended(ctx, err))
	}
	return f, u.report, nil
}

// updater is an update under way.
type updater struct {
	*maker
	chunkBytes int64
	fs         *ext4
	old        *Tree

	pairs  map[*Node]*Node // of the tree, and what stays of the base for each
	times  map[*Node]*Node // whose time stands for another's
	fresh  map[*Node]bool  // what stays, but got other content
	remove []name
	create []name
	lost   bool // whether there are blocks that nobody has and that are not free
	report UpdateReport
}

func (u *updater) update(ctx context.Context, base *image.Image, t *Tree, o Options) (*image.File, error) {
	if err := t.check(); err != nil {
		return nil, err
	}
	var err error
	if u.maker, err = newMaker(t, o); err != nil {
		return nil, err
	}
	defer u.content.Close()
	err = copyImage(ctx, base, u.image)
	if err == nil {
		err = u.open(ctx, base.Size())
	}
	if err == nil {
		err = u.change(ctx)
	}
	if err != nil {
		u.image.Close()
		return nil, t.blame(ctx, err)
	}
	return image.NewFile(u.image)
}

// copyImage reads an image into an empty file, and leaves holes where there are zeros.
func copyImage(ctx context.Context, in *image.Image, out *os.File) error {
	if err := out.Truncate(in.Size()); err != nil {
		return err
	}
	p := make([]byte, mib)
	for at := int64(0); at < in.Size(); {
		next, err := in.NextData(ctx, at)
		if err != nil {
			return fmt.Errorf("read base: %w", err)
		}
		if at = next / blockSize * blockSize; at >= in.Size() {
			return nil
		}
		part := p[:min(mib, in.Size()-at)]
		if err := in.Read(ctx, part, at); err != nil {
			return fmt.Errorf("read base: %w", err)
		}
		if _, err := (&holeWriter{f: out, at: at}).Write(part); err != nil {
			return err
		}
		at += int64(len(part))
	}
	return nil
}

func (u *updater) open(ctx context.Context, size int64) error {
	var err error
	if u.fs, err = openExt4(u.image, size); err != nil {
		return fmt.Errorf("the base %w", err)
	}
	if !u.fs.clean {
		return fmt.Errorf("the base was in use, or had errors, when it was made: mount it once, or check it by e2fsck: %w", image.ErrBadOption)
	}
	if err := u.run(ctx, 0, "e2fsck", "-f", "-n", imagePath); err != nil {
		return fmt.Errorf("the base has errors: %w: %w", err, image.ErrBadOption)
	}
	if u.old, err = u.fs.tree(ctx); err != nil {
		return fmt.Errorf("read base: %w", err)
	}
	return nil
}

func (u *updater) change(ctx context.Context) error {
	if err := u.plan(ctx); err != nil {
		return err
	}
	if err := u.session(ctx, u.apply); err != nil {
		return err
	}
	if u.lost {
		if err := u.run(ctx, mended, "e2fsck", "-f", "-y", imagePath); err != nil {
			return err
		}
	}
	return u.verify(ctx, u.times)
}

// plan says for every file whether it stays, and changes content in its place where that is all there is to do.
func (u *updater) plan(ctx context.Context) error {
	u.pairs, u.times, u.fresh = map[*Node]*Node{}, map[*Node]*Node{}, map[*Node]bool{}
	kept := map[*Node]bool{}
	for n, names := range namesOf(u.tree) {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := u.counterpart(names)
		if b == nil {
			continue
		}
		same, err := u.sameContent(n, b)
		if err != nil {
			return fmt.Errorf("%s: %w", show(n.path), err)
		}
		if same {
			u.pairs[n], kept[b] = b, true
		}
	}
	touched := map[string]bool{}
	for _, n := range u.old.names {
		if !kept[n.Node] && n.path != lostFound {
			u.remove = append(u.remove, n)
			u.touch(touched, n)
		}
	}
	for _, n := range u.tree.names {
		if u.pairs[n.Node] == nil {
			u.create = append(u.create, n)
			u.touch(touched, n)
		}
	}
	if u.o.KeepTimes {
		u.keepTimes(touched)
	}
	return nil
}

func (u *updater) touch(touched map[string]bool, n name) {
	dir, _ := split(n.path)
	touched[dir] = true
}

// keepTimes lets what is as it was, but for its time, keep that.
func (u *updater) keepTimes(touched map[string]bool) {
	for n, b := range u.pairs {
		if difference(n, b, b) == "" && !u.fresh[n] && !(n.isDir() && touched[n.path]) {
			u.times[n] = b
		}
	}
}

// namesOf goes through the nodes of a tree, in order, each with all its names.
func namesOf(t *Tree) func(yield func(*Node, []string) bool) {
	all := map[*Node][]string{}
	for _, n := range t.names {
		all[n.Node] = append(all[n.Node], n.path)
	}
	return func(yield func(*Node, []string) bool) {
		for _, n := range t.names {
			if n.isFirst() && !yield(n.Node, all[n.Node]) {
				return
			}
		}
	}
}

// counterpart returns the base's file that has just these names, if it has one.
func (u *updater) counterpart(names []string) *Node {
	first, ok := u.old.find(names[0])
	if !ok || first.Node.names != len(names) {
		return nil
	}
	for _, path := range names[1:] {
		if other, ok := u.old.find(path); !ok || other.Node != first.Node {
			return nil
		}
	}
	return first.Node
}

// sameContent reports whether a file of the base has, or can be given in its place, what is in a file of the tree.
func (u *updater) sameContent(n, b *Node) (bool, error) {
	if n.kind() != b.kind() {
		return false, nil
	}
	switch n.kind() {
	case unix.S_IFREG:
		changes, err := u.changes(n, b)
		if err != nil || changes == nil {
			return false, err
		}
		if len(changes.blocks) == 0 && n.Size == b.Size {
			u.report.Unchanged++
			return true, nil
		}
		u.report.Patched++
		u.fresh[n] = true
		return true, u.patch(n, changes)
	case unix.S_IFLNK:
		return n.Target == b.Target, nil
	case unix.S_IFCHR, unix.S_IFBLK:
		return n.Major == b.Major && n.Minor == b.Minor, nil
	}
	return true, nil
}

// changes are the blocks of a file that are to be others.
type changes struct {
	blocks  []uint64
	extents []extent
}

// changes compares a file of the base with one of the tree. It returns nil where the file is better written anew: where it needs another
// number of blocks, or some that are holes now, or where writing in its place touches more of the image than the file has.
func (u *updater) changes(n, b *Node) (*changes, error) {
	bs := u.fs.blockSize
	blocks := (n.Size + bs - 1) / bs
	if blocks != (b.Size+bs-1)/bs {
		return nil, nil
	}
	inode, err := u.fs.inode(b.at)
	if err != nil {
		return nil, err
	}
	c := &changes{}
	if c.extents, err = u.fs.extents(inode); err != nil {
		return nil, err
	}
	old := &fileReader{f: u.fs, extents: c.extents, size: blocks * bs}
	touched, last := int64(0), int64(-1)
	q := make([]byte, bs)
	better := true
	err = u.eachBlock(n, func(i int64, p []byte) (bool, error) {
		if _, err := io.ReadFull(old, q); err != nil {
			return false, err
		}
		if bytes.Equal(p, q) {
			return true, nil
		}
		at, there := place(c.extents, uint64(i))
		if chunk := int64(at) * bs / u.chunkBytes; chunk != last {
			touched, last = touched+1, chunk
		}
		c.blocks = append(c.blocks, uint64(i))
		better = there && touched*u.chunkBytes < n.Size
		return better, nil
	})
	if err != nil || !better {
		return nil, err
	}
	return c, nil
}

// eachBlock reads a file of the tree, block by block, the last one filled up with zeros, until do has enough.
func (u *updater) eachBlock(n *Node, do func(i int64, p []byte) (bool, error)) error {
	in, err := u.tree.open(n)
	if err != nil {
		return err
	}
	defer in.Close()
	p := make([]byte, u.fs.blockSize)
	for i, left := int64(0), n.Size; left > 0; i++ {
		part := p[:min(left, int64(len(p)))]
		clear(p[len(part):])
		if _, err := io.ReadFull(in, part); err != nil {
			return errors.Join(err, image.ErrChanged)
		}
		left -= int64(len(part))
		if more, err := do(i, p); err != nil || !more {
			return err
		}
	}
	return nil
}

// place returns the block of the file system at which one of a file lies.
func place(extents []extent, logical uint64) (uint64, bool) {
	i, _ := slices.BinarySearchFunc(extents, logical, func(e extent, l uint64) int {
		if e.logical+e.count <= l {
			return -1
		}
		return 1
	})
	if i == len(extents) || extents[i].logical > logical || extents[i].unwritten {
		return 0, false
	}
	return extents[i].physical + logical - extents[i].logical, true
}

// patch writes some blocks in the place of the old ones. Blocks of content have no checksum in the file system.
func (u *updater) patch(n *Node, c *changes) error {
	return u.eachBlock(n, func(i int64, p []byte) (bool, error) {
		if len(c.blocks) == 0 {
			return false, nil
		}
		if c.blocks[0] != uint64(i) {
			return true, nil
		}
		c.blocks = c.blocks[1:]
		at, there := place(c.extents, uint64(i))
		if !there || at == 0 || at >= u.fs.blocks {
			return false, corrupt("block %d is referred to, of %d", at, u.fs.blocks)
		}
		u.report.WrittenBytes += int64(len(p))
		_, err := u.image.WriteAt(p, int64(at)*u.fs.blockSize)
		return true, err
	})
}

// apply does the rest by debugfs. Where there is room, the space of files is freed last: new ones come to lie together behind the old ones
// then, and touch few chunks of the base, and not a piece of each hole that an old one leaves.
func (u *updater) apply(w *writer) error {
	late := u.needed() < int64(u.fs.freeBlocks)
	freed, err := u.unlink(w)
	if err == nil && !late {
		err = u.free(w, freed)
	}
	if err == nil {
		err = w.create(u.create)
	}
	if err == nil {
		err = u.describe(w)
	}
	if err == nil && late {
		err = u.free(w, freed)
	}
	if err != nil {
		return err
	}
	_, err = w.do()
	return err
}

// needed is the space for what is written, in blocks, with room for directories to grow.
func (u *updater) needed() int64 {
	var blocks int64
	for _, n := range u.create {
		blocks++
		if n.isFirst() {
			blocks += n.blocks()
			u.report.Written++
			if n.isRegular() {
				u.report.WrittenBytes += n.Size
			}
		}
	}
	return blocks
}

// unlink removes names, of directories after what is in them, and returns the files that are to be freed.
func (u *updater) unlink(w *writer) ([]*Node, error) {
	var freed []*Node
	for _, n := range slices.Backward(u.remove) {
		dir, base := split(n.path)
		err := w.enter(dir)
		switch {
		case err != nil:
		case n.isDir():
			err = errors.Join(u.freeAttributes(w, n.Node), w.add("rmdir", base))
		default:
			err = w.add("unlink", base)
		}
		if err != nil {
			return nil, err
		}
		if n.isFirst() {
			u.report.Removed++
			if !n.isDir() {
				freed = append(freed, n.Node)
			}
		}
	}
	return freed, nil
}

// free returns the space of files that have no names any more.
func (u *updater) free(w *writer, nodes []*Node) error {
	for _, n := range nodes {
		spec := fmt.Sprintf("<%d>", n.at)
		err := errors.Join(u.freeAttributes(w, n), w.add("set_inode_field", spec, "links_count", "0"), w.add("kill_file", spec))
		if err != nil {
			return err
		}
	}
	return nil
}

// freeAttributes takes a file's attributes away. debugfs does not free the block that they may have, so that is left to e2fsck.
func (u *updater) freeAttributes(w *writer, n *Node) error {
	if !n.extra {
		return nil
	}
	u.lost = true
	spec := fmt.Sprintf("<%d>", n.at)
	return errors.Join(forget(w, spec, n.Xattrs), w.add("set_inode_field", spec, "file_acl", "0"))
}

func forget(w *writer, spec string, attributes []Xattr) error {
	for _, x := range attributes {
		if err := w.add("ea_rm", spec, x.Name); err != nil {
			return err
		}
	}
	return nil
}

// describe gives the files that stay what is theirs beside the content.
func (u *updater) describe(w *writer) error {
	for _, t := range u.tree.names {
		b := u.pairs[t.Node]
		if b == nil || !t.isFirst() {
			continue
		}
		spec := fmt.Sprintf("<%d>", b.at)
		if err := u.fields(w, spec, t.Node, b); err != nil {
			return err
		}
		if slices.EqualFunc(t.Xattrs, b.Xattrs, equalXattrs) {
			continue
		}
		if err := forget(w, spec, b.Xattrs); err != nil {
			return err
		}
		for _, x := range t.Xattrs {
			if err := w.attribute(spec, x); err != nil {
				return fmt.Errorf("write %s: %w", show(t.path), err)
			}
		}
	}
	return nil
}

func (u *updater) fields(w *writer, spec string, n, b *Node) error {
	want := *n
	if time := u.times[n]; time != nil {
		want.Seconds, want.Nanoseconds = time.Seconds, time.Nanoseconds
	}
	old := fields(b)
	for i, f := range fields(&want) {
		if f == old[i] {
			continue
		}
		if err := w.add("set_inode_field", spec, f.name, f.value); err != nil {
			return err
		}
	}
	if n.Size == b.Size {
		return nil
	}
	return w.add("set_inode_field", spec, "size", strconv.FormatInt(n.Size, 10))
}
