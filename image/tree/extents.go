package tree

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"

	"coppice/image"
)

const (
	extentMagic = 0xf30a
	extentSize  = 12
	extentDepth = 5
	// longestExtent is the number of blocks of one; a larger number is of blocks that are there, but were not written.
	longestExtent = 1 << 15
)

// extent is some neighbouring blocks of a file. All is counted in blocks.
type extent struct {
	logical, count, physical uint64
	unwritten                bool
}

// extents returns where the blocks of a file lie, in their order.
func (f *ext4) extents(inode []byte) ([]extent, error) {
	node := inode[blockMap:][:mapSize]
	if le.Uint32(inode[0x20:])&flagExtents == 0 {
		if isZero(node) {
			return nil, nil
		}
		return nil, fmt.Errorf("a file has its blocks listed as in ext3, and not as extents: %w", image.ErrBadOption)
	}
	left := f.blocks
	all, err := f.extentsOf(node, min(le.Uint16(node[6:]), extentDepth), nil, &left)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(a, b extent) int { return cmp.Compare(a.logical, b.logical) })
	for i := 1; i < len(all); i++ {
		if all[i-1].logical+all[i-1].count > all[i].logical {
			return nil, corrupt("extents of a file overlap")
		}
	}
	return all, nil
}

// extentsOf adds the extents below a node of the tree, of which there are no more than blocks.
func (f *ext4) extentsOf(node []byte, depth uint16, all []extent, left *uint64) ([]extent, error) {
	if le.Uint16(node) != extentMagic || le.Uint16(node[6:]) != depth {
		return nil, corrupt("an extent tree is not one")
	}
	entries := int(le.Uint16(node[2:]))
	if entries > len(node)/extentSize-1 || uint64(len(all)) > f.blocks {
		return nil, corrupt("an extent tree has %d entries", entries)
	}
	for i := range entries {
		e := node[extentSize*(i+1):][:extentSize]
		if depth == 0 {
			next := extent{logical: uint64(le.Uint32(e)), count: uint64(le.Uint16(e[4:])), physical: uint64(le.Uint32(e[8:])) | uint64(le.Uint16(e[6:]))<<32}
			if next.count > longestExtent {
				next.count, next.unwritten = next.count-longestExtent, true
			}
			all = append(all, next)
			continue
		}
		if err := spend(left); err != nil {
			return nil, err
		}
		below := make([]byte, f.blockSize)
		err := f.readBlocks(below, uint64(le.Uint32(e[4:]))|uint64(le.Uint16(e[8:]))<<32)
		if err == nil {
			all, err = f.extentsOf(below, depth-1, all, left)
		}
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// reader reads a file from its beginning.
func (f *ext4) reader(inode []byte, size int64) (io.Reader, error) {
	extents, err := f.extents(inode)
	return &fileReader{f: f, extents: extents, size: size}, err
}

// open opens a regular file.
func (f *ext4) open(n *Node) (io.ReadCloser, error) {
	p, err := f.inode(n.at)
	if err != nil {
		return nil, err
	}
	r, err := f.reader(p, n.Size)
	return io.NopCloser(r), err
}

type fileReader struct {
	f       *ext4
	extents []extent // from the one that at is in or before on
	at      int64
	size    int64
}

// Read reads on. Holes are zeros.
func (r *fileReader) Read(p []byte) (int, error) {
	p = p[:min(int64(len(p)), r.size-r.at)]
	if r.at == r.size {
		return 0, io.EOF
	}
	bs := r.f.blockSize
	for len(r.extents) > 0 && r.at >= int64(r.extents[0].logical+r.extents[0].count)*bs {
		r.extents = r.extents[1:]
	}
	begin, end := r.size, r.size
	var e extent
	if len(r.extents) > 0 {
		e = r.extents[0]
		begin, end = int64(e.logical)*bs, int64(e.logical+e.count)*bs
	}
	switch {
	case r.at < begin:
		p = p[:min(int64(len(p)), begin-r.at)]
		clear(p)
	case e.unwritten:
		p = p[:min(int64(len(p)), end-r.at)]
		clear(p)
	default:
		p = p[:min(int64(len(p)), end-r.at)]
		if e.physical == 0 || e.physical+e.count > r.f.blocks {
			return 0, corrupt("block %d is referred to, of %d", e.physical+e.count, r.f.blocks)
		}
		if n, err := r.f.r.ReadAt(p, int64(e.physical)*bs+r.at-begin); n < len(p) {
			return 0, errors.Join(err, io.ErrUnexpectedEOF)
		}
	}
	r.at += int64(len(p))
	return len(p), nil
}

func isZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
