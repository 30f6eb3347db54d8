package idxshare

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"coppice/idxshare/ext4"
)

// signatures are what volumes that hold no ext4 begin with, as blkid knows them.
var signatures = []struct {
	kind   string
	offset int64
	magic  string
}{
	{"xfs", 0, "XFSB"},
	{"crypto_LUKS", 0, "LUKS\xba\xbe"},
	{"LVM2_member", 512 + 24, "LVM2 001"},
	{"LVM2_member", 24, "LVM2 001"},
	{"linux_raid_member", 4096, "\xfc\x4e\x2b\xa9"},
	{"linux_raid_member", 0, "\xfc\x4e\x2b\xa9"},
	{"swap", 4096 - 10, "SWAPSPACE2"},
	{"swap", 65536 - 10, "SWAPSPACE2"},
	{"btrfs", 0x10040, "_BHRfS_M"},
	{"f2fs", 1024, "\x10\x20\xf5\xf2"},
	{"squashfs", 0, "hsqs"},
	{"erofs", 1024, "\xe2\xe1\xf5\xe0"},
	{"iso9660", 0x8001, "CD001"},
	{"ntfs", 3, "NTFS    "},
	{"exfat", 3, "EXFAT   "},
	{"vfat", 82, "FAT32   "},
	{"vfat", 54, "FAT16   "},
	{"vfat", 54, "FAT12   "},
	{"ext4", 1024 + 0x38, "\x53\xef"},
}

// containers hold no files by themselves, and say what a person can do.
var containers = map[string]string{
	"crypto_LUKS":       "it is encrypted (LUKS): unlock it, and index what it shows",
	"LVM2_member":       "it belongs to a group of volumes (LVM): index each of the group's volumes",
	"linux_raid_member": "it belongs to an array (md): index the array",
	"swap":              "it is swap space and has no files",
}

// probe tells what a volume holds; "" for nothing that is known here.
func probe(r io.ReaderAt, p part) (string, error) {
	for _, s := range signatures {
		b := make([]byte, len(s.magic))
		if s.offset+int64(len(b)) > p.length {
			continue
		}
		if err := ext4.ReadFull(r, b, p.start+s.offset); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return "", fmt.Errorf("look for a file system: %w", err)
		}
		if bytes.Equal(b, []byte(s.magic)) {
			return s.kind, nil
		}
	}
	return "", nil
}
