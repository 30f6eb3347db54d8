// Package logwrites reads what QEMU's block driver blklogwrites and the kernel's dm-log-writes record of a disk: every write,
// flush and discard, in the order in which they completed, with the data. From it the disk can be built again as it was, or as a
// power cut might have left it, at any moment.
//
// # Format, version 1
//
// All integers are little-endian, everything is aligned to the log's sector size.
//
//	sector 0      superblock
//	sector 1 ...  entries, each one sector, followed by the data that was written where it is no discard
//
//	superblock:  0 8 magic 0x6a736677736872      entry:  0 8 first sector on the disk
//	             8 8 version, 1                          8 8 number of sectors
//	            16 8 number of entries                  16 8 flags
//	            24 4 sector size in bytes               24 8 length of a mark's text,
//	                                                     which follows in the same sector
//
// The superblock is written anew with each flush, after the entry of the flush, so it may lag behind. There are no checksums.
//
// QEMU logs a request when it has completed. What is logged before a flush may therefore have been submitted after the flush was, so
// that the flush did not promise it; what a flush did promise is always before it. QEMU 7.2 splits a write with FUA into the write
// and a flush.
package logwrites

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Flags tell what an entry is. None: a plain write.
type Flags uint64

// Flags of drivers/md/dm-log-writes.c.
const (
	Flush    Flags = 1 << 0
	FUA      Flags = 1 << 1
	Discard  Flags = 1 << 2
	Mark     Flags = 1 << 3
	Metadata Flags = 1 << 4

	known = Flush | FUA | Discard | Mark | Metadata
)

const (
	magic       = 0x6a736677736872
	version     = 1
	superBytes  = 28
	entryBytes  = 32
	minSector   = 512
	maxSector   = 1 << 20
	maxDiskSize = 1 << 60
)

// ErrFormat is wrapped by the errors about logs that are damaged or none at all.
var ErrFormat = errors.New("not a log of writes")

// Entry is one request. Offsets and lengths are bytes.
type Entry struct {
	Flags   Flags
	Off     int64 // on the disk
	Len     int64 // 0 for a flush without data
	DataOff int64 // where the log has its Len bytes of data; meaningless for discards
}

// HasData tells whether the log holds the data of the entry.
func (e Entry) HasData() bool { return e.Len > 0 && e.Flags&Discard == 0 }

// Log is a recording. It is not changed by reading, and safe for concurrent use.
type Log struct {
	SectorBytes int64
	Entries     []Entry
	r           io.ReaderAt
}

// Read reads all entries of a log of sizeBytes bytes, but not their data. r must stay readable as long as the log is used.
func Read(r io.ReaderAt, sizeBytes int64) (*Log, error) {
	var head [superBytes]byte
	if sizeBytes < superBytes {
		return nil, fmt.Errorf("read superblock: %d bytes: %w", sizeBytes, ErrFormat)
	}
	if _, err := r.ReadAt(head[:], 0); err != nil {
		return nil, fmt.Errorf("read superblock: %w", err)
	}
	le := binary.LittleEndian
	sector := int64(le.Uint32(head[24:]))
	switch {
	case le.Uint64(head[:]) != magic:
		return nil, fmt.Errorf("read superblock: magic %#x: %w", le.Uint64(head[:]), ErrFormat)
	case le.Uint64(head[8:]) != version:
		return nil, fmt.Errorf("read superblock: version %d, know %d: %w", le.Uint64(head[8:]), version, ErrFormat)
	case sector < minSector || sector > maxSector || sector&(sector-1) != 0:
		return nil, fmt.Errorf("read superblock: sectors of %d bytes: %w", sector, ErrFormat)
	}
	l := &Log{SectorBytes: sector, r: r}
	count := le.Uint64(head[16:])
	if count > uint64(sizeBytes/sector) {
		return nil, fmt.Errorf("read superblock: %d entries in %d bytes: %w", count, sizeBytes, ErrFormat)
	}
	return l, l.readEntries(count, sizeBytes)
}

func (l *Log) readEntries(count uint64, sizeBytes int64) error {
	l.Entries = make([]Entry, 0, count)
	at := l.SectorBytes
	for i := range count {
		e, err := l.readEntry(at, sizeBytes)
		if err != nil {
			return fmt.Errorf("read entry %d at byte %d: %w", i, at, err)
		}
		l.Entries = append(l.Entries, e)
		at = e.DataOff
		if e.HasData() {
			at += e.Len
		}
	}
	return nil
}

func (l *Log) readEntry(at, sizeBytes int64) (Entry, error) {
	var raw [entryBytes]byte
	if at+l.SectorBytes > sizeBytes {
		return Entry{}, fmt.Errorf("the log ends before it: %w", ErrFormat)
	}
	if _, err := l.r.ReadAt(raw[:], at); err != nil {
		return Entry{}, err
	}
	le := binary.LittleEndian
	first, n, flags, mark := le.Uint64(raw[:]), le.Uint64(raw[8:]), Flags(le.Uint64(raw[16:])), le.Uint64(raw[24:])
	limit := uint64(maxDiskSize / l.SectorBytes)
	switch {
	case flags&^known != 0:
		return Entry{}, fmt.Errorf("unknown flags %#x: %w", uint64(flags), ErrFormat)
	case first > limit || n > limit:
		return Entry{}, fmt.Errorf("%d sectors at sector %d: %w", n, first, ErrFormat)
	case flags&Mark == 0 && mark != 0 || flags&Mark != 0 && (n != 0 || mark > uint64(l.SectorBytes-entryBytes)):
		return Entry{}, fmt.Errorf("a mark of %d bytes with flags %#x and %d sectors: %w", mark, uint64(flags), n, ErrFormat)
	}
	e := Entry{Flags: flags, Off: int64(first) * l.SectorBytes, Len: int64(n) * l.SectorBytes, DataOff: at + l.SectorBytes}
	if e.HasData() && e.Len > sizeBytes-e.DataOff {
		return Entry{}, fmt.Errorf("the log ends before its %d bytes of data: %w", e.Len, ErrFormat)
	}
	return e, nil
}

// Data reads n bytes of a write, from its byte from on.
func (l *Log) Data(e Entry, from, n int64) ([]byte, error) {
	if !e.HasData() || from < 0 || n < 0 || from > e.Len || n > e.Len-from {
		return nil, fmt.Errorf("read data: bytes %d to %d of a request with %d: %w", from, from+n, e.Len, ErrFormat)
	}
	p := make([]byte, n)
	if _, err := l.r.ReadAt(p, e.DataOff+from); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read data: %w", err)
	}
	return p, nil
}
