package union

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"coppice/internal/directio"
)

// ExportOptions say how to export.
type ExportOptions struct {
	// Progress is called now and then with the bytes done so far, from the exporting goroutine.
	Progress func(done, total int64)
}

// ExportResult tells what was exported.
type ExportResult struct {
	SizeBytes    int64    `json:"size_bytes"`
	WrittenBytes int64    `json:"written_bytes"` // the rest are zeros that were left out
	Digest       [32]byte `json:"-"`             // SHA-256 of all SizeBytes
}

// exportChunk is what is read, hashed and written at once.
const exportChunk = maxPutBlocks << blockShift

// OpenSealed opens a sealed layer for reading its content; any number may have it open at once.
func (s *Store) OpenSealed(name string) (*Layer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.layers[name]
	switch {
	case s.closed:
		return nil, fmt.Errorf("open layer %q: store %s: %w", name, s.path, ErrClosed)
	case l == nil:
		return nil, fmt.Errorf("open layer %q in store %s: %w", name, s.path, ErrNoLayer)
	case !l.entry.Sealed:
		return nil, fmt.Errorf("open layer %q in store %s: %w: freeze its device first", name, s.path, ErrNotSealed)
	}
	l.readers++
	return l, nil
}

// CloseSealed ends what OpenSealed began.
func (l *Layer) CloseSealed() {
	l.store.mu.Lock()
	l.readers--
	l.store.mu.Unlock()
}

// readBlocks reads the content of a device on the layer: its own blocks, those of the layers below, and the root's. It checks every
// block of the store against its checksum. What is below the layer must not change meanwhile, but may be replaced by equals.
// Blocks that skip names are left out. Slots are kept from being used again only while they are read: the root may take long.
func (l *Layer) readBlocks(read *storeReader, base Base, p []byte, off int64, c *chunk, skip func(i int) bool) error {
	n := (len(p) + blockSize - 1) >> blockShift
	maps, sums := c.maps[:n], c.sums[:n]
	epoch := read.enter()
	err := l.resolve(uint64(off)>>blockShift, maps, sums)
	if err == nil {
		for i := range maps {
			if skip != nil && skip(i) {
				maps[i] = mapZero
			}
		}
		err = eachRun(maps, len(p), func(i, k, end int) error {
			switch {
			case maps[i].isData():
				return l.readSlots(maps[i].slot(), sums[i:k], p[i<<blockShift:end], c.scratch)
			case maps[i] == mapZero:
				clear(p[i<<blockShift : end])
			}
			return nil
		})
	}
	read.exit(epoch)
	if err != nil {
		return err
	}
	return eachRun(maps, len(p), func(i, k, end int) error {
		if maps[i] != mapAbsent {
			return nil
		}
		return readRoot(base, p[i<<blockShift:end], off+int64(i)<<blockShift)
	})
}

// eachRun calls f for blocks i to k that can be read together and end at byte end.
func eachRun(maps []mapping, size int, f func(i, k, end int) error) error {
	for i := 0; i < len(maps); {
		k := i + 1
		for k < len(maps) && sameRun(maps[i], maps[k], k-i) {
			k++
		}
		if err := f(i, k, min(k<<blockShift, size)); err != nil {
			return err
		}
		i = k
	}
	return nil
}

// sameRun tells whether the block k after one at m is to be read together with it.
func sameRun(m, next mapping, k int) bool {
	if m.isData() {
		return next.isData() && next.slot() == m.slot()+uint64(k)
	}
	return next == m
}

// readRoot reads from the root, whose end is followed by zeros.
func readRoot(base Base, p []byte, off int64) error {
	have := max(0, min(int64(len(p)), rootLen(base)-off))
	clear(p[have:])
	if have == 0 {
		return nil
	}
	done := make(chan error, 1)
	base.ReadAsync(p[:have], off, func(_ Origins, err error) { done <- err })
	if err := <-done; err != nil {
		return fmt.Errorf("read at byte %d: %w: %w", off, ErrRoot, err)
	}
	return nil
}

func (l *Layer) readSlots(slot uint64, sums []uint32, p, scratch []byte) error {
	s := l.store
	buf := scratch[:len(sums)<<blockShift]
	if _, err := s.disk.ReadAt(buf, s.sb.slotOffset(slot)); err != nil {
		return fmt.Errorf("read store: %w", err)
	}
	for i, sum := range sums {
		if checksum(buf[i<<blockShift:(i+1)<<blockShift]) != sum {
			return &CorruptError{"data", s.sb.slotOffset(slot + uint64(i)), "checksum wrong"}
		}
	}
	copy(p, buf)
	return nil
}

// Export writes the content of a device on the sealed layer to w, from its beginning to its end, and leaves out what is zero where w
// reads as zeros already. The layer must be open by OpenSealed.
func (l *Layer) Export(ctx context.Context, base Base, w *ExportFile, o ExportOptions) (*ExportResult, error) {
	// A layer that was detached since base was opened does not read it.
	if d := l.Pin().Difference(rootPin(base)); d != "" && l.Pin().Kind != PinNone {
		return nil, fmt.Errorf("export layer %q: %w: this one has %s", l.Name(), ErrOtherRoot, d)
	}
	read := l.store.newReader()
	defer read.close()
	res := &ExportResult{SizeBytes: l.SizeBytes()}
	c := newChunk()
	h := sha256.New()
	for off := int64(0); off < res.SizeBytes; off += exportChunk {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("export layer %q: %w", l.Name(), err)
		}
		p := c.buf[:min(exportChunk, res.SizeBytes-off)]
		if err := l.readBlocks(read, base, p, off, c, nil); err != nil {
			return nil, fmt.Errorf("export layer %q: %w", l.Name(), err)
		}
		h.Write(p)
		n, err := w.put(p, off)
		if err != nil {
			return nil, fmt.Errorf("export layer %q: write: %w", l.Name(), err)
		}
		res.WrittenBytes += n
		if o.Progress != nil {
			o.Progress(off+int64(len(p)), res.SizeBytes)
		}
	}
	h.Sum(res.Digest[:0])
	return res, w.finish(res.SizeBytes)
}

// ExportFile is where an export goes: a new regular file, which appears under its name only when it is complete, or a
// block device at least as large.
type ExportFile struct {
	f      *os.File
	path   string
	sparse bool // reads as zeros where nothing was written
	done   bool
}

// CreateExport opens the destination of an export of size bytes. It refuses a file that exists, and a block
// device that is in use or too small.
func CreateExport(path string, size int64) (*ExportFile, error) {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return createExportFile(path)
	case err != nil:
		return nil, fmt.Errorf("export: %w", err)
	case st.Mode()&os.ModeDevice == 0 || st.Mode()&os.ModeCharDevice != 0:
		return nil, fmt.Errorf("export to %s: it exists and is no block device: give the name of a new file", path)
	}
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("export to %s: %w", path, ErrInUse)
	}
	if err != nil {
		return nil, fmt.Errorf("export: %w", err)
	}
	have, err := f.Seek(0, io.SeekEnd)
	if err == nil && have < size {
		err = fmt.Errorf("has %d bytes, need %d: %w", have, size, ErrTooSmall)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("export to %s: %w", path, err), f.Close())
	}
	return &ExportFile{f: f, path: path}, nil
}

func createExportFile(path string) (*ExportFile, error) {
	f, err := os.OpenFile(path+partial, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("export: %w", err)
	}
	// What an export that died left is written over; another one under way is left alone.
	if err = directio.Lock(f, unix.LOCK_EX); err == nil {
		err = f.Truncate(0)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("export to %s: %w", path, err), f.Close())
	}
	return &ExportFile{f: f, path: path, sparse: true}, nil
}

// partial is what the name of an unfinished export ends with.
const partial = ".partial"

// zeroRun is the unit in which zeros are left out.
const zeroRun = 64 << 10

var zeros = make([]byte, zeroRun)

// put writes a chunk and returns how much of it was written.
func (w *ExportFile) put(p []byte, off int64) (written int64, err error) {
	if !w.sparse {
		n, err := w.f.WriteAt(p, off)
		return int64(n), err
	}
	for at := 0; at < len(p); at += zeroRun {
		q := p[at:min(at+zeroRun, len(p))]
		if bytes.Equal(q, zeros[:len(q)]) {
			continue
		}
		n, err := w.f.WriteAt(q, off+int64(at))
		written += int64(n)
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

func (w *ExportFile) finish(size int64) error {
	if w.sparse {
		if err := w.f.Truncate(size); err != nil {
			return fmt.Errorf("export to %s: %w", w.path, err)
		}
	}
	if err := w.f.Sync(); err != nil {
		return fmt.Errorf("export to %s: %w", w.path, err)
	}
	if w.sparse {
		if err := os.Rename(w.path+partial, w.path); err != nil {
			return fmt.Errorf("export to %s: %w", w.path, err)
		}
		w.done = true
		return w.syncDir()
	}
	w.done = true
	return nil
}

// syncDir makes the file's name as durable as its content.
func (w *ExportFile) syncDir() error {
	dir, err := os.Open(filepath.Dir(w.path))
	if err == nil {
		err = errors.Join(dir.Sync(), dir.Close())
	}
	if err != nil {
		return fmt.Errorf("export to %s: make its name durable: %w", w.path, err)
	}
	return nil
}

// Close closes the destination. A file that is not complete is removed.
func (w *ExportFile) Close() error {
	err := w.f.Close()
	if !w.done && w.sparse {
		err = errors.Join(err, os.Remove(w.path+partial))
	}
	return err
}
