package idxshare

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/diskfs/go-diskfs/partition/gpt"
	"github.com/diskfs/go-diskfs/partition/mbr"

	"coppice/idxshare/ext4"
)

// part is a run of bytes of a device that may hold a file system.
type part struct {
	number        int // in the partition table; 0: the whole device
	start, length int64
}

const (
	mbrSector      = 512
	mbrSignature   = 0xAA55
	mbrTable       = 446 // byte of the first entry
	mbrEntry       = 16
	firstLogical   = 5   // number of the first partition in an extended one
	maxLogical     = 128 // partitions in an extended one, which form a chain
	gptEntriesMost = 16 << 20
)

// partitions finds the parts of a device: those of its GPT, else of its MBR, else the device itself. A table that says what cannot be is an error that matches [ErrPartitions].
func partitions(r io.ReaderAt, size int64) ([]part, error) {
	whole := []part{{length: size}}
	if size < 2*4096 {
		return whole, nil
	}
	first := make([]byte, 2*4096)
	if err := ext4.ReadFull(r, first, 0); err != nil {
		return nil, fmt.Errorf("partition table: %w", err)
	}
	for _, sector := range []int{512, 4096} {
		if header := first[sector:]; bytes.HasPrefix(header, []byte("EFI PART")) {
			parts, err := gptPartitions(r, size, sector)
			if err != nil {
				return nil, fmt.Errorf("partition table (GPT): %w", err)
			}
			return parts, nil
		}
	}
	parts, err := mbrPartitions(r, size, first[:mbrSector])
	if err != nil {
		return nil, fmt.Errorf("partition table (MBR): %w", err)
	}
	if parts == nil {
		return whole, nil
	}
	return parts, nil
}

// gptPartitions reads a GPT with sectors of the given size. The header says how much is read of it, so that this is looked at first, in the header at the end, too.
func gptPartitions(r io.ReaderAt, size int64, sector int) ([]part, error) {
	for _, at := range []int64{int64(sector), size/int64(sector)*int64(sector) - int64(sector)} {
		header := make([]byte, 92)
		if err := ext4.ReadFull(r, header, at); err != nil {
			return nil, err
		}
		entries, bytesEach := uint64(binary.LittleEndian.Uint32(header[80:])), uint64(binary.LittleEndian.Uint32(header[84:]))
		if bytes.HasPrefix(header, []byte("EFI PART")) && (entries*bytesEach > gptEntriesMost || bytesEach < gpt.PartitionEntrySize || binary.LittleEndian.Uint64(header[72:]) > uint64(size/int64(sector))) {
			return nil, badPartitions("the header at byte %d has %d entries of %d bytes", at, entries, bytesEach)
		}
	}
	table, err := gpt.Read(&deviceFile{ReaderAt: r, size: size}, sector, sector)
	if err != nil {
		return nil, badPartitions("%v", err)
	}
	var parts []part
	for _, p := range table.Partitions {
		sectors := uint64(size) / uint64(sector)
		if p.Type == gpt.Unused {
			continue
		}
		if p.End < p.Start || p.End >= sectors {
			return nil, badPartitions("partition %d has sectors %d to %d of %d", p.Index, p.Start, p.End, sectors)
		}
		parts = append(parts, part{number: p.Index, start: int64(p.Start) * int64(sector), length: int64(p.End-p.Start+1) * int64(sector)})
	}
	return parts, nil
}

// mbrPartitions reads an MBR: nil where the sector is no such thing, as the first of a file system with a boot loader in it is not.
func mbrPartitions(r io.ReaderAt, size int64, sector []byte) ([]part, error) {
	if binary.LittleEndian.Uint16(sector[mbrSector-2:]) != mbrSignature {
		return nil, nil
	}
	table, err := mbr.Read(&deviceFile{ReaderAt: r, size: size}, mbrSector, mbrSector)
	if err != nil {
		return nil, nil //nolint:nilerr // bytes of a boot loader where a table would be
	}
	var parts []part
	for _, p := range table.Partitions {
		if p.Type == mbr.Empty || p.Size == 0 {
			continue
		}
		one := part{number: p.Index, start: int64(p.Start) * mbrSector, length: int64(p.Size) * mbrSector}
		if one.start == 0 || one.start+one.length > size {
			return nil, nil // no table, again
		}
		if p.Type == mbr.ExtendedCHS || p.Type == mbr.ExtendedLBA || p.Type == mbr.LinuxExtended {
			logical, err := logicalPartitions(r, one)
			if err != nil {
				return nil, err
			}
			parts = append(parts, logical...)
			continue
		}
		parts = append(parts, one)
	}
	return parts, nil
}

// logicalPartitions follows the chain of tables in an extended partition, which go-diskfs does not: each has one partition, placed from the table on, and the next table, placed from
// the beginning of the extended partition on.
func logicalPartitions(r io.ReaderAt, extended part) ([]part, error) {
	var parts []part
	at := extended.start
	for number := firstLogical; number < firstLogical+maxLogical; number++ {
		b := make([]byte, mbrSector)
		if err := ext4.ReadFull(r, b, at); err != nil {
			return nil, err
		}
		if binary.LittleEndian.Uint16(b[mbrSector-2:]) != mbrSignature {
			return nil, badPartitions("the table at byte %d, of logical partition %d, has no signature", at, number)
		}
		own, next := b[mbrTable:mbrTable+mbrEntry], b[mbrTable+mbrEntry:]
		if sectors := int64(binary.LittleEndian.Uint32(own[12:])); own[4] != 0 && sectors > 0 {
			one := part{number: number, start: at + int64(binary.LittleEndian.Uint32(own[8:]))*mbrSector, length: sectors * mbrSector}
			if one.start+one.length > extended.start+extended.length {
				return nil, badPartitions("logical partition %d ends at byte %d, the extended partition at %d", number, one.start+one.length, extended.start+extended.length)
			}
			parts = append(parts, one)
		}
		step := int64(binary.LittleEndian.Uint32(next[8:])) * mbrSector
		if next[4] == 0 || step == 0 {
			return parts, nil
		}
		if step+mbrSector > extended.length {
			return nil, badPartitions("the table after logical partition %d would lie behind the extended partition", number)
		}
		at = extended.start + step
	}
	return nil, badPartitions("an extended partition with more than %d partitions, or a loop", maxLogical)
}

func badPartitions(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, ErrPartitions)...)
}

// deviceFile is a reader as go-diskfs takes one.
type deviceFile struct {
	io.ReaderAt
	size, at int64
}

func (f *deviceFile) Read(p []byte) (int, error) {
	n, err := f.ReadAt(p, f.at)
	f.at += int64(n)
	return n, err
}

func (f *deviceFile) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += f.at
	case io.SeekEnd:
		offset += f.size
	}
	f.at = offset
	return offset, nil
}

func (f *deviceFile) Stat() (fs.FileInfo, error) { return nil, errors.ErrUnsupported }
func (f *deviceFile) Close() error               { return nil }
