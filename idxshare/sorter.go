package idxshare

import (
	"bufio"
	"bytes"
	"container/heap"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
)

// sorter sorts records, any number of them in bounded memory: what does not fit goes to a file without a name, sorted, and is merged in the end.
// The order is that of the bytes, so that it does not depend on the order of adding.
type sorter struct {
	dir   string // of the files
	limit int    // bytes in memory
	buf   []byte
	spans []span
	runs  []*os.File
}

type span struct {
	prefix   uint64 // the first 8 bytes, which tell most records apart
	off, len uint32
}

const spanSize = 16

func newSorter(dir string, limit int) *sorter { return &sorter{dir: dir, limit: limit} }

// add takes a copy of a record.
func (s *sorter) add(record []byte) error {
	if len(s.buf)+len(record)+(len(s.spans)+1)*spanSize > s.limit && len(s.spans) > 0 {
		if err := s.spill(); err != nil {
			return err
		}
	}
	var first [8]byte
	copy(first[:], record)
	s.spans = append(s.spans, span{binary.BigEndian.Uint64(first[:]), uint32(len(s.buf)), uint32(len(record))})
	s.buf = append(s.buf, record...)
	return nil
}

func (s *sorter) record(p span) []byte { return s.buf[p.off : p.off+p.len] }

func (s *sorter) sort() {
	slices.SortFunc(s.spans, func(a, b span) int {
		if a.prefix != b.prefix {
			if a.prefix < b.prefix {
				return -1
			}
			return 1
		}
		return bytes.Compare(s.record(a), s.record(b))
	})
}

// spill writes what is in memory as one more run.
func (s *sorter) spill() error {
	s.sort()
	f, err := os.CreateTemp(s.dir, ".index-run-*")
	if err != nil {
		return fmt.Errorf("sort what is indexed: %w", err)
	}
	s.runs = append(s.runs, f)
	if err := os.Remove(f.Name()); err != nil {
		return fmt.Errorf("sort what is indexed: %w", err)
	}
	w := bufio.NewWriterSize(f, 1<<18)
	var size [4]byte
	for _, p := range s.spans {
		binary.LittleEndian.PutUint32(size[:], p.len)
		w.Write(size[:]) //nolint:errcheck // the writer remembers the error, and Flush returns it
		w.Write(s.record(p))
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("sort what is indexed: %w", err)
	}
	s.buf, s.spans = s.buf[:0], s.spans[:0]
	return nil
}

// each calls fn with every record in order. A record is valid until fn returns. Nothing can be added afterwards.
func (s *sorter) each(fn func(record []byte) error) error {
	s.sort()
	if len(s.runs) == 0 {
		for _, p := range s.spans {
			if err := fn(s.record(p)); err != nil {
				return err
			}
		}
		return nil
	}
	var m merge
	next := 0
	m.add(func() ([]byte, error) {
		if next == len(s.spans) {
			return nil, io.EOF
		}
		next++
		return s.record(s.spans[next-1]), nil
	})
	for _, f := range s.runs {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return fmt.Errorf("sort what is indexed: %w", err)
		}
		m.add(readRun(bufio.NewReaderSize(f, 1<<16)))
	}
	return m.each(fn)
}

// all is [sorter.each] as an iterator, which ends with its error.
func (s *sorter) all() iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		err := s.each(func(record []byte) error {
			if !yield(record, nil) {
				return errStop
			}
			return nil
		})
		if err != nil && !errors.Is(err, errStop) {
			yield(nil, err)
		}
	}
}

// errStop ends an iteration early.
var errStop = errors.New("stop")

func readRun(r *bufio.Reader) func() ([]byte, error) {
	var buf []byte
	return func() ([]byte, error) {
		var size [4]byte
		if _, err := io.ReadFull(r, size[:]); err != nil {
			return nil, err
		}
		buf = slices.Grow(buf[:0], int(binary.LittleEndian.Uint32(size[:])))[:binary.LittleEndian.Uint32(size[:])]
		_, err := io.ReadFull(r, buf)
		return buf, err
	}
}

// close gives back memory and files.
func (s *sorter) close() {
	for _, f := range s.runs {
		f.Close()
	}
	*s = sorter{}
}

// merge is a heap of runs by their first records.
type merge struct {
	heads [][]byte
	nexts []func() ([]byte, error)
	err   error
}

func (m *merge) add(next func() ([]byte, error)) {
	head, err := next()
	switch {
	case err == nil:
		m.heads, m.nexts = append(m.heads, head), append(m.nexts, next)
	case !errors.Is(err, io.EOF):
		m.err = err
	}
}

func (m *merge) each(fn func([]byte) error) error {
	for heap.Init(m); len(m.heads) > 0 && m.err == nil; {
		if err := fn(m.heads[0]); err != nil {
			return err
		}
		head, err := m.nexts[0]()
		switch {
		case err == nil:
			m.heads[0] = head
			heap.Fix(m, 0)
		case errors.Is(err, io.EOF):
			heap.Pop(m)
		default:
			m.err = err
		}
	}
	if m.err != nil {
		return fmt.Errorf("sort what is indexed: %w", m.err)
	}
	return nil
}

// Len is for package heap, as the others.
func (m *merge) Len() int           { return len(m.heads) }
func (m *merge) Less(i, j int) bool { return bytes.Compare(m.heads[i], m.heads[j]) < 0 }
func (m *merge) Swap(i, j int) {
	m.heads[i], m.heads[j] = m.heads[j], m.heads[i]
	m.nexts[i], m.nexts[j] = m.nexts[j], m.nexts[i]
}
func (m *merge) Push(any) {}
func (m *merge) Pop() any {
	last := len(m.heads) - 1
	m.heads, m.nexts = m.heads[:last], m.nexts[:last]
	return nil
}
