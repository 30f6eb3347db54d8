package union

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// ScrubOptions say how to scrub.
type ScrubOptions struct {
	// BytesPerSecond bounds how fast is read; 0: a part of the time, which is smaller while devices are busy.
	BytesPerSecond int64
}

// ScrubStatus tells what scrubbing came to since the store was opened.
type ScrubStatus struct {
	Running    bool       `json:"running"`
	DoneBytes  int64      `json:"done_bytes"` // of data, in the pass under way
	TotalBytes int64      `json:"total_bytes"`
	Passes     int        `json:"passes"`              // that came to their end
	LastPass   *time.Time `json:"last_pass,omitempty"` // end of the last of them
	LastBytes  int64      `json:"last_bytes"`          // that it read
	Problems   []Problem  `json:"problems"`            // found by the last pass and the one under way
	Mended     int        `json:"mended"`              // blocks written again from another copy
}

// scrubState is what a store knows of its scrubbing.
type scrubState struct {
	pass sync.Mutex // held by a pass

	mu     sync.Mutex // guards what follows
	status ScrubStatus
	before []Problem // of the last pass, while one is under way
}

// ScrubStatus returns how far it is.
func (s *Store) ScrubStatus() ScrubStatus {
	s.scrub.mu.Lock()
	defer s.scrub.mu.Unlock()
	st := s.scrub.status
	st.Problems = append(append([]Problem{}, s.scrub.before...), s.scrub.status.Problems...)
	return st
}

func (st *scrubState) update(f func(*ScrubStatus)) {
	st.mu.Lock()
	f(&st.status)
	st.mu.Unlock()
}

// scrubbing is one pass.
type scrubbing struct {
	s     *Store
	ctx   context.Context
	pace  pace
	read  *storeReader
	buf   []byte
	names map[uint32]string // of layers, by number
	found func(p Problem, layer string)
}

// Scrub reads the whole store once, while it is in use: superblocks, both copies of the log, catalog, maps, and every data block of every
// layer. What another copy has is written again, and found is told of all that was damaged, and of which layer if of one, from the calling goroutine; it must not call the
// store. The store must not be closed meanwhile. A damaged
// block of data stays: only its device can write another in its place. One pass runs at a time, others wait.
func (s *Store) Scrub(ctx context.Context, o ScrubOptions, found func(p Problem, layer string)) error {
	if s.readOnly {
		return fmt.Errorf("scrub store %s: %w", s.path, ErrReadOnly)
	}
	s.scrub.pass.Lock()
	defer s.scrub.pass.Unlock()
	p := &scrubbing{s: s, ctx: ctx, pace: pace{bytesPerSecond: o.BytesPerSecond}, read: s.newReader(),
		buf: alignedBuffer(slotCheckBlocks << blockShift), names: map[uint32]string{}}
	defer p.read.close()
	p.found = func(problem Problem, layer string) {
		s.scrub.update(func(st *ScrubStatus) {
			if problem.Repairable {
				st.Mended++
			}
			if len(st.Problems) < maxProblems {
				st.Problems = append(st.Problems, problem)
			}
		})
		found(problem, layer)
	}
	layers, total := s.scrubLayers(p.names)
	s.scrub.mu.Lock()
	st := &s.scrub.status
	s.scrub.before = st.Problems
	st.Running, st.DoneBytes, st.TotalBytes, st.Problems = true, 0, total, nil
	s.scrub.mu.Unlock()
	err := p.run(layers)
	s.scrub.update(func(st *ScrubStatus) {
		st.Running = false
		if err != nil {
			return
		}
		now := time.Now()
		st.Passes++
		st.LastPass, st.LastBytes = &now, st.DoneBytes
	})
	if err == nil {
		s.scrub.mu.Lock()
		s.scrub.before = nil
		s.scrub.mu.Unlock()
		return nil
	}
	return fmt.Errorf("scrub store %s: %w", s.path, err)
}

func (s *Store) scrubLayers(names map[uint32]string) (layers []*Layer, total int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	layers = s.inOrder()
	for _, l := range layers {
		names[l.entry.Number] = l.entry.Name
		total += l.infoLocked().DataBytes
	}
	return layers, total
}

func (p *scrubbing) run(layers []*Layer) error {
	for _, structure := range []func() error{p.superblocks, p.logs, p.catalog, p.bitmap} {
		if err := structure(); err != nil {
			return err
		}
	}
	for _, l := range layers {
		if err := p.maps(l); err != nil {
			return err
		}
		if err := p.data(l); err != nil {
			return err
		}
	}
	return nil
}

// superblocks reads the two copies. They change only under mu, and what they hold is in memory.
func (p *scrubbing) superblocks() error {
	s := p.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, block := range superBlocks {
		q := p.buf[:blockSize]
		var sb superblock
		off := block << blockShift
		_, err := s.disk.ReadAt(q, off)
		if err == nil {
			err = sb.decode(q, off)
		}
		if err == nil && sb.Generation == s.sb.Generation {
			continue
		}
		p.found(Problem{"superblock", off, fmt.Sprintf("copy %c is damaged", 'A'+i), true}, "")
		s.sb.encode(q)
		if err := s.mend(q, off); err != nil {
			return err
		}
	}
	return nil
}

// mend writes again what another copy holds.
func (s *Store) mend(p []byte, off int64) error {
	_, err := s.disk.WriteAt(p, off)
	if err == nil {
		err = s.flush()
	}
	if err != nil {
		s.fail(err)
		return fmt.Errorf("write again at byte %d: %w", off, err)
	}
	return nil
}

// logs compares the copies of all blocks that a recovery would read. None of them is used again while the log's start stays, which only
// a checkpoint moves on, under mu.
func (p *scrubbing) logs() error {
	var next uint64
	for {
		if err := p.ctx.Err(); err != nil {
			return err
		}
		began := time.Now()
		n, err := p.someLog(&next)
		if err != nil || n == 0 {
			return err
		}
		p.pace.wait(p.ctx, p.s, int64(2*n)<<blockShift, time.Since(began))
	}
}

// someLog compares some blocks from *next on, or from the start where that is behind it, and returns how many.
func (p *scrubbing) someLog(next *uint64) (n int, err error) {
	s := p.s
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log.mu.Lock()
	first, last := max(*next, s.log.start), s.log.written
	s.log.mu.Unlock()
	if first > last {
		return 0, nil
	}
	const most = slotCheckBlocks / 2
	n = int(min(last-first+1, most, s.sb.LogBlocks-first%s.sb.LogBlocks))
	*next = first + uint64(n)
	var copies [2][]byte
	places := [2]uint64{s.sb.LogA, s.sb.LogB}
	for c := range copies {
		copies[c] = p.buf[c*most<<blockShift:][:n<<blockShift]
		s.readCopy(copies[c], s.logOffset(places[c], first))
	}
	for i := range n {
		s.log.mu.Lock()
		start := s.log.start
		s.log.mu.Unlock()
		if first+uint64(i) < start { // after a checkpoint in between
			continue
		}
		if err := p.logBlock(first+uint64(i), copies[0][i<<blockShift:][:blockSize], copies[1][i<<blockShift:][:blockSize]); err != nil {
			return n, err
		}
	}
	return n, nil
}

func (p *scrubbing) logBlock(seq uint64, a, b []byte) error {
	s := p.s
	whole := func(q []byte) bool {
		var h logHeader
		return h.decode(q, s.sb.UUID) && h.Seq == seq
	}
	good, bad, place, name := a, b, s.sb.LogB, 'B'
	if whole(b) {
		good, bad, place, name = b, a, s.sb.LogA, 'A'
	}
	if whole(bad) {
		return nil
	}
	off := s.logOffset(place, seq)
	if !whole(good) {
		// What its records say is in memory: a checkpoint writes that elsewhere.
		p.found(Problem{"log", off, fmt.Sprintf("block %d is damaged in both copies", seq), true}, "")
		return s.checkpointLocked()
	}
	p.found(Problem{"log", off, fmt.Sprintf("copy %c of block %d is damaged", name, seq), true}, "")
	return s.mend(good, off)
}

// catalog reads the catalog, and writes another where it is damaged: all of it is in memory.
func (p *scrubbing) catalog() error {
	s := p.s
	s.mu.Lock()
	defer s.mu.Unlock()
	index := uint32(0)
	damaged := false
	for _, e := range s.catalogSlots {
		for i := range uint64(e.Count) {
			off := s.sb.slotOffset(e.Slot + i)
			q := p.buf[:blockSize]
			_, err := s.disk.ReadAt(q, off)
			if err == nil {
				_, _, err = decodeCatalogBlock(q, &s.sb, index, off)
			}
			if err != nil {
				damaged = true
				p.found(Problem{"catalog", off, err.Error(), true}, "")
			}
			index++
		}
	}
	if !damaged {
		return nil
	}
	return s.checkpointLocked()
}

// data reads the blocks of a layer.
func (p *scrubbing) data(l *Layer) error {
	var records []record
	for r := range l.regions() {
		if err := p.ctx.Err(); err != nil {
			return err
		}
		began := time.Now()
		n, err := p.region(l, r, &records)
		if err != nil {
			return err
		}
		if n == 0 {
			continue
		}
		size := int64(n) << blockShift
		p.s.scrub.update(func(st *ScrubStatus) { st.DoneBytes += size; st.TotalBytes = max(st.TotalBytes, st.DoneBytes) })
		p.pace.wait(p.ctx, p.s, size, time.Since(began))
	}
	return nil
}

// region reads the blocks of one region, and returns how many. Between enter and exit no slot that the map names is used again, so what is
// wrong then is damage. The map of a layer that was removed, or merged with another, is not its own any more.
func (p *scrubbing) region(l *Layer, region uint64, buf *[]record) (n int, err error) {
	s := p.s
	if !l.holds(region) {
		return 0, nil
	}
	epoch := p.read.enter()
	defer p.read.exit(epoch)
	s.mu.Lock()
	records := (*buf)[:0]
	if s.layers[l.entry.Name] == l {
		records, err = l.dataIn(region, records)
	}
	s.mu.Unlock()
	var damage *CorruptError
	if errors.As(err, &damage) { // which the map's own check tells
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	*buf = records
	sortBySlot(records)
	for rest := records; len(rest) > 0; {
		k := slotRun(rest)
		s.checkRun(rest[:k], p.buf, func(r *record, why string) {
			name := p.names[l.entry.Number]
			p.found(s.dataProblem(name, r, why), name)
		})
		rest = rest[k:]
	}
	return len(records), nil
}
