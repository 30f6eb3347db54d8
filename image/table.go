package image

import (
	"fmt"
	"io"
)

// tableWriter writes the pages of a table as its chunks come, in the order of their indexes. It holds one page of each level.
type tableWriter struct {
	w      io.Writer
	g      geometry
	offset int64
	levels []pageBuilder
	root   *PageRef
}

func newTableWriter(w io.Writer, g geometry) (*tableWriter, error) {
	t := &tableWriter{w: w, g: g, levels: make([]pageBuilder, g.levels())}
	return t, t.write([]byte(tableMagic))
}

func (t *tableWriter) write(p []byte) error {
	n, err := t.w.Write(p)
	t.offset += int64(n)
	if err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	return nil
}

// add adds a chunk that is not zeros. Its index is above those before.
func (t *tableWriter) add(index int64, c chunkRef) error {
	return t.addEntry(0, index, c.digest, c.place.append(nil))
}

func (t *tableWriter) addEntry(level int, index int64, d Digest, place []byte) error {
	b := &t.levels[level]
	if number := index >> fanShift; b.number != number {
		if err := t.seal(level); err != nil {
			return err
		}
		b.number = number
	}
	b.add(int(index&(fanOut-1)), d, place)
	return nil
}

// seal writes a page that has entries, and adds it to the level above.
func (t *tableWriter) seal(level int) error {
	b := &t.levels[level]
	if b.n == 0 {
		return nil
	}
	number := b.number
	raw, ref := b.seal(level, t.offset)
	if err := t.write(raw); err != nil {
		return err
	}
	if level == len(t.levels)-1 {
		t.root = &ref
		return nil
	}
	return t.addEntry(level+1, number, ref.Digest, ref.appendPlace(nil))
}

// finish writes the pages that are left. It returns the root page, nil where the whole image is zeros.
func (t *tableWriter) finish() (*PageRef, error) {
	for level := range t.levels {
		if err := t.seal(level); err != nil {
			return nil, err
		}
	}
	return t.root, nil
}
