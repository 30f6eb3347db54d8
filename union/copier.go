package union

import (
	"bytes"
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// copier fills a layer that no device has open with blocks from elsewhere. Data goes to free slots first and is recorded
// then, like a device's write.
type copier struct {
	dst   *Layer
	keep  uint64 // slots that it leaves free
	limit func(more int64) error

	zeroFirst, zeroes uint64 // range of zeros that is not recorded yet
	exts              []extent
	records           []record
	copied            *atomic.Int64 // bytes of data
}

// maxPutBlocks is how many blocks a copier takes at once: their records always fit into an empty log.
const maxPutBlocks = 256

// copyKeep is how many slots copying leaves free, beside what is reserved: it must not be what fills a store.
func (s *Store) copyKeep() uint64 { return s.keepFor(classData, maxPutBlocks) + s.slots.size()/20 }

// put copies whole blocks, at most maxPutBlocks, from an aligned buffer. Blocks of zeros become records only.
func (c *copier) put(first uint64, p []byte) error {
	n := uint64(len(p)) >> blockShift
	for i := uint64(0); i < n; {
		k := i
		for k < n && !bytes.Equal(p[k<<blockShift:(k+1)<<blockShift], zeros[:blockSize]) {
			k++
		}
		if k > i {
			if err := c.data(first+i, p[i<<blockShift:k<<blockShift]); err != nil {
				return err
			}
		}
		for i = k; k < n && bytes.Equal(p[k<<blockShift:(k+1)<<blockShift], zeros[:blockSize]); {
			k++
		}
		if err := c.zero(first+i, k-i); err != nil {
			return err
		}
		i = k
	}
	return nil
}

// zero notes a range of zeros. Neighbouring ranges become one record.
func (c *copier) zero(first, count uint64) error {
	if count == 0 {
		return nil
	}
	if c.zeroes > 0 && c.zeroFirst+c.zeroes == first {
		c.zeroes += count
		return nil
	}
	if err := c.flush(); err != nil {
		return err
	}
	c.zeroFirst, c.zeroes = first, count
	return nil
}

// flush records the range of zeros that is held back.
func (c *copier) flush() error {
	if c.zeroes == 0 {
		return nil
	}
	// Zeros take no slots, but the maps do that a checkpoint writes: a segment and a page for each region at most.
	s := c.dst.store
	if err := c.alloc(0, s.keepFor(classMeta, 0)+2*(c.zeroes>>regionShift+2)); err != nil {
		return err
	}
	c.records = append(c.records[:0], record{Kind: kindZero, Layer: c.dst.entry.Number, Block: c.zeroFirst, Slot: c.zeroes})
	c.zeroes = 0
	return c.record()
}

func (c *copier) data(first uint64, p []byte) error {
	s := c.dst.store
	n := len(p) >> blockShift
	if c.limit != nil {
		if err := c.limit(int64(len(p))); err != nil {
			return err
		}
	}
	if err := c.alloc(n, max(c.keep, s.keepFor(classData, n))); err != nil {
		return err
	}
	c.records = c.records[:0]
	at := 0
	for _, e := range c.exts {
		q := p[at<<blockShift:][:int(e.Count)<<blockShift]
		if _, err := s.disk.WriteAt(q, s.sb.slotOffset(e.Slot)); err != nil {
			s.fail(err)
			return fmt.Errorf("write store: %w", err)
		}
		for j := range uint64(e.Count) {
			sum := checksum(q[j<<blockShift:][:blockSize])
			c.records = append(c.records, record{kindData, c.dst.entry.Number, first + uint64(at) + j, e.Slot + j, sum})
		}
		at += int(e.Count)
	}
	if err := c.record(); err != nil {
		return err
	}
	c.copied.Add(int64(len(p)))
	return nil
}

// alloc takes slots and leaves at least keep free. Where there are too few, those that a commit would free are waited for once.
func (c *copier) alloc(n int, keep uint64) (err error) {
	s := c.dst.store
	for try := 0; ; try++ {
		var ok bool
		if c.exts, ok = s.slots.alloc(c.exts[:0], n, keep); ok {
			return nil
		}
		if try == 1 {
			return fmt.Errorf("%d bytes are free, of which %d must stay so: %w",
				s.slots.freeSlots()<<blockShift, keep<<blockShift, ErrNoSpace)
		}
		if err := s.commit(); err != nil {
			return err
		}
		s.epochs.collect()
	}
}

// record appends the records to the log and applies them.
func (c *copier) record() error {
	l := c.dst
	s := l.store
	for {
		for i := range c.records {
			if err := s.loadAll(l.m, c.records[i].Block, c.records[i].blocks()); err != nil {
				return err
			}
		}
		if err := s.lockRoom(l, len(c.records), s.Checkpoint); err != nil {
			return err
		}
		done := c.apply()
		busy := s.log.nearlyFull() || s.log.next-s.log.durable > flushAfterBlocks || s.pager.crowded()
		s.log.mu.Unlock()
		l.mu.Unlock()
		if busy {
			s.wakeBackground()
		}
		if done {
			return nil
		}
	}
}

// apply reports false where entries were forgotten again before they could be changed.
func (c *copier) apply() bool {
	s, m := c.dst.store, c.dst.m
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range c.records {
		if _, found := m.paged(c.records[i].Block, c.records[i].blocks()); found {
			return false
		}
	}
	s.slots.mu.Lock()
	defer s.slots.mu.Unlock()
	for i := range c.records {
		r := &c.records[i]
		s.log.append(r)
		m.apply(r, nothingFreed)
		if r.Kind == kindData {
			s.slots.own(r.Slot)
		}
	}
	return true
}

// pace holds background work back: to a rate, or, without one, to a part of the time, which is smaller
// while devices have requests in flight.
type pace struct {
	bytesPerSecond int64
	began          time.Time
	done           int64
}

// wait is called after n bytes that took some time. It ends early with ctx.
func (p *pace) wait(ctx context.Context, s *Store, n int64, took time.Duration) {
	rest := took / 4
	if p.bytesPerSecond > 0 {
		if p.began.IsZero() {
			p.began = time.Now().Add(-took)
		}
		p.done += n
		rest = time.Duration(float64(p.done)/float64(p.bytesPerSecond)*float64(time.Second)) - time.Since(p.began)
	} else if s.epochs.busy() {
		const most = time.Second
		rest = min(2*took, most)
	}
	if rest <= 0 {
		return
	}
	t := time.NewTimer(rest)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
