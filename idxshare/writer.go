package idxshare

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
)

// sortMemory is how much each of a writer's sorters keeps in memory.
const sortMemory = 32 << 20

// Writer makes an index. What is added can come in any order, and lies in files beside the index until Finish. After an error only Abort is of use.
type Writer struct {
	path, temp string
	lock       *os.File // of temp, held as long as the writer lives
	header     Header
	volumes    map[int]*ranged
	files      *sorter // volume, inode, attributes
	names      *sorter // volume, parent, name, inode
	extents    *sorter // volume, physical, inode, logical, length, kind
	replaced   *sorter // what, volume, inode
	scratch    []byte
}

// Create begins an index that will lie at path, where a file that is there is replaced by Finish.
func Create(path string, h Header) (*Writer, error) {
	if h.Size < 0 {
		return nil, badInputf("create index %s: a device of %d bytes", path, h.Size)
	}
	if h.Delta && h.Base == "" {
		return nil, badInputf("create index %s: a delta without a base", path)
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("create index: %w", err)
	}
	w := &Writer{path: path, header: h, volumes: map[int]*ranged{}}
	dir, base := filepath.Split(path)
	removeStale(dir, base)
	if w.temp, w.lock, err = createPartial(dir, base); err != nil {
		return nil, fmt.Errorf("create index: %w", err)
	}
	for _, s := range []**sorter{&w.files, &w.names, &w.extents, &w.replaced} {
		*s = newSorter(dir, sortMemory)
	}
	return w, nil
}

// AddVolume adds a file system. It comes before what lies on it.
func (w *Writer) AddVolume(v Volume) error {
	switch {
	case v.ID < 0 || v.ID >= MaxVolumes:
		return badInputf("volume %d: numbers are 0 to %d", v.ID, MaxVolumes-1)
	case v.Start < 0 || v.Length <= 0 || v.Length > w.header.Size-v.Start:
		return badInputf("volume %d: %d bytes from %d on, of a device of %d", v.ID, v.Length, v.Start, w.header.Size)
	case v.BlockSize <= 0 || v.BlockSize&(v.BlockSize-1) != 0 || v.BlockSize > 1<<26:
		return badInputf("volume %d: blocks of %d bytes", v.ID, v.BlockSize)
	}
	if _, ok := w.volumes[v.ID]; ok {
		return badInputf("volume %d was added before", v.ID)
	}
	if v.Root == 0 {
		v.Root = 2
	}
	w.volumes[v.ID] = &ranged{Volume: v}
	return w.inode(v.ID, v.Root)
}

// ranged is a volume with the ids of its inodes and its blocks. They are ranges, in order of the volumes, so that one number tells volume and inode; in the first
// volume the id is the inode and the block.
type ranged struct {
	Volume
	maxInode                                   uint64 // that was added
	firstFile, lastFile, firstBlock, lastBlock int64
}

// blocks returns how many blocks a volume has, the last of which may be cut short.
func (v *Volume) blocks() int64 { return (v.Length-1)/int64(v.BlockSize) + 1 }

// inode notes that a volume has an inode.
func (w *Writer) inode(volume int, inode uint64) error {
	v, ok := w.volumes[volume]
	switch {
	case !ok:
		return badInputf("volume %d was not added", volume)
	case inode > MaxInode:
		return badInputf("volume %d: inode %d, and %d is the largest", volume, inode, uint64(MaxInode))
	}
	v.maxInode = max(v.maxInode, inode)
	return nil
}

// key begins a record with a volume and an inode.
func (w *Writer) key(volume int, inode uint64) ([]byte, error) {
	if err := w.inode(volume, inode); err != nil {
		return nil, err
	}
	return binary.BigEndian.AppendUint64(append(w.scratch[:0], byte(volume)), inode), nil
}

// AddFile adds an inode. Nothing of it is kept.
func (w *Writer) AddFile(f *File) error {
	b, err := w.key(f.Volume, f.Inode)
	if err != nil {
		return err
	}
	switch {
	case f.Size < 0 || f.Blocks < 0:
		return badInputf("inode %d of volume %d: %d bytes in %d sectors", f.Inode, f.Volume, f.Size, f.Blocks)
	case len(f.Target) > maxTarget:
		return badInputf("inode %d of volume %d: a target of %d bytes", f.Inode, f.Volume, len(f.Target))
	case len(f.Digest) != 0 && len(f.Digest) != digestSize:
		return badInputf("inode %d of volume %d: a digest of %d bytes", f.Inode, f.Volume, len(f.Digest))
	}
	for _, n := range []uint64{uint64(f.Generation), uint64(f.Mode), uint64(f.UID), uint64(f.GID), uint64(f.Links), f.Rdev} {
		b = binary.AppendUvarint(b, n)
	}
	for _, n := range []int64{f.Size, f.Blocks, f.Mtime, f.Atime, f.Ctime, f.Crtime} {
		b = binary.AppendVarint(b, n)
	}
	b = append(binary.AppendUvarint(b, uint64(len(f.Target))), f.Target...)
	w.scratch = append(b, f.Digest...)
	return w.files.add(w.scratch)
}

// AddName adds an entry of a directory. Nothing of it is kept.
func (w *Writer) AddName(n Name) error {
	b, err := w.key(n.Volume, n.Parent)
	if err != nil {
		return err
	}
	switch {
	case len(n.Name) == 0 || len(n.Name) > maxName || bytes.ContainsAny(n.Name, "/\x00") || string(n.Name) == "." || string(n.Name) == "..":
		return badInputf("the name %q in directory %d of volume %d", n.Name[:min(len(n.Name), maxName)], n.Parent, n.Volume)
	}
	if err := w.inode(n.Volume, n.Inode); err != nil {
		return err
	}
	b = append(append(b, n.Name...), 0)
	w.scratch = binary.BigEndian.AppendUint64(b, n.Inode)
	return w.names.add(w.scratch)
}

// AddExtent adds a run of blocks.
func (w *Writer) AddExtent(e Extent) error {
	if err := w.inode(e.Volume, e.Inode); err != nil {
		return err
	}
	blocks := w.volumes[e.Volume].blocks()
	switch {
	case e.Physical < 0 || e.Length <= 0 || e.Logical < 0 || e.Physical > blocks || e.Length > blocks-e.Physical:
		return badInputf("inode %d of volume %d: %d blocks from %d on, of %d", e.Inode, e.Volume, e.Length, e.Physical, blocks)
	case e.Kind > ExtentMetadata:
		return badInputf("an extent of %s of inode %d of volume %d", e.Kind, e.Inode, e.Volume)
	}
	b := binary.BigEndian.AppendUint64(append(w.scratch[:0], byte(e.Volume)), uint64(e.Physical))
	for _, n := range []uint64{e.Inode, uint64(e.Logical), uint64(e.Length)} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	w.scratch = append(b, storedKind(e))
	return w.extents.add(w.scratch)
}

func storedKind(e Extent) byte {
	if e.Unwritten {
		return byte(e.Kind) | unwrittenBit
	}
	return byte(e.Kind)
}

const (
	replacedFile      = 0
	replacedDirectory = 1
)

// ReplaceFile says, in a delta, that what the base has of an inode holds no more: its attributes and its extents. The delta has the inode's new state, or,
// where it was freed, nothing.
func (w *Writer) ReplaceFile(volume int, inode uint64) error {
	return w.replace(replacedFile, volume, inode)
}

// ReplaceDirectory says, in a delta, that the base's names with this parent hold no more. The delta has all names that are there now.
func (w *Writer) ReplaceDirectory(volume int, inode uint64) error {
	return w.replace(replacedDirectory, volume, inode)
}

func (w *Writer) replace(what byte, volume int, inode uint64) error {
	if !w.header.Delta {
		return badInputf("inode %d of volume %d is replaced, but this is no delta", inode, volume)
	}
	b, err := w.key(volume, inode)
	if err != nil {
		return err
	}
	w.scratch = append(w.scratch[:0], slices.Insert(b, 0, what)...)
	return w.replaced.add(w.scratch)
}

// Finish writes the index. When it returns without an error, the index is complete and durable under its name; otherwise nothing is left. The writer is of
// no use afterwards.
func (w *Writer) Finish() error {
	defer w.Abort()
	if w.temp == "" {
		return fmt.Errorf("finish index %s: %w", w.path, fs.ErrClosed)
	}
	if err := w.finish(); err != nil {
		return fmt.Errorf("finish index %s: %w", w.path, err)
	}
	return nil
}

func (w *Writer) finish() error {
	c, err := connect(w.temp, url.Values{})
	if err != nil {
		return err
	}
	err = w.load(c)
	if err = errors.Join(err, c.close()); err != nil {
		return err
	}
	f, err := os.OpenFile(w.temp, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// Which release of SQLite wrote the file would be all that differs where two nodes have two of them.
	if _, err := f.WriteAt(binary.BigEndian.AppendUint32(nil, writtenBy), 96); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(w.temp, w.path); err != nil {
		return err
	}
	w.temp = ""
	dir, err := os.Open(filepath.Dir(w.path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// Abort gives up: nothing is left of the index. It can be called at any time, and after Finish does nothing.
func (w *Writer) Abort() {
	for _, s := range []*sorter{w.files, w.names, w.extents, w.replaced} {
		s.close()
	}
	if w.temp != "" {
		os.Remove(w.temp) //nolint:errcheck // there is nobody to tell
		w.temp = ""
	}
	w.lock.Close()
}
