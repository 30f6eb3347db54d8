package disk

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"coppice/cache"
)

var _ cache.Tier = (*Disk)(nil)

// Disk is an open cache.
type Disk struct {
	name string
	path string // empty: a region
	g    geometry
	o    Options
	dev  atomic.Pointer[holder]

	buffers buffers
	reads   chan struct{} // holds a token for each read under way
	gate    gate
	queue   chan job
	queued  atomic.Int64 // bytes in queue
	kick    chan struct{}
	count   counters

	off      atomic.Bool  // nothing is read or written until a probe succeeds
	badReads atomic.Int32 // in a row
	writing  breaker
	closed   atomic.Bool
	stop     chan struct{}

	mu      sync.Mutex // guards what follows
	table   *table
	scrub   ScrubStats
	why     string         // it is off
	workers sync.WaitGroup // nobody joins them once closed is set
}

// holder has what the cache lies on, which may be opened anew.
type holder struct{ device }

// Open opens the cache in a file or on a block device, and makes it where there is none. It is this process's alone until it is closed.
func Open(path string, o Options) (*Disk, error) {
	d, err := open(path, o)
	if err != nil {
		return nil, fmt.Errorf("open disk cache %s: %w", path, err)
	}
	return d, nil
}

func open(path string, o Options) (*Disk, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	_, statErr := os.Stat(path)
	f, err := openFile(path, o.SizeBytes)
	if err != nil {
		return nil, err
	}
	size := f.size
	if o.SizeBytes != 0 {
		size = o.SizeBytes
	}
	d, err := openOn(path, f, size, o)
	if err != nil {
		err = errors.Join(err, f.Close())
		if errors.Is(statErr, os.ErrNotExist) {
			err = errors.Join(err, os.Remove(path))
		}
		return nil, err
	}
	d.path = path
	if f.block || f.size <= size {
		d.start()
		return d, nil
	}
	if err := f.Truncate(size); err != nil {
		o.Log.Warn("disk cache: the file is larger than the cache in it and cannot be cut", "cache", path, "error", err)
	}
	d.start()
	return d, nil
}

// OpenRegion opens the cache in a region of a file, and makes it where there is none, whatever lies there. Nobody else may use the region until
// the cache is closed, and the file must be open until then.
func OpenRegion(r Region, o Options) (*Disk, error) {
	if o.SizeBytes != 0 || r.Off%blockSize != 0 || r.Off < 0 {
		return nil, fmt.Errorf("open disk cache in %s: a region at byte %d, of %d bytes: it begins at a multiple of 4 KiB, and has its size", r.Name, r.Off, o.SizeBytes)
	}
	o.Overwrite = true
	err := o.complete()
	var d *Disk
	if err == nil {
		d, err = openOn(r.Name, r, r.Length, o)
	}
	if err != nil {
		return nil, fmt.Errorf("open disk cache in %s: %w", r.Name, err)
	}
	d.start()
	return d, nil
}

// openOn opens a cache of sizeBytes without its work in the background.
func openOn(name string, dev device, sizeBytes int64, o Options) (*Disk, error) {
	d := &Disk{
		name: name, o: o,
		reads: make(chan struct{}, maxReads), queue: make(chan job, maxQueued), kick: make(chan struct{}, 1), stop: make(chan struct{}),
	}
	d.dev.Store(&holder{dev})
	want := layout(sizeBytes)
	if o.geometry != nil {
		want = *o.geometry
	}
	if err := d.findHeader(want); err != nil {
		return nil, err
	}
	d.table = newTable(d.g, o.maxSlots(&d.g))
	d.readIndex()
	return d, nil
}

func (d *Disk) start() {
	if d.o.inline {
		return
	}
	d.workers.Go(d.write)
	if d.o.ScrubBytesPerSecond > 0 {
		d.workers.Go(d.scrubAlways)
	}
}

// headerBlocks are the places of the copies of the header.
var headerBlocks = [2]int64{headerABlock, headerBBlock}

// findHeader reads the header, and mends a copy that is damaged. Where there is none that can be used it makes a cache of the wanted
// geometry.
func (d *Disk) findHeader(want geometry) error {
	if want.Segments == 0 || d.o.geometry == nil && int64(want.Blocks) < MinBytes>>blockShift {
		return fmt.Errorf("%d bytes, need at least %d: %w", want.Blocks<<blockShift, MinBytes, ErrTooSmall)
	}
	p := alignedBuffer(blockSize)
	var found *geometry
	var why error
	ours, damaged := false, false
	for _, block := range headerBlocks {
		g, err := d.readHeader(p, block)
		ours = ours || bytes.Equal(p[:len(headerMagic)], headerMagic[:])
		switch {
		case err != nil:
			why, damaged = err, true
		case g.Blocks != want.Blocks:
			why = &formatError{"header", fmt.Sprintf("made for %d bytes, there are %d", g.Blocks<<blockShift, want.Blocks<<blockShift)}
		case found == nil:
			found = &g
		default:
			damaged = damaged || g != *found
		}
	}
	if found == nil {
		return d.format(want, ours, why)
	}
	d.g = *found
	if damaged {
		d.o.Log.Warn("disk cache: a copy of the header is damaged, it is written again", "cache", d.name)
		d.noteWrite(d.writeHeaders())
	}
	return nil
}

func (d *Disk) readHeader(p []byte, block int64) (g geometry, err error) {
	if _, err := d.dev.Load().ReadAt(p, block<<blockShift); err != nil {
		clear(p)
		return g, fmt.Errorf("read header: %w", err)
	}
	err = g.decode(p)
	return g, err
}

// format makes a cache. What is not ours must be zeros where headers and index are to be.
func (d *Disk) format(g geometry, ours bool, why error) error {
	if !ours && !d.o.Overwrite {
		if err := d.checkEmpty(g); err != nil {
			return err
		}
	}
	if ours {
		d.o.Log.Warn("disk cache: made anew, what it held is lost", "cache", d.name, "error", why)
	}
	if g.UUID = d.o.uuid; g.UUID == uuid.Nil {
		g.UUID = uuid.New()
	}
	d.g = g
	err := d.writeHeaders()
	if err == nil {
		err = d.dev.Load().Sync() // the only time: chunks without a header would be somebody else's
	}
	if err != nil {
		return fmt.Errorf("write header: %w", err)
	}
	return nil
}

// checkEmpty refuses what has a byte that is not zero in its first or last MiB.
func (d *Disk) checkEmpty(g geometry) error {
	size := int64(g.Blocks) << blockShift
	p := alignedBuffer(int(min(1<<20, size)))
	for _, off := range [2]int64{0, size - int64(len(p))} {
		if _, err := d.dev.Load().ReadAt(p, off); err != nil {
			return fmt.Errorf("read at byte %d: %w", off, err)
		}
		for i, c := range p {
			if c != 0 {
				return fmt.Errorf("byte %d is %#02x: %w: give another place, or overwrite it with zeros first", off+int64(i), c, ErrForeign)
			}
		}
	}
	return nil
}

func (d *Disk) writeHeaders() error {
	p := alignedBuffer(blockSize)
	d.g.encode(p)
	for _, block := range headerBlocks {
		if _, err := d.dev.Load().WriteAt(p, block<<blockShift); err != nil {
			return err
		}
	}
	return nil
}

// readIndex fills the table with what the index on the disk has. What cannot be read is forgotten.
func (d *Disk) readIndex() {
	const batch = maxChunk >> blockShift
	t := d.table
	p := alignedBuffer(min(batch, len(t.segs)) << blockShift)
	for part := range d.g.parts() {
		for seg := 0; seg < len(t.segs); {
			if part > 0 && partsFor(len(t.segs[seg].entries)) <= part {
				seg++
				continue
			}
			n := min(batch, len(t.segs)-seg)
			if _, err := d.dev.Load().ReadAt(p[:n<<blockShift], d.g.indexOffset(seg, part)); err != nil {
				clear(p[:n<<blockShift])
			}
			for i := range n {
				t.load(p[i<<blockShift:(i+1)<<blockShift], seg+i, part)
			}
			seg += n
		}
	}
}

// Drop forgets all chunks. What waits to be written is not kept.
func (d *Disk) Drop() {
	for d.takeBack() {
	}
	d.mu.Lock()
	before := d.table.evictions
	for seg := range d.table.segs {
		d.table.clear(seg)
	}
	d.table.evictions = before
	d.mu.Unlock()
	select {
	case d.kick <- struct{}{}:
	default:
	}
}

// Close writes what is queued, and the index, and gives the cache up. It fails with [ErrHangs] where the disk does not take that within some
// seconds; reads and writes that are under way are then left behind.
func (d *Disk) Close() error {
	d.mu.Lock()
	was := d.closed.Swap(true)
	d.mu.Unlock()
	if was {
		return nil
	}
	close(d.stop)
	patience := max(closePatience, d.o.ReadTimeout)
	done := make(chan error, 1)
	go func() {
		d.workers.Wait()
		d.gate.wait(nil, patience)
		done <- d.finish()
	}()
	var err error
	select {
	case err = <-done:
	case <-time.After(patience):
		err = ErrHangs
	}
	if err = errors.Join(err, d.dev.Load().Close()); err != nil {
		return fmt.Errorf("close disk cache %s: %w", d.name, err)
	}
	return nil
}

// finish leaves the disk as the next opening wants it.
func (d *Disk) finish() error {
	if d.writing.isOff() || d.off.Load() {
		return nil // what lies there is a cache, only an older one
	}
	d.writeQueued()
	if err := d.writeIndex(); err != nil {
		return err
	}
	return d.dev.Load().Sync()
}
