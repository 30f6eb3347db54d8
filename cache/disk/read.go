package disk

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"coppice/cache"
)

// gate knows whether reads are under way, for those who let them go first.
type gate struct {
	mu   sync.Mutex
	n    int
	idle chan struct{} // closed when n becomes 0; nil while it is
}

func (g *gate) enter() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.n++; g.n == 1 {
		g.idle = make(chan struct{})
	}
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.n--; g.n == 0 {
		close(g.idle)
		g.idle = nil
	}
}

// wait waits until no read is under way, until stop is closed, or for so long.
func (g *gate) wait(stop <-chan struct{}, patience time.Duration) {
	g.mu.Lock()
	idle := g.idle
	g.mu.Unlock()
	if idle == nil {
		return
	}
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-idle:
	case <-stop:
	case <-t.C:
	}
}

var errTimeout = fmt.Errorf("a read timed out: %w", ErrHangs)

// Get fills p with the chunk, or fails with [cache.ErrMiss], or with the context's error. Its checksum was right, but
// the caller has to compare its digest.
func (d *Disk) Get(ctx context.Context, c cache.Chunk, p []byte) error {
	err := d.get(ctx, &c.Key, p)
	switch err {
	case nil:
		d.count.hits.Add(1)
	case cache.ErrMiss:
		d.count.misses.Add(1)
	}
	return err
}

func (d *Disk) get(ctx context.Context, key *cache.Key, p []byte) error {
	for len(p) > 0 && d.works() {
		id, e, off, ok := d.find(key, len(p))
		if !ok {
			break
		}
		b, err := d.read(ctx, off, len(p))
		switch {
		case err != nil && ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			d.readFailed(id, e, err)
			return cache.ErrMiss
		}
		good := chunkChecksum(key, b.b[:len(p)]) == e.check
		if good {
			copy(p, b.b)
		}
		d.buffers.put(b)
		if good {
			return nil
		}
		if d.giveUp(id, e) { // after a power cut there may be another slot of the same key
			d.count.bad.Add(1)
		}
	}
	return cache.ErrMiss
}

// works reports whether there is any use in reading.
func (d *Disk) works() bool { return !d.closed.Load() && !d.off.Load() }

// find returns the slot of a chunk, its entry, and where it lies, and counts the read.
func (d *Disk) find(key *cache.Key, length int) (id uint32, e entry, off int64, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := d.table
	id, ok = t.find(t.hash(key))
	if !ok {
		return 0, e, 0, false
	}
	at := t.entry(id)
	if int(at.meta&metaLen)+1 != length {
		return 0, e, 0, false
	}
	at.read()
	seg, slot := t.place(id)
	return id, *at, t.g.slotOffset(seg, t.segs[seg].class, slot), true
}

// giveUp makes a slot unused, where it is still that of the entry.
func (d *Disk) giveUp(id uint32, e entry) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.table.holds(id, &e) {
		return false
	}
	d.table.remove(id)
	return true
}

// read reads n bytes into a buffer that the caller gives back. One that takes too long turns the cache off, whether or not the caller
// still waits, and ends by itself some time.
func (d *Disk) read(ctx context.Context, off int64, n int) (*buffer, error) {
	if err := d.enter(ctx); err != nil {
		return nil, err
	}
	b := d.buffers.get(n)
	done := make(chan error, 2)
	late := time.AfterFunc(d.o.ReadTimeout, func() {
		d.turnOff(errTimeout)
		done <- errTimeout
	})
	go func() {
		_, err := d.dev.Load().ReadAt(b.b[:roundUp(n)], off)
		late.Stop()
		d.gate.leave()
		<-d.reads
		done <- err
	}()
	select {
	case err := <-done:
		if err == nil {
			d.badReads.Store(0)
		}
		return b, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// enter waits until fewer than maxReads reads are under way.
func (d *Disk) enter(ctx context.Context) error {
	select {
	case d.reads <- struct{}{}:
		d.gate.enter()
		return nil
	default:
	}
	t := time.NewTimer(d.o.ReadTimeout)
	defer t.Stop()
	select {
	case d.reads <- struct{}{}:
		d.gate.enter()
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return errTimeout
	}
}

// readFailed gives up a slot that cannot be read, and turns the cache off where it is not the only one.
func (d *Disk) readFailed(id uint32, e entry, err error) {
	d.count.readErrors.Add(1)
	if errors.Is(err, errTimeout) {
		return
	}
	d.giveUp(id, e)
	if d.badReads.Add(1) >= maxBadReads {
		d.turnOff(err)
	}
}

// Reject gives up the slot of a chunk whose content was not that.
func (d *Disk) Reject(c cache.Chunk) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if id, ok := d.table.find(d.table.hash(&c.Key)); ok {
		d.table.remove(id)
		d.count.bad.Add(1)
	}
}
