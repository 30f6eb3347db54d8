package tree

import (
	"bytes"
)

const (
	xattrMagic   = 0xea020000
	xattrHead    = 32 // of a block
	xattrEntry   = 16
	xattrWithACL = 4
)

// xattrPrefixes are the beginnings of names, by their number in an entry.
var xattrPrefixes = map[byte]string{1: "user.", 2: accessACL, 3: defaultACL, 4: "trusted.", 6: "security.", 7: "system."}

// xattrs returns the attributes of an inode, those in it and those in a block of their own.
func (f *ext4) xattrs(inode []byte) ([]Xattr, error) {
	var all []Xattr
	if extra := extraOf(inode); extra > 0 && len(inode) >= inodeBase+extra+8 {
		in := inode[inodeBase+extra:]
		if le.Uint32(in) == xattrMagic {
			var err error
			if all, err = xattrsOf(in[4:], in[4:], nil); err != nil {
				return nil, err
			}
		}
	}
	at := uint64(le.Uint32(inode[0x68:])) | uint64(le.Uint16(inode[0x76:]))<<32
	if at == 0 {
		return all, nil
	}
	block := make([]byte, f.blockSize)
	if err := f.readBlocks(block, at); err != nil {
		return nil, err
	}
	if le.Uint32(block) != xattrMagic {
		return nil, corrupt("block %d holds no attributes", at)
	}
	return xattrsOf(block[xattrHead:], block, all)
}

// xattrsOf reads entries whose values lie in an area.
func xattrsOf(p, area []byte, all []Xattr) ([]Xattr, error) {
	for len(p) >= 4 && le.Uint32(p) != 0 {
		if len(p) < xattrEntry || len(p) < xattrEntry+int(p[0]) {
			return nil, corrupt("an attribute ends early")
		}
		length, index := int(p[0]), p[1]
		at, size := uint64(le.Uint16(p[2:])), uint64(le.Uint32(p[8:]))
		prefix, known := xattrPrefixes[index]
		if !known || le.Uint32(p[4:]) != 0 || at+size > uint64(len(area)) {
			return nil, corrupt("an attribute of kind %d has %d bytes at %d", index, size, at)
		}
		x := Xattr{prefix + string(p[xattrEntry:][:length]), bytes.Clone(area[at:][:size])}
		if index < xattrWithACL && index > 1 {
			var err error
			if x.Value, err = unpackACL(x.Value); err != nil {
				return nil, err
			}
		}
		all = append(all, x)
		p = p[min(len(p), xattrEntry+(length+3)&^3):]
	}
	return all, nil
}
