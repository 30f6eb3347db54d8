package idxshare

import (
	"bytes"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sort"
)

// Rows of tables with integer keys are read without SQLite, which takes some twenty times as long for one: sqlite.org/fileformat2.html, sections 1.6 and 2.1.

const (
	leafPage     = 0x0d
	interiorPage = 0x05
	maxTree      = 20 // levels
	// cachedPages is how many pages a connection keeps of those that it read.
	cachedPages = 1024
	// maxLocal is how much of a row is in its leaf; of longer ones, at least minLocal.
	maxLocal = pageSize - 35
	minLocal = (pageSize-12)*32/255 - 23
)

// trees reads tables. It belongs to one goroutine. A page that was read is never changed, so that what points into it stays valid.
type trees struct {
	source *source
	roots  map[string]uint32 // pages, by table
	cache  [cachedPages]struct {
		number uint32
		data   []byte
	}
}

// page returns a page by its number, of which the first is 1.
func (t *trees) page(number uint32) ([]byte, error) {
	slot := &t.cache[number%cachedPages]
	if slot.number == number && number != 0 {
		return slot.data, nil
	}
	off := (int64(number) - 1) * pageSize
	if number == 0 || off+pageSize > t.source.size {
		return nil, corruptf("page %d is beyond the end", number)
	}
	data := make([]byte, pageSize)
	if n, err := t.source.r.ReadAt(data, off); n < len(data) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("read index: page %d: %w", number, err)
	}
	slot.number, slot.data = number, data
	return data, nil
}

// rows calls fn with the rows of a table that have the ids first to last, in their order. What fn gets is valid until it returns, but texts and blobs stay.
func (t *trees) rows(table string, first, last int64, fn func(id int64, row []field) error) error {
	return t.rowsWith(nil, table, first, last, fn)
}

// rowsWith is rows, but leaves out those without a text in what is stored, which costs little.
func (t *trees) rowsWith(text []byte, table string, first, last int64, fn func(id int64, row []field) error) error {
	w := walk{trees: t, first: first, last: last, fn: fn, text: text}
	return w.page(t.roots[table], -1<<63, 1<<63-1, 0)
}

// row reads one row.
func (t *trees) row(table string, id int64, fn func(row []field) error) error {
	return t.rows(table, id, id, func(_ int64, row []field) error { return fn(row) })
}

// walk goes through a tree. Every page has only ids between those that the page above it says, and at least one, so that no page comes twice.
type walk struct {
	*trees
	first, last int64
	fn          func(id int64, row []field) error
	row         []field
	text        []byte // rows without it are passed over; nil: none
}

// page goes through the part of a tree with ids above low and up to high.
func (w *walk) page(number uint32, low, high int64, depth int) error {
	p, err := w.trees.page(number)
	if err != nil {
		return err
	}
	if depth == maxTree {
		return corruptf("page %d is too deep in its tree", number)
	}
	cells := int(binary.BigEndian.Uint16(p[3:]))
	if p[0] == leafPage && 8+2*cells <= pageSize {
		return w.leaf(p, number, cells, low, high, depth)
	}
	in, err := newInterior(p, number, cells)
	if err != nil {
		return err
	}
	i := in.search(w.first)
	if i > 0 {
		_, low = in.at(i - 1)
	}
	for ; i <= cells; i++ {
		child, key := in.child(i, high)
		if in.bad || key < low || key == low && i < cells || key > high {
			return corruptf("page %d has no order", number)
		}
		if low >= w.last {
			return nil
		}
		if err := w.page(child, low, key, depth+1); err != nil {
			return err
		}
		low = key
	}
	return nil
}

// interior is a page that has other pages below it: the one at i has the ids above the key at i-1, and up to that at i.
type interior struct {
	p     []byte
	cells int // one less than there are pages
	bad   bool
}

func newInterior(p []byte, number uint32, cells int) (*interior, error) {
	if p[0] != interiorPage || 12+2*cells > pageSize {
		return nil, corruptf("page %d is none of a table", number)
	}
	return &interior{p: p, cells: cells}, nil
}

func (in *interior) at(i int) (child uint32, key int64) {
	off := int(binary.BigEndian.Uint16(in.p[12+2*i:]))
	if off+5 > pageSize {
		in.bad = true
		return 0, 0
	}
	n, size := varint(in.p[off+4:])
	in.bad = in.bad || size == 0
	return binary.BigEndian.Uint32(in.p[off:]), int64(n)
}

// child is at, also for the last page, whose ids go up to high.
func (in *interior) child(i int, high int64) (child uint32, key int64) {
	if i == in.cells {
		return binary.BigEndian.Uint32(in.p[8:]), high
	}
	return in.at(i)
}

// search returns where the page is that has an id, if any has.
func (in *interior) search(id int64) int {
	return sort.Search(in.cells, func(i int) bool {
		_, key := in.at(i)
		return key >= id
	})
}

// upTo calls fn with the row of the largest id up to one, if there is any.
func (t *trees) upTo(table string, id int64, fn func(row []field) error) error {
	found, ok, err := t.floor(t.roots[table], id, -1<<63, 1<<63-1, 0)
	if err != nil || !ok {
		return err
	}
	return t.row(table, found, fn)
}

// floor returns the largest id up to one in the part of a tree with ids above low and up to high.
func (t *trees) floor(number uint32, id, low, high int64, depth int) (found int64, ok bool, err error) {
	p, err := t.page(number)
	if err != nil {
		return 0, false, err
	}
	if depth == maxTree {
		return 0, false, corruptf("page %d is too deep in its tree", number)
	}
	cells := int(binary.BigEndian.Uint16(p[3:]))
	if p[0] == leafPage && 8+2*cells <= pageSize {
		if cells == 0 && depth > 0 {
			return 0, false, corruptf("page %d is empty", number)
		}
		bad := false
		at := func(i int) int64 {
			n, ok := leafID(p, i)
			bad = bad || !ok
			return n
		}
		i := sort.Search(cells, func(i int) bool { return at(i) > id }) - 1
		if i < 0 {
			return 0, false, nil
		}
		if found = at(i); bad || found <= low || found > high || found > id {
			return 0, false, corruptf("page %d has rows of another", number)
		}
		return found, true, nil
	}
	in, err := newInterior(p, number, cells)
	if err != nil {
		return 0, false, err
	}
	// All ids of the page before the one that may have it are smaller.
	for i := in.search(id); i >= 0; i-- {
		from := low
		if i > 0 {
			_, from = in.at(i - 1)
		}
		child, to := in.child(i, high)
		if in.bad || from < low || to > high || from > to {
			return 0, false, corruptf("page %d has no order", number)
		}
		if found, ok, err = t.floor(child, id, from, to, depth+1); ok || err != nil || to < id {
			return found, ok, err
		}
	}
	return 0, false, nil
}

// leafID returns the id of a row on a leaf; ok is false where it is none.
func leafID(p []byte, i int) (id int64, ok bool) {
	off := int(binary.BigEndian.Uint16(p[8+2*i:]))
	if off >= pageSize {
		return 0, false
	}
	_, length := varint(p[off:])
	if length == 0 {
		return 0, false
	}
	n, more := varint(p[off+length:])
	return int64(n), more > 0
}

func (w *walk) leaf(p []byte, number uint32, cells int, low, high int64, depth int) error {
	if cells == 0 {
		if depth > 0 {
			return corruptf("page %d is empty", number)
		}
		return nil
	}
	bad := false
	at := func(i int) (size, id int64, rest int) {
		off := int(binary.BigEndian.Uint16(p[8+2*i:]))
		if off >= pageSize {
			bad = true
			return 0, 0, 0
		}
		n, length := varint(p[off:])
		m, more := varint(p[off+length:])
		bad = bad || length == 0 || more == 0 || n > maxValue
		return int64(n), int64(m), off + length + more
	}
	_, least, _ := at(0)
	_, most, _ := at(cells - 1)
	if bad || least <= low || most > high {
		return corruptf("page %d has rows of another", number)
	}
	before := low
	for i := sort.Search(cells, func(i int) bool {
		_, id, _ := at(i)
		return id >= w.first
	}); i < cells; i++ {
		size, id, off := at(i)
		if bad || id <= before {
			return corruptf("page %d has no order", number)
		}
		if before = id; id > w.last {
			return nil
		}
		payload, err := w.payload(p, off, int(size))
		if err != nil {
			return err
		}
		if w.text != nil && !bytes.Contains(payload, w.text) {
			continue
		}
		if w.row, err = decode(payload, w.row[:0]); err != nil {
			return fmt.Errorf("row %d on page %d: %w", id, number, err)
		}
		if len(w.row) > 0 && w.row[0].kind == nothing { // the key is not in the row
			w.row[0] = field{kind: integer, n: id}
		}
		if err := w.fn(id, w.row); err != nil {
			return err
		}
	}
	return nil
}

// payload returns a row, the end of which may lie on other pages.
func (t *trees) payload(p []byte, off, size int) ([]byte, error) {
	local := size
	if size > maxLocal {
		if local = minLocal + (size-minLocal)%(pageSize-4); local > maxLocal {
			local = minLocal
		}
	}
	if off+local > pageSize || local < size && off+local+4 > pageSize {
		return nil, corruptf("a row goes beyond its page")
	}
	if local == size {
		return p[off : off+size], nil
	}
	row := append(make([]byte, 0, size), p[off:off+local]...)
	for next := binary.BigEndian.Uint32(p[off+local:]); len(row) < size; {
		more, err := t.page(next)
		if err != nil {
			return nil, err
		}
		next = binary.BigEndian.Uint32(more)
		row = append(row, more[4:4+min(size-len(row), pageSize-4)]...)
	}
	return row, nil
}

// varint reads a number of one to nine bytes, seven bits each but the last, which has eight. size is 0 where b ends before it.
func varint(b []byte) (n uint64, size int) {
	for i, c := range b {
		if i == 8 {
			return n<<8 | uint64(c), 9
		}
		n = n<<7 | uint64(c&0x7f)
		if c < 0x80 {
			return n, i + 1
		}
	}
	return 0, 0
}

type fieldKind uint8

const (
	nothing fieldKind = iota
	integer
	textual
	binaryBlob
	another
)

// field is one value of a row.
type field struct {
	kind fieldKind
	n    int64
	b    []byte
}

// decode appends the values of a record: section 2.1 of the format.
func decode(record []byte, row []field) ([]field, error) {
	header, at := varint(record)
	if at == 0 || header > uint64(len(record)) {
		return nil, corruptf("a record without a header")
	}
	body := record[header:]
	for at < int(header) {
		kind, size := varint(record[at:header])
		if at += size; size == 0 {
			return nil, corruptf("the header of a record is cut off")
		}
		f := field{kind: integer}
		length := uint64(0)
		switch {
		case kind == 0:
			f.kind = nothing
		case kind <= 4:
			length = kind
		case kind == 5:
			length = 6
		case kind == 6:
			length = 8
		case kind == 7:
			f.kind, length = another, 8
		case kind == 9:
			f.n = 1
		case kind >= 12 && kind&1 == 0:
			f.kind, length = binaryBlob, (kind-12)/2
		case kind >= 13:
			f.kind, length = textual, (kind-13)/2
		case kind != 8:
			return nil, corruptf("a record has a value of type %d", kind)
		}
		if length > uint64(len(body)) {
			return nil, corruptf("a record is cut off")
		}
		value := body[:length]
		body = body[length:]
		if f.kind >= textual {
			f.b = value[:length:length]
		} else if length > 0 {
			for _, c := range value {
				f.n = f.n<<8 | int64(c)
			}
			shift := 64 - 8*int(length)
			f.n = f.n << shift >> shift
		}
		row = append(row, f)
	}
	return row, nil
}

// fieldsOf makes fields of what SQLite's driver has.
func fieldsOf(row []driver.Value) []field {
	all := make([]field, len(row))
	for i, v := range row {
		switch v := v.(type) {
		case nil:
		case int64:
			all[i] = field{kind: integer, n: v}
		case string:
			all[i] = field{kind: textual, b: []byte(v)}
		case []byte:
			all[i] = field{kind: binaryBlob, b: v}
		default:
			all[i] = field{kind: another}
		}
	}
	return all
}
