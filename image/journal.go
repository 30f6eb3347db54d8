package image

import (
	"bufio"
	"errors"
	"hash/crc32"
	"io"
	"os"
)

// The journal of a build says, chunk by chunk, what it found and where that is stored, and when a pack was full. A build that was
// interrupted goes on behind the last full pack. It is a private file of one build on one machine, and no part of the format.
//
// It is a sequence of frames:
//
//	0 4  kind
//	4 4  length of the payload
//	8 4  CRC-32C of the payload
//	12   payload
//
// A frame that is cut short, or damaged, ends the journal.
const (
	frameKey     = uint32('K') | uint32('E')<<8 | uint32('Y')<<16
	frameEntries = uint32('E') | uint32('N')<<8 | uint32('T')<<16
	framePack    = uint32('P') | uint32('A')<<8 | uint32('C')<<16

	frameHeader = 12
	entrySize   = 8 + digestSize + chunkPlace
	packSize    = 8 + 8 + digestSize
	frameLimit  = 1024 * entrySize

	// parentPack marks the number of a pack as one of the parent's.
	parentPack = 1 << 31
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// entry is a chunk that is not zeros.
type entry struct {
	index int64
	chunkRef
}

// packMark says that a pack is complete, and that all chunks before next are in the journal.
type packMark struct {
	next   int64
	size   int64
	digest Digest
	end    int64 // of its frame, in the journal
}

// journal writes the journal of a build.
type journal struct {
	f   *os.File
	w   *bufio.Writer
	buf []byte
}

// newJournal begins, or goes on at an offset with, a journal.
func newJournal(path string, at int64, key Digest) (*journal, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	_, seekErr := f.Seek(at, io.SeekStart)
	j := &journal{f: f, w: bufio.NewWriterSize(f, 1<<20)}
	err = errors.Join(f.Truncate(at), seekErr)
	if err == nil && at == 0 {
		err = j.frame(frameKey, key[:])
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return j, nil
}

func (j *journal) frame(kind uint32, payload []byte) error {
	var h [frameHeader]byte
	le.PutUint32(h[:], kind)
	le.PutUint32(h[4:], uint32(len(payload)))
	le.PutUint32(h[8:], crc32.Checksum(payload, castagnoli))
	if _, err := j.w.Write(h[:]); err != nil {
		return err
	}
	_, err := j.w.Write(payload)
	return err
}

func (j *journal) add(e entry) error {
	j.buf = le.AppendUint64(j.buf, uint64(e.index))
	j.buf = append(j.buf, e.digest[:]...)
	j.buf = e.place.append(j.buf)
	if len(j.buf) < frameLimit {
		return nil
	}
	return j.flushEntries()
}

func (j *journal) flushEntries() error {
	if len(j.buf) == 0 {
		return nil
	}
	err := j.frame(frameEntries, j.buf)
	j.buf = j.buf[:0]
	return err
}

// mark writes that a pack is complete. The pack itself may become durable later.
func (j *journal) mark(m packMark) error {
	if err := j.flushEntries(); err != nil {
		return err
	}
	p := le.AppendUint64(nil, uint64(m.next))
	p = le.AppendUint64(p, uint64(m.size))
	if err := j.frame(framePack, append(p, m.digest[:]...)); err != nil {
		return err
	}
	return j.w.Flush()
}

// close writes what is left. The journal can be read then.
func (j *journal) close() error {
	err := j.flushEntries()
	return errors.Join(err, j.w.Flush(), j.f.Close())
}

// journalReader reads a journal from the beginning.
type journalReader struct {
	f     *os.File
	r     *bufio.Reader
	at    int64 // end of the last frame that was read
	left  []byte
	frame []byte
}

// openJournal opens a journal with a key, and returns nil where there is none that is of use.
func openJournal(path string, key Digest) (*journalReader, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r := &journalReader{f: f, r: bufio.NewReaderSize(f, 1<<20)}
	kind, payload, err := r.next()
	if err == nil && kind == frameKey && string(payload) == string(key[:]) {
		return r, nil
	}
	f.Close()
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return nil, err
}

func (r *journalReader) close() { r.f.Close() }

// next returns the next frame. What is damaged is the end.
func (r *journalReader) next() (uint32, []byte, error) {
	var h [frameHeader]byte
	if _, err := io.ReadFull(r.r, h[:]); err != nil {
		return 0, nil, endOf(err)
	}
	n := le.Uint32(h[4:])
	if n > frameLimit {
		return 0, nil, io.EOF
	}
	if cap(r.frame) < int(n) {
		r.frame = make([]byte, frameLimit)
	}
	p := r.frame[:n]
	if _, err := io.ReadFull(r.r, p); err != nil {
		return 0, nil, endOf(err)
	}
	if crc32.Checksum(p, castagnoli) != le.Uint32(h[8:]) {
		return 0, nil, io.EOF
	}
	r.at += frameHeader + int64(n)
	return le.Uint32(h[:]), p, nil
}

func endOf(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return io.EOF
	}
	return err
}

// entry returns the next entry, and [io.EOF] behind the last one.
func (r *journalReader) entry() (entry, error) {
	for len(r.left) < entrySize {
		kind, p, err := r.next()
		if err != nil {
			return entry{}, err
		}
		if kind == frameEntries {
			r.left = p
		}
	}
	p := r.left[:entrySize]
	r.left = r.left[entrySize:]
	at := p[8+digestSize:]
	return entry{int64(le.Uint64(p)), chunkRef{Digest(p[8:][:digestSize]), place{le.Uint32(at), le.Uint32(at[4:]), int64(le.Uint64(at[8:]))}}}, nil
}

// marks reads the journal to its end and returns the complete packs.
func (r *journalReader) marks() ([]packMark, error) {
	var all []packMark
	for {
		kind, p, err := r.next()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		if kind == framePack && len(p) == packSize {
			all = append(all, packMark{int64(le.Uint64(p)), int64(le.Uint64(p[8:])), Digest(p[16:]), r.at})
		}
	}
}
