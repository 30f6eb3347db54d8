package powercut

import (
	"fmt"
	"maps"
	"os"
	"slices"

	"coppice/vmtests/logwrites"
)

// SectorBytes is what a disk writes as a whole.
const SectorBytes = 512

// Range is a part of the disk, in bytes.
type Range struct{ Off, Len int64 }

func (r Range) holds(e logwrites.Entry) bool { return e.Off >= r.Off && e.Off+e.Len <= r.Off+r.Len }

// Recording is what a disk was told, divided by its flushes.
type Recording struct {
	log     *logwrites.Log
	store   Range
	flushes []int // indices of entries
	events  map[int]Event
	first   int // epoch of the Ready event
}

// NewRecording finds flushes and events in a log.
func NewRecording(log *logwrites.Log, store, marks Range) (*Recording, error) {
	r := &Recording{log: log, store: store, events: make(map[int]Event), first: -1}
	for i, e := range log.Entries {
		if e.Flags&logwrites.Flush != 0 && e.Len == 0 {
			r.flushes = append(r.flushes, i)
		}
		if !e.HasData() || !marks.holds(e) {
			continue
		}
		p, err := log.Data(e, 0, min(e.Len, MarkBytes))
		if err != nil {
			return nil, err
		}
		event, err := decodeEvent(p)
		if err != nil {
			return nil, fmt.Errorf("entry %d: %w", i, err)
		}
		r.events[i] = event
		if event.Kind == Ready {
			r.first = max(r.first, len(r.flushes)-1)
		}
	}
	if r.first < 0 || r.first+1 >= len(r.flushes) {
		return nil, fmt.Errorf("the recording has %d flushes and %d events, but not one of each after %q", len(r.flushes), len(r.events), Ready)
	}
	return r, nil
}

// Epochs returns the numbers of the epochs in which the disk may be cut: the first, and the one behind the last. Epoch n begins
// after flush n.
func (r *Recording) Epochs() (first, end int) { return r.first, len(r.flushes) - 1 }

// span are the entries of an epoch, without the flushes around it.
func (r *Recording) span(epoch int) (from, to int) { return r.flushes[epoch] + 1, r.flushes[epoch+1] }

// Disk is the leaf store at some time: whole pages of BlockBytes by their number, absent ones zero. Pages are replaced, never changed.
type Disk map[int64][]byte

// Cursor goes through a recording from its beginning.
type Cursor struct {
	r     *Recording
	disk  Disk // with all that was before the next epoch
	entry int
	event int
}

// Begin returns a cursor before the first entry.
func (r *Recording) Begin() *Cursor { return &Cursor{r: r, disk: make(Disk)} }

// Events calls do for all events up to the end of the epoch that were not passed to an earlier call.
func (c *Cursor) Events(epoch int, do func(Event) error) error {
	_, to := c.r.span(epoch)
	for ; c.event < to; c.event++ {
		if e, ok := c.r.events[c.event]; ok {
			if err := do(e); err != nil {
				return err
			}
		}
	}
	return nil
}

// Advance brings the disk to the beginning of an epoch. Cursors only go forward.
func (c *Cursor) Advance(epoch int) error {
	from, _ := c.r.span(epoch)
	for ; c.entry < from; c.entry++ {
		if err := c.disk.apply(c.r, c.r.log.Entries[c.entry], nil); err != nil {
			return fmt.Errorf("entry %d: %w", c.entry, err)
		}
	}
	return nil
}

// Cut returns the disk that a cut in the epoch leaves; Advance must have been called for it.
func (c *Cursor) Cut(epoch int, cut Cut) (Disk, error) {
	d := maps.Clone(c.disk)
	from, to := c.r.span(epoch)
	writes := c.r.writes(from, to)
	keep := cut.choose(c.r.log, writes)
	for i, n := range writes {
		if keep[i] == nil {
			continue
		}
		if err := d.apply(c.r, c.r.log.Entries[n], keep[i]); err != nil {
			return nil, fmt.Errorf("entry %d: %w", n, err)
		}
	}
	return d, nil
}

// Writes returns how many requests of the epoch changed the store.
func (r *Recording) Writes(epoch int) int { return len(r.writes(r.span(epoch))) }

func (r *Recording) writes(from, to int) []int {
	var list []int
	for i := from; i < to; i++ {
		if e := r.log.Entries[i]; e.Len > 0 && r.store.holds(e) {
			list = append(list, i)
		}
	}
	return list
}

// apply carries out a write or discard of the store. sectors tells which sectors of it arrive; nil: all.
func (d Disk) apply(r *Recording, e logwrites.Entry, sectors []bool) error {
	if e.Len == 0 || !r.store.holds(e) {
		return nil
	}
	var data []byte
	if e.HasData() {
		var err error
		if data, err = r.log.Data(e, 0, e.Len); err != nil {
			return err
		}
	}
	first := e.Off - r.store.Off
	for n := first / BlockBytes; n*BlockBytes < first+e.Len; n++ {
		from, to := max(first, n*BlockBytes), min(first+e.Len, (n+1)*BlockBytes)
		page := make([]byte, BlockBytes)
		copy(page, d[n])
		for at := from; at < to; at += SectorBytes {
			part := page[at-n*BlockBytes:][:SectorBytes]
			switch {
			case sectors != nil && !sectors[(at-first)/SectorBytes]:
			case data == nil:
				clear(part)
			default:
				copy(part, data[at-first:])
			}
		}
		d[n] = page
	}
	return nil
}

// WriteFile makes a sparse file of sizeBytes bytes of the disk.
func (d Disk) WriteFile(path string, sizeBytes int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, page := range slices.Sorted(maps.Keys(d)) {
		if _, err := f.WriteAt(d[page], page*BlockBytes); err != nil {
			return err
		}
	}
	return f.Truncate(sizeBytes)
}
