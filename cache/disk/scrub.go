package disk

import (
	"context"
	"crypto/sha256"
	"time"

	"coppice/cache"
)

const (
	// scrubPause is how long scrubbing rests when it has come to the end.
	scrubPause = 10 * time.Minute
	// scrubBatch is how many bytes are read between two rests.
	scrubBatch = 256 << 10
)

// slotRead is a slot in use, as it was when it was looked at.
type slotRead struct {
	id     uint32
	e      entry
	bucket uint32
	off    int64
	length int
}

// scrubAlways reads all chunks, over and over, at a limited rate, each when no other read is under way.
func (d *Disk) scrubAlways() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	t := time.NewTimer(0)
	defer t.Stop()
	owed := 0
	pace := func(n int) bool {
		d.gate.wait(d.stop, yieldTime)
		if owed += n; owed < scrubBatch {
			return true
		}
		n, owed = owed, 0
		t.Reset(time.Duration(int64(n) * int64(time.Second) / d.o.ScrubBytesPerSecond))
		select {
		case <-d.stop:
			return false
		case <-t.C:
		}
		return true
	}
	for d.scrubPass(ctx, pace) {
		t.Reset(scrubPause)
		select {
		case <-d.stop:
			return
		case <-t.C:
		}
	}
}

// scrubPass reads all chunks once, and gives up the slots of those that are damaged. It asks pace before each.
func (d *Disk) scrubPass(ctx context.Context, pace func(n int) bool) bool {
	for seg := range int(d.g.Segments) {
		for slot := 0; ; slot++ {
			r, more := d.slotAt(seg, slot)
			if !more {
				break
			}
			if r.length == 0 || d.off.Load() {
				continue
			}
			if !pace(r.length) {
				return false
			}
			if !d.off.Load() { // which it may have become while pace waited
				d.scrubSlot(ctx, r)
			}
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	d.scrub.Passes++
	d.scrub.LastPass, d.scrub.LastBytes, d.scrub.DoneBytes = &now, d.scrub.DoneBytes, 0
	return true
}

// slotAt looks at a slot. More is false where the segment has fewer. The length of one that is not in use is 0.
func (d *Disk) slotAt(seg, slot int) (r slotRead, more bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := &d.table.segs[seg]
	if slot >= len(s.entries) {
		return r, false
	}
	e := s.entries[slot]
	if e.meta&metaUsed == 0 {
		return r, true
	}
	return slotRead{d.table.id(seg, slot), e, d.table.bucketOf(&e), d.g.slotOffset(seg, s.class, slot), int(e.meta&metaLen) + 1}, true
}

// scrubSlot reads a slot, and gives it up where it is damaged.
func (d *Disk) scrubSlot(ctx context.Context, r slotRead) {
	b, err := d.read(ctx, r.off, r.length)
	if err != nil {
		d.readFailed(r.id, r.e, err)
		return
	}
	content := b.b[:r.length]
	key := cache.Key(sha256.Sum256(content))
	bucket, tag := d.table.hash(&key)
	good := bucket == r.bucket && tag == r.e.tag && chunkChecksum(&key, content) == r.e.check
	d.buffers.put(b)
	bad := !good && d.giveUp(r.id, r.e)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.scrub.DoneBytes += int64(r.length)
	if bad {
		d.count.bad.Add(1)
		d.scrub.BadSlots++
	}
}
