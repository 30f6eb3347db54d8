package idxshare

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
)

// Print is a block of a leaf, by its number, with what tells later whether it still has the same content.
type Print struct{ Block, Print uint64 }

// The file of prints: its header, then one record for each block in their order, then a checksum. All numbers are little-endian.
//
//	header     0 magic "Coppice prints\n\0", 16 bytes; 16 version; 24 generation of the delta that was made of these blocks
//	record     0 number of the block; 8 its print
//	end        0 CRC-32C of all before it, 4 bytes
const (
	printsMagic   = "Coppice prints\n\x00"
	printsVersion = 1
	printsHeader  = 32
	printsRecord  = 16
	printsEnd     = 4
	printsBlock   = 4096 // bytes of a block
)

var printsTable = crc32.MakeTable(crc32.Castagnoli)

// PrintsWriter keeps prints for the next time.
type PrintsWriter struct {
	w   *bufio.Writer
	sum uint32
	b   [printsHeader]byte
}

// NewPrintsWriter begins a file of prints. Close ends it; the file is the caller's.
func NewPrintsWriter(w io.Writer, generation uint64) *PrintsWriter {
	p := &PrintsWriter{w: bufio.NewWriterSize(w, 1<<16)}
	copy(p.b[:], printsMagic)
	binary.LittleEndian.PutUint64(p.b[16:], printsVersion)
	binary.LittleEndian.PutUint64(p.b[24:], generation)
	p.write(p.b[:])
	return p
}

func (p *PrintsWriter) write(b []byte) {
	p.sum = crc32.Update(p.sum, printsTable, b)
	_, _ = p.w.Write(b) // Close tells
}

func (p *PrintsWriter) add(x Print) {
	binary.LittleEndian.PutUint64(p.b[:], x.Block)
	binary.LittleEndian.PutUint64(p.b[8:], x.Print)
	p.write(p.b[:printsRecord])
}

// Close writes the end.
func (p *PrintsWriter) Close() error {
	binary.LittleEndian.PutUint32(p.b[:], p.sum)
	_, _ = p.w.Write(p.b[:printsEnd])
	if err := p.w.Flush(); err != nil {
		return fmt.Errorf("keep prints: %w", err)
	}
	return nil
}

// OpenPrints reads a file of prints, size bytes long, and returns them with the generation of the delta that they belong to. That the file is damaged is told when it is opened.
func OpenPrints(r io.ReaderAt, size int64) (prints iter.Seq2[Print, error], generation uint64, err error) {
	var h [printsHeader]byte
	records := size - printsHeader - printsEnd
	if records < 0 || records%printsRecord != 0 {
		return nil, 0, corruptf("prints in a file of %d bytes", size)
	}
	sum := crc32.New(printsTable)
	if _, err := io.Copy(sum, io.NewSectionReader(r, 0, size-printsEnd)); err != nil {
		return nil, 0, fmt.Errorf("read prints: %w", err)
	}
	var end [printsEnd]byte
	_, err = r.ReadAt(end[:], size-printsEnd)
	if err == nil || errors.Is(err, io.EOF) {
		_, err = r.ReadAt(h[:], 0)
	}
	switch {
	case err != nil:
		return nil, 0, fmt.Errorf("read prints: %w", err)
	case string(h[:16]) != printsMagic || binary.LittleEndian.Uint64(h[16:]) != printsVersion:
		return nil, 0, fmt.Errorf("these are no prints of version %d: %w", printsVersion, ErrVersion)
	case binary.LittleEndian.Uint32(end[:]) != sum.Sum32():
		return nil, 0, corruptf("prints with a wrong checksum")
	}
	return func(yield func(Print, error) bool) {
		in := bufio.NewReaderSize(io.NewSectionReader(r, printsHeader, records), 1<<16)
		var b [printsRecord]byte
		for range records / printsRecord {
			if _, err := io.ReadFull(in, b[:]); err != nil {
				yield(Print{}, fmt.Errorf("read prints: %w", err))
				return
			}
			if !yield(Print{binary.LittleEndian.Uint64(b[:]), binary.LittleEndian.Uint64(b[8:])}, nil) {
				return
			}
		}
	}, binary.LittleEndian.Uint64(h[24:]), nil
}

// ChangedSince goes through the blocks that have another print than before, or that only one of the two has, as ranges of a device of size bytes, and keeps the prints of now. before may be nil: then it
// is all blocks of now.
func ChangedSince(before, now iter.Seq2[Print, error], size int64, keep *PrintsWriter) iter.Seq2[ByteRange, error] {
	return func(yield func(ByteRange, error) bool) {
		if before == nil {
			before = func(func(Print, error) bool) {}
		}
		next, stop := iter.Pull2(before)
		defer stop()
		var run ByteRange
		changed := func(block uint64) bool {
			off := int64(block) * printsBlock
			if run.Len > 0 && run.Off+run.Len == off {
				run.Len += printsBlock
				return true
			}
			last := run
			run = ByteRange{off, printsBlock}
			return last.Len == 0 || yield(last, nil)
		}
		old, err, more := next()
		for x, failed := range now {
			if failed != nil || err != nil {
				yield(ByteRange{}, errors.Join(failed, err))
				return
			}
			keep.add(x)
			for more && old.Block < x.Block {
				if !changed(old.Block) {
					return
				}
				if old, err, more = next(); err != nil {
					yield(ByteRange{}, err)
					return
				}
			}
			same := more && old == x
			if more && old.Block == x.Block {
				old, err, more = next()
			}
			if !same && !changed(x.Block) {
				return
			}
		}
		for ; more && err == nil; old, err, more = next() {
			if !changed(old.Block) {
				return
			}
		}
		if err != nil {
			yield(ByteRange{}, err)
			return
		}
		if run.Len > 0 {
			run.Len = min(run.Len, size-run.Off)
			yield(run, nil)
		}
	}
}
