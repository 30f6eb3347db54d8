package idxshare

import "io"

const (
	readUnit = 4096 // what reads of a layer's content are multiples of
	// keptUnits is how many units are kept for the next who reads a part of one: blocks of file systems may be smaller.
	keptUnits = 256
)

// contentReader reads in whole units, and counts. It belongs to one goroutine.
type contentReader struct {
	r            io.ReaderAt
	size         int64
	reads, bytes int64
	kept         map[int64][]byte
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
