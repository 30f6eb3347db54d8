package ublktest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A Disk is a block device in memory. Its content is a real file (a memfd), so code that wants an
// *os.File or a path can have one; what is written through those bypasses the hooks
// and counts as volatile only after the next [Disk.Settle].
//
// A Disk keeps two images: what reads see, and what a power cut leaves at least.
type Disk struct {
	name  string
	file  *os.File
	align int64
	size  atomic.Int64

	mu       sync.Mutex
	content  []byte   // mapping of file
	durable  []byte   // content as of the flushes that ended, for the writes that they cover
	fresh    []uint64 // a bit for each block of 4 KiB of durable: written to since TakeDurable was called last
	volatile []*WriteRecord
	clock    uint64 // orders the ends of writes and the beginnings of flushes
}

// WriteRecord is a write that no flush has made durable.
type WriteRecord struct {
	Off  int64
	Data []byte // as written; owned by the Disk

	ended uint64 // Disk.clock when the writer learned of its end; 0 before
}

// NewDisk makes a disk of size bytes of zeros.
func NewDisk(name string, size int64) (*Disk, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make disk %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	if err := f.Truncate(size); err != nil {
		return nil, errors.Join(fmt.Errorf("make disk %s of %d bytes: %w", name, size, err), f.Close())
	}
	content, err := unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map disk %s: %w", name, err), f.Close())
	}
	durable, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map disk %s: %w", name, err), unix.Munmap(content), f.Close())
	}
	d := &Disk{name: name, file: f, content: content, durable: durable, fresh: make([]uint64, freshWords(size))}
	d.size.Store(size)
	return d, nil
}

// Close frees the memory. Content and Bytes must not be used afterwards.
func (d *Disk) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.content == nil {
		return nil
	}
	err := errors.Join(unix.Munmap(d.content), unix.Munmap(d.durable), d.file.Close())
	d.content, d.durable, d.volatile = nil, nil, nil
	return err
}

// Grow makes the disk at least size bytes long, durably, and returns its size. What Bytes returned before must not be used any more.
func (d *Disk) Grow(size int64) (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if size <= int64(len(d.content)) {
		return int64(len(d.content)), nil
	}
	if err := d.file.Truncate(size); err != nil {
		return 0, fmt.Errorf("grow disk %s: %w", d.name, err)
	}
	content, err := unix.Mremap(d.content, int(size), unix.MREMAP_MAYMOVE)
	if err != nil {
		return 0, fmt.Errorf("map disk %s: %w", d.name, err)
	}
	d.content = content
	durable, err := unix.Mremap(d.durable, int(size), unix.MREMAP_MAYMOVE)
	if err != nil {
		return 0, fmt.Errorf("map disk %s: %w", d.name, err)
	}
	d.durable = durable
	d.fresh = append(d.fresh, make([]uint64, freshWords(size)-len(d.fresh))...)
	d.size.Store(size)
	return size, nil
}

// Name returns the name given to NewDisk.
func (d *Disk) Name() string { return d.name }

// Size returns the size in bytes.
func (d *Disk) Size() int64 { return d.size.Load() }

// File returns the file behind the disk, which Queue.RegisterFile accepts.
func (d *Disk) File() *os.File { return d.file }

// Path returns a name under which this process can open the disk anew, with its own locks and flags.
func (d *Disk) Path() string { return fmt.Sprintf("/proc/self/fd/%d", d.file.Fd()) }

// Bytes returns the live content. Writing there bypasses the hooks, as writing to File does.
func (d *Disk) Bytes() []byte { return d.content }

// RequireAlignment makes target I/O fail with EINVAL unless its offset, length and
// address are multiples of n bytes, as O_DIRECT does. 0 or 1 asks for nothing.
func (d *Disk) RequireAlignment(n int64) { d.align = n }

// ReadAt reads the live content.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if off < 0 || off >= int64(len(d.content)) {
		return 0, io.EOF
	}
	n := copy(p, d.content[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt writes p as one volatile write that has ended. No hook is called.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > d.Size() || int64(len(p)) > d.Size()-off {
		return 0, fmt.Errorf("write %d bytes at %d of disk %s: %w", len(p), off, d.name, unix.ENOSPC)
	}
	d.end(d.write(p, off))
	return len(p), nil
}

// WriteDurable writes p as one write with the force-unit-access bit. No hook is called.
func (d *Disk) WriteDurable(p []byte, off int64) error {
	if off < 0 || off > d.Size() || int64(len(p)) > d.Size()-off {
		return fmt.Errorf("write %d bytes at %d of disk %s: %w", len(p), off, d.name, unix.ENOSPC)
	}
	w := d.write(p, off)
	d.persistWrite(w)
	d.end(w)
	return nil
}

// Sync makes durable the writes that have ended. No hook is called.
func (d *Disk) Sync() error {
	d.flush(d.flushBegins())
	return nil
}

// BeginSync begins a flush and returns what ends it: only then are the writes durable that had ended when it began. No
// hook is called.
func (d *Disk) BeginSync() (end func()) {
	began := d.flushBegins()
	return func() { d.flush(began) }
}

// Settle makes the whole live content durable, what bypassed the hooks included.
func (d *Disk) Settle() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.volatile = d.volatile[:0]
	copy(d.durable, d.content)
	d.freshen(0, int64(len(d.durable)))
}

// freshWords is how many words have a bit for each block of so many bytes.
func freshWords(size int64) int { return int((size>>12 + 64) / 64) }

// freshen notes that n bytes of the durable image were written to.
func (d *Disk) freshen(off, n int64) {
	for b := off >> 12; b<<12 < off+n; b++ {
		d.fresh[b/64] |= 1 << (b % 64)
	}
}

// persisted puts data into the durable image.
func (d *Disk) persisted(p []byte, off int64) {
	copy(d.durable[off:], p)
	d.freshen(off, int64(len(p)))
}

func (d *Disk) write(p []byte, off int64) *WriteRecord {
	d.mu.Lock()
	defer d.mu.Unlock()
	w := &WriteRecord{Off: off, Data: append([]byte(nil), p...)}
	copy(d.content[off:], p)
	d.volatile = append(d.volatile, w)
	return w
}

// end notes that the writer of w has been told.
func (d *Disk) end(w *WriteRecord) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.clock++
	w.ended = d.clock
}

func (d *Disk) flushBegins() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.clock++
	return d.clock
}

// flush makes durable the writes that had ended when the flush began, and nothing more where
// that can be helped: a test should not be saved by what a real disk need not do.
func (d *Disk) flush(began uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.persist(func(w *WriteRecord) bool { return w.ended != 0 && w.ended < began })
}

// Doom tells the disk that a flush failed: what it should have made durable may be lost whatever later flushes say, because the
// kernel takes pages that it could not write for clean.
func (d *Disk) Doom() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.volatile {
		w.ended = 0
	}
}

// persistWrite makes one write durable (a write with the force-unit-access bit).
func (d *Disk) persistWrite(target *WriteRecord) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.persist(func(w *WriteRecord) bool { return w == target })
}

// persist moves the writes that want is true for to the durable image, in their order. An
// earlier write below a durable one goes with it: no disk brings older content back.
func (d *Disk) persist(want func(*WriteRecord) bool) {
	keep := make([]bool, len(d.volatile))
	for i := len(d.volatile) - 1; i >= 0; i-- {
		keep[i] = !want(d.volatile[i])
		for j := i + 1; keep[i] && j < len(d.volatile); j++ {
			keep[i] = keep[j] || !d.volatile[i].overlaps(d.volatile[j])
		}
	}
	rest := d.volatile[:0]
	for i, w := range d.volatile {
		if keep[i] {
			rest = append(rest, w)
			continue
		}
		d.persisted(w.Data, w.Off)
	}
	clear(d.volatile[len(rest):])
	d.volatile = rest
}

func (w *WriteRecord) overlaps(o *WriteRecord) bool {
	return w.Off < o.Off+int64(len(o.Data)) && o.Off < w.Off+int64(len(w.Data))
}
