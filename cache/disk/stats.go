package disk

import (
	"sync/atomic"
	"time"
)

// State tells whether a cache works.
type State string

// The states.
const (
	StateOn       State = "on"
	StateReadOnly State = "read-only" // writes fail, and are tried again from time to time
	StateOff      State = "off"       // the disk does not answer, or fails: everything is a miss
	StateClosed   State = "closed"
)

// Stats describes a cache. Counters begin when it is opened.
type Stats struct {
	Name        string `json:"name"`
	State       State  `json:"state"`
	Why         string `json:"why,omitempty"` // it is not on
	SizeBytes   int64  `json:"size_bytes"`
	DataBytes   int64  `json:"data_bytes"` // of it, room for slots
	MemoryBytes int64  `json:"memory_bytes"`
	Slots       int    `json:"slots"` // that there are for now: segments which hold nothing have none
	Used        int    `json:"used"`  // of them
	Bytes       int64  `json:"bytes"` // of the chunks in them

	Hits         uint64     `json:"hits"`
	Misses       uint64     `json:"misses"`
	WrittenBytes uint64     `json:"written_bytes"` // of chunks
	Evictions    uint64     `json:"evictions"`
	BadSlots     uint64     `json:"bad_slots"` // that held something else than they should: after a power cut, or rot
	DroppedPuts  uint64     `json:"dropped_puts"`
	QueuedBytes  int64      `json:"queued_bytes"` // that wait to be written
	ReadErrors   uint64     `json:"read_errors"`
	WriteErrors  uint64     `json:"write_errors"`
	TurnedOff    uint64     `json:"turned_off"` // times
	Scrub        ScrubStats `json:"scrub"`
}

// ScrubStats tells what scrubbing came to since the cache was opened.
type ScrubStats struct {
	DoneBytes int64      `json:"done_bytes"` // of chunks, in the pass under way
	Passes    int        `json:"passes"`     // that came to their end
	LastPass  *time.Time `json:"last_pass,omitempty"`
	LastBytes int64      `json:"last_bytes"` // that it read
	BadSlots  uint64     `json:"bad_slots"`  // that all passes found
}

type counters struct {
	hits, misses, written, bad, dropped, readErrors, writeErrors, trips atomic.Uint64
}

// Stats describes the cache as it is now.
func (d *Disk) Stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := d.table
	s := Stats{
		Name: d.name, State: StateOn, SizeBytes: int64(d.g.Blocks) << blockShift, DataBytes: int64(d.g.Segments) * int64(d.g.SegmentBlocks) << blockShift,
		MemoryBytes: t.memory(), Slots: t.slots, Used: t.used, Bytes: t.bytes,
		Hits: d.count.hits.Load(), Misses: d.count.misses.Load(), WrittenBytes: d.count.written.Load(), Evictions: t.evictions,
		BadSlots: d.count.bad.Load(), DroppedPuts: d.count.dropped.Load(), QueuedBytes: d.queued.Load(),
		ReadErrors: d.count.readErrors.Load(), WriteErrors: d.count.writeErrors.Load(), TurnedOff: d.count.trips.Load(), Scrub: d.scrub,
	}
	if s.Why = d.writing.reason(); s.Why != "" {
		s.State = StateReadOnly
	}
	if d.off.Load() {
		s.State, s.Why = StateOff, d.why
	}
	if d.closed.Load() {
		s.State = StateClosed
	}
	return s
}
