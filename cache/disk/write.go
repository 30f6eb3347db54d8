package disk

import (
	"fmt"
	"time"

	"coppice/cache"
)

// job is a chunk to be written.
type job struct {
	key    cache.Key
	length int
	b      *buffer
}

// Put queues a chunk to be written, where there is room. One that the cache has counts as read.
func (d *Disk) Put(c cache.Chunk, content []byte) {
	if len(content) == 0 || len(content) > maxChunk || c.Key == (cache.Key{}) || d.has(&c.Key) {
		return
	}
	n := int64(len(content))
	if !d.works() || d.writing.isOff() {
		d.count.dropped.Add(1)
		return
	}
	if d.queued.Add(n) > d.o.QueueBytes {
		d.notTaken(n)
		return
	}
	b := d.buffers.get(len(content))
	copy(b.b, content)
	clear(b.b[len(content):roundUp(len(content))])
	j := job{c.Key, len(content), b}
	if d.o.inline {
		d.save(j)
		return
	}
	select {
	case d.queue <- j:
	default:
		d.buffers.put(b)
		d.notTaken(n)
	}
}

func (d *Disk) notTaken(n int64) {
	d.queued.Add(-n)
	d.count.dropped.Add(1)
}

// has reports whether the cache has a chunk, and counts it as read if so.
func (d *Disk) has(key *cache.Key) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	id, ok := d.table.find(d.table.hash(key))
	if ok {
		d.table.entry(id).read()
	}
	return ok
}

// write is the goroutine that writes all there is to write.
func (d *Disk) write() {
	tick := time.NewTicker(d.o.IndexEvery)
	defer tick.Stop()
	for {
		select {
		case <-d.stop:
			return
		case j := <-d.queue:
			d.save(j)
			continue
		case <-d.kick:
		case <-tick.C:
		}
		if !d.writing.isOff() && !d.off.Load() {
			d.noteWrite(d.writeIndex())
		}
	}
}

// takeBack takes one chunk out of the queue without writing it, if there is one.
func (d *Disk) takeBack() bool {
	select {
	case j := <-d.queue:
		d.buffers.put(j.b)
		d.notTaken(int64(j.length))
		return true
	default:
		return false
	}
}

// writeQueued writes what is in the queue.
func (d *Disk) writeQueued() {
	for !d.writing.isOff() {
		select {
		case j := <-d.queue:
			d.save(j)
		default:
			return
		}
	}
}

// save writes a chunk into a slot.
func (d *Disk) save(j job) {
	defer d.buffers.put(j.b)
	defer d.queued.Add(int64(-j.length))
	if d.has(&j.key) {
		return
	}
	if d.writing.isOff() || d.off.Load() {
		d.count.dropped.Add(1)
		return
	}
	check := chunkChecksum(&j.key, j.b.b[:j.length])
	id, class, off := d.takeSlot(j.length)
	err := d.writeAt(j.b.b[:roundUp(j.length)], off)
	d.noteWrite(err)
	if err != nil {
		d.count.dropped.Add(1)
		return
	}
	d.count.written.Add(uint64(j.length))
	d.mu.Lock()
	defer d.mu.Unlock()
	t := d.table
	if seg, _ := t.place(id); t.segs[seg].class == class { // it may have been dropped meanwhile
		bucket, tag := t.hash(&j.key)
		t.insert(id, diskEntry{bucket, tag, check, metaUsed | uint32(j.length-1)})
	}
}

func (d *Disk) takeSlot(length int) (id uint32, class uint8, off int64) {
	class = classOf(length)
	d.mu.Lock()
	defer d.mu.Unlock()
	id = d.table.take(class)
	seg, slot := d.table.place(id)
	return id, class, d.g.slotOffset(seg, class, slot)
}

// writeAt writes in pieces, each after the reads that are under way.
func (d *Disk) writeAt(p []byte, off int64) error {
	for len(p) > 0 {
		n := min(len(p), writePiece)
		d.gate.wait(d.stop, yieldTime)
		if _, err := d.dev.Load().WriteAt(p[:n], off); err != nil {
			d.count.writeErrors.Add(1)
			return fmt.Errorf("write %d bytes at byte %d: %w", n, off, err)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// writeIndex writes the index blocks that changed.
func (d *Disk) writeIndex() error {
	p := alignedBuffer(blockSize)
	for seg := range d.g.Segments {
		for part := range d.g.parts() {
			if !d.encodeDirty(p, int(seg), part) {
				continue
			}
			if err := d.writeAt(p, d.g.indexOffset(int(seg), part)); err != nil {
				d.mu.Lock()
				d.table.segs[seg].dirty |= 1 << part
				d.mu.Unlock()
				return fmt.Errorf("write index: %w", err)
			}
		}
	}
	return nil
}

// encodeDirty writes an index block that changed into p, and takes it for written.
func (d *Disk) encodeDirty(p []byte, seg, part int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := &d.table.segs[seg]
	if s.dirty&(1<<part) == 0 {
		return false
	}
	s.dirty &^= 1 << part
	d.table.encodeIndex(p, seg, part)
	return true
}
