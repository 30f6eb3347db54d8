package ext4

import (
	"context"
	"fmt"
)

const (
	xattrMagic       = 0xEA020000
	xattrHeader      = 32 // bytes before the entries of a block
	xattrEntry       = 16 // bytes before an entry's name
	xattrIndexSystem = 7
	xattrValueMax    = 64 << 10
)

// xattrPrefixes are what e_name_index stands for.
var xattrPrefixes = map[byte]string{
	0: "", 1: "user.", 2: "system.posix_acl_access", 3: "system.posix_acl_default", 4: "trusted.", 6: "security.", 7: "system.", 8: "system.richacl", 9: "encryption.",
	10: "hurd.",
}

// XAttrs calls fn for the extended attributes of an inode: those in it, those in its block, values that have inodes of their own among them. The content of a small
// file, which is kept as an attribute, is left out. The value is valid until fn returns. An error of fn ends it and is returned as it is.
func (fs *FS) XAttrs(ctx context.Context, i *Inode, fn func(name string, value []byte) error) error {
	tell := func(a xattr) error {
		if a.index == xattrIndexSystem && string(a.name) == "data" {
			return nil
		}
		prefix, ok := xattrPrefixes[a.index]
		if !ok {
			prefix = fmt.Sprintf("index %d.", a.index)
		}
		if a.inode != 0 {
			value, err := fs.xattrValue(ctx, i, a)
			if err != nil {
				return err
			}
			a.value = value
		}
		return fn(prefix+string(a.name), a.value)
	}
	if i.body != nil {
		if err := parseXattrs(i.body[4:], 0, fmt.Sprintf("in inode %d", i.Number), tell); err != nil {
			return err
		}
	}
	if i.xattrBlock == 0 {
		return nil
	}
	b, err := fs.readXattrBlock(ctx, i)
	if err != nil {
		return err
	}
	return parseXattrs(b, xattrHeader, fmt.Sprintf("in block %d of inode %d", i.xattrBlock, i.Number), tell)
}

func (fs *FS) readXattrBlock(ctx context.Context, i *Inode) ([]byte, error) {
	if err := cause(ctx); err != nil {
		return nil, err
	}
	where := fmt.Sprintf("%d of inode %d", i.xattrBlock, i.Number)
	if !fs.hasBlocks(i.xattrBlock, 1) {
		return nil, corrupt("attribute block", where, "the file system has %d", fs.super.blocks)
	}
	b := make([]byte, fs.super.blockSize)
	if err := fs.readBlocks(i.xattrBlock, b); err != nil {
		return nil, fmt.Errorf("attribute block %s: %w", where, err)
	}
	if magic := le.Uint32(b); magic != xattrMagic {
		return nil, corrupt("attribute block", where, "its magic number is %#08x, not %#08x", magic, xattrMagic)
	}
	if fs.super.hasMetaCsum && !fs.unchecked {
		var number [8]byte
		le.PutUint64(number[:], i.xattrBlock)
		got := crc32c(fs.super.seed, number[:])
		got = crc32c(got, b[:0x10])
		got = crc32c(got, []byte{0, 0, 0, 0})
		got = crc32c(got, b[0x14:])
		if want := le.Uint32(b[0x10:]); want != got {
			return nil, corrupt("attribute block", where, "its checksum is %#08x, its bytes give %#08x", want, got)
		}
	}
	return b, nil
}

// xattr is one attribute. inode, if not zero, holds the value, of size bytes.
type xattr struct {
	index       byte
	name, value []byte
	inode, size uint32
}

// parseXattrs reads the entries from byte first of b on. Places of values count from the beginning of b.
func parseXattrs(b []byte, first int, where string, fn func(xattr) error) error {
	for at := first; ; {
		if len(b)-at >= 4 && le.Uint32(b[at:]) == 0 {
			return nil
		}
		if len(b)-at < xattrEntry {
			return corrupt("list of attributes", where, "it has no end")
		}
		e := b[at:]
		nameLen, offset := int(e[0]), int(le.Uint16(e[2:]))
		a := xattr{index: e[1], inode: le.Uint32(e[4:]), size: le.Uint32(e[8:])}
		if xattrEntry+nameLen > len(e) {
			return corrupt("list of attributes", where, "a name of %d bytes where %d are left", nameLen, len(e)-xattrEntry)
		}
		a.name = e[xattrEntry : xattrEntry+nameLen]
		switch {
		case a.inode != 0 && a.size > xattrValueMax:
			return corrupt("list of attributes", where, "the value of %q would have %d bytes", a.name, a.size)
		case a.inode == 0 && a.size > 0:
			if offset > len(b) || uint64(a.size) > uint64(len(b)-offset) {
				return corrupt("list of attributes", where, "the value of %q would have %d bytes from byte %d on, of %d", a.name, a.size, offset, len(b))
			}
			a.value = b[offset : offset+int(a.size)]
		}
		if err := fn(a); err != nil {
			return err
		}
		at += (xattrEntry + nameLen + 3) &^ 3
	}
}

// xattrValue reads a value that has an inode of its own.
func (fs *FS) xattrValue(ctx context.Context, i *Inode, a xattr) ([]byte, error) {
	where := fmt.Sprintf("%q of inode %d", a.name, i.Number)
	holder, err := fs.Inode(ctx, a.inode)
	if err != nil {
		return nil, fmt.Errorf("attribute %s: %w", where, err)
	}
	if !holder.InUse() || holder.Type() != ModeRegular || holder.Flags&FlagEAInode == 0 || holder.Encrypted() || holder.Size != int64(a.size) {
		return nil, corrupt("attribute", where, "inode %d does not hold a value of %d bytes", a.inode, a.size)
	}
	content, err := fs.Content(ctx, holder)
	if err != nil {
		return nil, fmt.Errorf("attribute %s: %w", where, err)
	}
	value := make([]byte, a.size)
	if err := ReadFull(content, value, 0); err != nil {
		return nil, fmt.Errorf("attribute %s: %w", where, err)
	}
	return value, nil
}

// inlineContent is the content of a file, directory or symbolic link that lies in its inode: in place of its block map, and on in the attribute system.data.
func (fs *FS) inlineContent(i *Inode) ([]byte, error) {
	content := append([]byte(nil), i.blockMap[:]...)
	if i.body != nil {
		err := parseXattrs(i.body[4:], 0, fmt.Sprintf("in inode %d", i.Number), func(a xattr) error {
			if a.index == xattrIndexSystem && string(a.name) == "data" {
				if a.inode != 0 {
					return corrupt("inode", fmt.Sprint(i.Number), "its content would lie in inode %d", a.inode)
				}
				content = append(content, a.value...)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	if i.Size > int64(len(content)) {
		return nil, corrupt("inode", fmt.Sprint(i.Number), "it has %d bytes of content, of which %d lie in it", i.Size, len(content))
	}
	return content[:i.Size], nil
}
