package boot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
)

// signatures are what disks begin with that hold something, most telling first: blkid of util-linux has the same, and many more. They make messages
// clearer; what keeps a disk from being formatted is any byte in its first or last MiB that is not zero.
var signatures = []struct {
	what  string
	off   int64
	magic string
}{
	{"an ext2, ext3 or ext4 file system", 0x438, "\x53\xef"},
	{"an xfs file system", 0, "XFSB"},
	{"a btrfs file system", 0x10040, "_BHRfS_M"},
	{"an f2fs file system", 0x400, "\x10\x20\xf5\xf2"},
	{"a squashfs file system", 0, "hsqs"},
	{"an ISO 9660 file system", 0x8001, "CD001"},
	{"an NTFS file system", 3, "NTFS    "},
	{"an exFAT file system", 3, "EXFAT   "},
	{"a FAT file system", 0x52, "FAT32   "},
	{"a FAT file system", 0x36, "FAT1"},
	{"swap space", 4086, "SWAPSPACE2"},
	{"an encrypted volume (LUKS)", 0, "LUKS\xba\xbe"},
	{"a physical volume of LVM", 0x218, "LVM2 001"},
	{"a member of a RAID (md)", 4096, "\xfc\x4e\x2b\xa9"},
	{"a member of a bcache", 4096 + 24, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca"},
	{"a GPT partition table", 512, "EFI PART"},
	{"a GPT partition table", 4096, "EFI PART"},
	{"an MBR partition table or a boot sector", 510, "\x55\xaa"},
}

// identify says what a disk seems to hold, or "" where it begins with nothing that is known.
func identify(path string) (string, error) {
	const length = 0x10048
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	head := make([]byte, length)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	head = head[:n]
	for _, s := range signatures {
		end := s.off + int64(len(s.magic))
		if end <= int64(n) && bytes.Equal(head[s.off:end], []byte(s.magic)) {
			return s.what, nil
		}
	}
	return "", nil
}
