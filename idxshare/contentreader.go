package idxshare

import (
	"io"
	"sort"
)

const (
	readUnit = 4096 // what reads of a layer's content are multiples of
	// keptUnits is how many units are kept for the next who reads a part of one: blocks of file systems may be smaller.
	keptUnits = 256

	// What is read ahead: so much with one question, so much in all that was not asked for yet, and no single range that is larger, because that is read well enough by itself.
	aheadBytes    = 4 << 20
	maxAhead      = 32 << 20
	maxAheadRange = 256 << 10
)

// A RangesReader reads many ranges with one question, where each question has its price.
type RangesReader interface {
	// ReadRanges fills p with all of the ranges, one after the other. They begin at multiples of 4 KiB, and so do they end but at the end of the device.
	ReadRanges(p []byte, ranges []ByteRange) error
}

// contentReader reads in whole units, and counts. It belongs to one goroutine.
type contentReader struct {
	r            io.ReaderAt
	size         int64
	reads, bytes int64
	kept         map[int64][]byte
	planned      []plannedRange // in order; they do not overlap
	ahead        int            // bytes of them that are in memory
}

// plannedRange is what will be read.
type plannedRange struct {
	ByteRange
	data []byte // nil before it is fetched, and after its end has been read
	done bool   // it has been fetched
}

// plan says which parts of the device will be read, in order. They are fetched together when the first of them is read, if r can do that.
func (c *contentReader) plan(ranges []ByteRange) {
	c.planned, c.ahead = nil, 0
	if _, ok := c.r.(RangesReader); !ok {
		return
	}
	for _, r := range ranges {
		first := r.Off &^ (readUnit - 1)
		end := min((r.Off+r.Len+readUnit-1)&^(readUnit-1), c.size)
		if n := len(c.planned); n > 0 {
			last := &c.planned[n-1]
			first = max(first, last.Off+last.Len)
		}
		if end-first > 0 && end-first <= maxAheadRange {
			c.planned = append(c.planned, plannedRange{ByteRange: ByteRange{first, end - first}})
		}
	}
}

// fetched reads what was planned, and tells whether it was.
func (c *contentReader) fetched(p []byte, off int64) (bool, error) {
	i := sort.Search(len(c.planned), func(i int) bool { return c.planned[i].Off > off }) - 1
	if i < 0 || off+int64(len(p)) > c.planned[i].Off+c.planned[i].Len {
		return false, nil
	}
	x := &c.planned[i]
	if !x.done && c.ahead < maxAhead {
		if err := c.fetch(i); err != nil {
			return false, err
		}
	}
	if x.data == nil {
		return false, nil
	}
	copy(p, x.data[off-x.Off:])
	if off+int64(len(p)) == x.Off+x.Len {
		c.ahead -= len(x.data)
		x.data = nil
	}
	return true, nil
}

// fetch reads planned ranges from one on.
func (c *contentReader) fetch(from int) error {
	var ranges []ByteRange
	bytes, to := int64(0), from
	for ; to < len(c.planned) && (to == from || bytes+c.planned[to].Len <= aheadBytes); to++ {
		if x := c.planned[to]; !x.done {
			ranges = append(ranges, x.ByteRange)
			bytes += x.Len
		}
	}
	p := make([]byte, bytes)
	c.reads++
	c.bytes += bytes
	if err := c.r.(RangesReader).ReadRanges(p, ranges); err != nil {
		return err
	}
	c.ahead += len(p)
	for i := from; i < to; i++ {
		if x := &c.planned[i]; !x.done {
			x.data, x.done = p[:x.Len:x.Len], true
			p = p[x.Len:]
		}
	}
	return nil
}

// ReadAt reads any bytes.
func (c *contentReader) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) && off < c.size {
		var k int
		if whole := (len(p) - n) &^ (readUnit - 1); off%readUnit == 0 && whole > 0 {
			k, err = c.read(p[n:][:min(int64(whole), c.size-off)], off)
		} else {
			k, err = c.part(p[n:], off)
		}
		n, off = n+k, off+int64(k)
		if err != nil {
			return n, err
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (c *contentReader) read(p []byte, off int64) (int, error) {
	if ok, err := c.fetched(p, off); ok || err != nil {
		return len(p), err
	}
	c.reads++
	c.bytes += int64(len(p))
	n, err := c.r.ReadAt(p, off)
	if n == len(p) {
		return n, nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// part reads from within one unit.
func (c *contentReader) part(p []byte, off int64) (int, error) {
	at := off &^ (readUnit - 1)
	unit, ok := c.kept[at]
	if !ok {
		unit = make([]byte, min(readUnit, c.size-at))
		if _, err := c.read(unit, at); err != nil {
			return 0, err
		}
		if c.kept == nil || len(c.kept) >= keptUnits {
			c.kept = make(map[int64][]byte, keptUnits)
		}
		c.kept[at] = unit
	}
	return copy(p, unit[off-at:]), nil
}
