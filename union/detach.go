package union

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
)

// Detaching makes a layer, the owner, independent of what it stands on. What lies below it is copied to a layer of its own, the
// work layer: as long as that is not complete it stands on the same layer as the owner, so that the two
// agree at any time, and nobody else knows it. The end is one checkpoint, in which the owner loses root and ancestors and has the
// copy instead; then the two become one.
//
// The owner goes on all the while, and may be frozen and merged. The anchor is the layer of its chain that the copy is
// for: the lowest one above what the work layer stands on. Blocks that it holds are not copied; it never loses one.
//
// The catalog marks the owner as detaching and the work layer as detaching and incoming, and the work layer's name has the owner's
// UUID: whoever opens the store can go on.
type detach struct {
	owner, work *Layer
	base        Base // nil: no root
	read        *storeReader
	copy        copier
	pace        pace

	done, copied atomic.Int64 // bytes
}

// DetachOptions say how to detach.
type DetachOptions struct {
	// BytesPerSecond bounds how fast is copied; 0: a part of the time, which is smaller while devices are busy.
	BytesPerSecond int64
}

// DetachProgress tells how far a layer is made independent.
type DetachProgress struct {
	DoneBytes   int64 `json:"done_bytes"` // of the device
	TotalBytes  int64 `json:"total_bytes"`
	CopiedBytes int64 `json:"copied_bytes"` // data in the copy
}

// workPrefix begins the names of work layers.
const workPrefix = "detach-"

func workName(owner uuid.UUID) string { return workPrefix + owner.String() }

func (l *Layer) isWork() bool { return l.entry.Incoming && l.entry.Detaching }

// workOf returns the work layer of an owner, or nil. The caller holds mu.
func (s *Store) workOf(owner *Layer) *Layer {
	if w := s.layers[workName(owner.entry.UUID)]; w != nil && w.isWork() {
		return w
	}
	return nil
}

// ownerOf returns the layer that a work layer is for, or nil.
func (s *Store) ownerOf(work *Layer) *Layer {
	for _, l := range s.layers {
		if l.entry.Detaching && !l.isWork() && strings.TrimPrefix(work.entry.Name, workPrefix) == l.entry.UUID.String() {
			return l
		}
	}
	return nil
}

// moveWork lets the work layer of l stand where l will stand after it was merged with the layer below. The two agree in
// all that l and below do not hold. The caller holds mu.
func (s *Store) moveWork(l, below *Layer) {
	if w := s.workOf(l); w != nil && w != below && w.parent == below {
		w.mu.Lock()
		w.standOn(below.parent)
		w.mu.Unlock()
	}
}

// dropUnfinished forgets what nobody can complete: layers that were being copied from another store, and work layers without
// an owner.
func (s *Store) dropUnfinished() error {
	for _, l := range s.inOrder() {
		if !l.entry.Incoming || s.stoodOn(l) || l.isWork() && s.ownerOf(l) != nil {
			continue
		}
		exts, err := l.ownSlots()
		if err != nil {
			return err
		}
		delete(s.layers, l.entry.Name)
		// The state on the store names them until the recovery is done.
		s.stale = append(s.stale, l.mapSlots()...)
		s.volatile = true
		for _, e := range exts {
			for i := range uint64(e.Count) {
				s.supersede(e.Slot + i)
			}
		}
		l.m.drop()
	}
	return nil
}

// standsOnly fails where a layer other than but stands on l. The caller holds mu, here and below.
func (s *Store) standsOnly(l *Layer, but ...*Layer) error {
	for _, other := range s.inOrder() {
		if other.parent == l && !slices.Contains(but, other) {
			return fmt.Errorf("layer %q stands on it: %w", other.entry.Name, ErrLayerInUse)
		}
	}
	return nil
}

func (s *Store) stoodOn(l *Layer) bool { return s.standsOnly(l) != nil }

// whole finds a layer that is no copy under way.
func (s *Store) whole(name string) (*Layer, error) {
	l := s.layers[name]
	switch {
	case s.closed:
		return nil, ErrClosed
	case l == nil:
		return nil, ErrNoLayer
	case l.entry.Incoming:
		return nil, fmt.Errorf("it is a copy that is not complete: %w", ErrLayerInUse)
	}
	return l, nil
}

// standsOn tells whether l is or stands on p.
func (l *Layer) standsOn(p *Layer) bool {
	for q := l; q != nil; q = q.parent {
		if q == p {
			return true
		}
	}
	return false
}

// Detach makes a layer, sealed or not, complete: it copies everything that the layer does not hold from the
// layers below and the root, and then lets it stand on nothing. Requests go on all the while. base is the root that the
// layer's pin names, or nil where it has none.
//
// Where ctx ends or the root cannot be read, the layer stays marked: calling Detach again, also after the store was opened again,
// goes on where this ended. Where the store has not enough space or a block is damaged, the layer is as it was before.
func (s *Store) Detach(ctx context.Context, name string, base Base, o DetachOptions) error {
	fail := func(err error) error { return fmt.Errorf("detach layer %q of store %s: %w", name, s.path, err) }
	d, err := s.beginDetach(name, base, o)
	if err != nil {
		return fail(err)
	}
	if d == nil {
		return nil
	}
	defer d.end()
	err = d.run(ctx)
	if errors.Is(err, ErrNoSpace) || errors.Is(err, ErrCorrupt) {
		d.end()
		err = errors.Join(err, s.StopDetach(name))
	}
	if err != nil {
		return fail(err)
	}
	return nil
}

// beginDetach marks the layer and makes its work layer, unless that was done before. It returns nil where the layer is complete.
func (s *Store) beginDetach(name string, base Base, o DetachOptions) (*detach, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, err := s.whole(name)
	switch {
	case err != nil:
		return nil, err
	case s.readOnly:
		return nil, ErrReadOnly
	case l.detach != nil:
		return nil, fmt.Errorf("it is being detached already: %w", ErrLayerInUse)
	case l.complete():
		return nil, nil
	}
	if l.entry.Pin.Kind == PinNone {
		base = nil
	}
	if d := l.entry.Pin.Difference(rootPin(base)); d != "" {
		return nil, fmt.Errorf("%w: this one has %s", ErrOtherRoot, d)
	}
	work := s.workOf(l)
	if work == nil {
		if work, err = s.makeWork(l); err != nil {
			return nil, err
		}
	}
	d := &detach{owner: l, work: work, base: base, read: s.newReader(), pace: pace{bytesPerSecond: o.BytesPerSecond}}
	d.copy = copier{dst: work, keep: s.copyKeep(), limit: d.withinQuota, copied: &d.copied}
	work.mu.Lock()
	d.copied.Store(int64(work.m.dataBlocks()) << blockShift)
	work.mu.Unlock()
	l.detach = d
	return d, nil
}

// complete tells whether the layer needs neither root nor ancestors.
func (l *Layer) complete() bool { return l.parent == nil && l.entry.Pin.Kind == PinNone }

func (s *Store) makeWork(l *Layer) (*Layer, error) {
	e := layerEntry{
		Number: s.sb.NextLayer, UUID: uuid.New(), Name: workName(l.entry.UUID), SizeBytes: l.entry.SizeBytes,
		Created: time.Now().Unix(), Pin: l.entry.Pin, Detaching: true, Incoming: true,
	}
	if s.layers[e.Name] != nil {
		return nil, fmt.Errorf("%q: %w", e.Name, ErrLayerExists)
	}
	if err := s.fewEnough(); err != nil {
		return nil, err
	}
	work := newLayer(s, e)
	work.m = newSectorMap(s.pager, e.Number, work.blocks())
	work.standOn(l.parent)
	s.layers[e.Name] = work
	s.sb.NextLayer++
	l.entry.Detaching = true
	if err := s.changeLayers(); err != nil {
		delete(s.layers, e.Name)
		work.m.drop()
		l.entry.Detaching = false
		return nil, err
	}
	return work, nil
}

// end lets another Detach begin.
func (d *detach) end() {
	s := d.owner.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.owner.detach == d {
		d.owner.detach = nil
		d.read.close()
	}
}

func (l *Layer) detachProgress() *DetachProgress {
	d := l.detach
	if d == nil {
		return nil
	}
	return &DetachProgress{DoneBytes: d.done.Load(), TotalBytes: l.entry.SizeBytes, CopiedBytes: d.copied.Load()}
}

// StopDetach gives up detaching a layer, and frees the copy. Detach must have returned. A layer that is not marked is left
// as it is.
func (s *Store) StopDetach(name string) error {
	s.flattening.Lock()
	defer s.flattening.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.layers[name]
	fail := func(err error) error {
		return fmt.Errorf("stop detaching layer %q of store %s: %w", name, s.path, err)
	}
	switch {
	case s.readOnly:
		return fail(ErrReadOnly)
	case l == nil:
		return fail(ErrNoLayer)
	case l.detach != nil:
		return fail(ErrLayerInUse)
	case !l.entry.Detaching || l.entry.Incoming:
		return nil
	}
	work := s.workOf(l)
	if work != nil && work.entry.Sealed { // complete: only what is left to do at once
		if err := errors.Join(s.finishDetach(l, work), s.commit()); err != nil {
			return fail(err)
		}
		return nil
	}
	l.entry.Detaching = false
	drop := []*Layer{}
	if work != nil {
		drop = append(drop, work)
	}
	if err := s.dropLayers(drop...); err != nil {
		l.entry.Detaching = true
		return fail(err)
	}
	return nil
}

// withinQuota keeps the copy and what the owner holds within the owner's quota.
func (d *detach) withinQuota(more int64) error {
	l := d.owner
	l.store.mu.Lock()
	quota := l.entry.QuotaBytes
	l.store.mu.Unlock()
	if quota == 0 {
		return nil
	}
	l.mu.Lock()
	have := int64(l.m.dataBlocks()) << blockShift
	l.mu.Unlock()
	if need := have + d.copied.Load() + more; need > quota {
		return fmt.Errorf("it would hold %d bytes or more, its quota is %d: %w", need, quota, ErrNoSpace)
	}
	return nil
}

func (d *detach) run(ctx context.Context) error {
	if err := d.scan(ctx); err != nil {
		return err
	}
	if err := d.finish(); err != nil {
		return err
	}
	return d.owner.store.commit()
}

// scan goes through the device once. What the work layer or the anchor holds already costs a look-up.
func (d *detach) scan(ctx context.Context) error {
	if d.copyComplete() {
		return nil
	}
	c := newChunk()
	for first := uint64(0); first < d.work.m.blocks; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := d.step(ctx, c, first, maxPutBlocks)
		if err != nil {
			return err
		}
		first += n
		d.done.Store(min(int64(first)<<blockShift, d.owner.entry.SizeBytes))
	}
	return d.copy.flush()
}

// copyComplete tells whether an earlier Detach came to its last step.
func (d *detach) copyComplete() bool {
	s := d.owner.store
	s.mu.Lock()
	defer s.mu.Unlock()
	return d.work.entry.Sealed
}

// step copies what is missing of the blocks from first on, at most most, and returns how many those were.
func (d *detach) step(ctx context.Context, c *chunk, first, most uint64) (uint64, error) {
	if n := d.knownZeros(first); n > 0 {
		return n, d.copy.zero(first, n)
	}
	n := min(most, d.work.m.blocks-first)
	began := time.Now()
	read, err := d.copyChunk(c, first, n)
	if err == nil && read > 0 {
		d.pace.wait(ctx, d.work.store, read, time.Since(began))
	}
	return n, err
}

// knownZeros returns how many blocks are known to be zeros below without reading them, where first begins a region.
func (d *detach) knownZeros(first uint64) uint64 {
	if first%regionBlocks != 0 || d.work.touches(first>>regionShift) {
		return 0
	}
	n := min(regionBlocks, d.work.m.blocks-first)
	if nextData(d.base, int64(first)<<blockShift) < int64(first+n)<<blockShift {
		return 0
	}
	return n
}

// chunk is the memory for copying some blocks.
type chunk struct {
	own, anchor, maps []mapping
	sums              []uint32
	buf, scratch      []byte
}

func newChunk() *chunk {
	return &chunk{
		own: make([]mapping, maxPutBlocks), anchor: make([]mapping, maxPutBlocks), maps: make([]mapping, maxPutBlocks),
		sums: make([]uint32, maxPutBlocks),
		buf:  alignedBuffer(maxPutBlocks << blockShift), scratch: alignedBuffer(maxPutBlocks << blockShift),
	}
}

// copyChunk copies those of n blocks that neither the work layer nor the anchor holds, and returns how many bytes it read.
func (d *detach) copyChunk(c *chunk, first, n uint64) (read int64, err error) {
	err = errors.Join(d.work.own(first, c.own[:n], c.sums[:n]), d.anchored(first, c.anchor[:n], c.sums[:n]))
	if err != nil {
		return 0, err
	}
	held := func(i int) bool { return c.own[i] != mapAbsent || c.anchor[i] != mapAbsent }
	if err := d.work.readBlocks(d.read, d.base, c.buf[:n<<blockShift], int64(first)<<blockShift, c, held); err != nil {
		return 0, err
	}
	for i := 0; i < int(n); {
		k := i
		for k < int(n) && !held(k) {
			if c.maps[k] != mapZero {
				read += blockSize
			}
			k++
		}
		if err := d.copy.put(first+uint64(i), c.buf[i<<blockShift:k<<blockShift]); err != nil {
			return read, err
		}
		for i = k; i < int(n) && held(i); {
			i++
		}
	}
	return read, nil
}

// anchored looks blocks up in the layer that the copy is for at present. Under mu, no merge changes which that is.
func (d *detach) anchored(first uint64, out []mapping, sums []uint32) error {
	s := d.owner.store
	s.mu.Lock()
	defer s.mu.Unlock()
	return anchorOf(d.owner, d.work).own(first, out, sums)
}

func anchorOf(owner, work *Layer) *Layer {
	p := owner
	for p.parent != work.parent && p.parent != work && p.parent != nil {
		p = p.parent
	}
	return p
}

// finish puts the copy in its place.
func (d *detach) finish() error {
	s := d.owner.store
	s.flattening.Lock()
	defer s.flattening.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.finishDetach(d.owner, d.work)
}

// finishDetach puts the complete work layer in the place of everything below the anchor. The caller holds flattening and mu.
func (s *Store) finishDetach(owner, work *Layer) error {
	anchor := anchorOf(owner, work)
	if anchor.entry.Sealed {
		return s.foldSealed(owner, anchor, work)
	}
	if !work.entry.Sealed {
		if err := s.standOnWork(anchor, work); err != nil {
			return err
		}
	}
	// Requests go on, so the log must say from when on slots of the copy can be superseded.
	return s.merge(anchor)
}

// standOnWork lets a layer that is written to stand on the copy alone: one checkpoint.
func (s *Store) standOnWork(l, work *Layer) error {
	set := func(below, belowWork *Layer, sealed bool, pin Pin) {
		work.mu.Lock()
		work.standOn(belowWork)
		work.entry.Sealed, work.entry.Pin = sealed, pin
		work.mu.Unlock()
		l.mu.Lock()
		l.standOn(below)
		l.entry.Pin = pin
		l.mu.Unlock()
	}
	if err := s.roomForCheckpoint(0); err != nil {
		return err
	}
	below, pin := l.parent, l.entry.Pin
	set(work, nil, true, Pin{})
	if err := s.checkpointLocked(); err != nil {
		set(below, below, false, pin)
		return err
	}
	return nil
}

// foldSealed gives a sealed layer a map of all that it and the copy hold: one checkpoint. Nothing in it is superseded, so requests that
// have found slots in the old map or in the views above it find the same ones.
func (s *Store) foldSealed(owner, anchor, work *Layer) error {
	m := newSectorMap(s.pager, s.sb.NextLayer, anchor.m.blocks)
	s.sb.NextLayer++
	if err := s.copyMap(m, work.m, nothingFreed); err != nil {
		m.drop()
		return err
	}
	var garbage []extent // copied before the anchor's device wrote the block
	if err := s.copyMap(m, anchor.m, func(slot uint64) { garbage = appendExtent(garbage, slot, 1) }); err != nil {
		m.drop()
		return err
	}
	if err := s.roomForCheckpoint(s.slots.cleanPages(garbage)); err != nil {
		m.drop()
		return err
	}
	s.slots.disownAll(garbage)
	before := anchor.m
	e := before.entry()
	s.stale = append(append(s.stale, e.slots()...), work.mapSlots()...)
	anchor.mu.Lock()
	anchor.m = m
	anchor.standOn(nil)
	anchor.mu.Unlock()
	for _, l := range s.inOrder() {
		if l.standsOn(anchor) {
			l.mu.Lock()
			l.entry.Pin = Pin{}
			l.mu.Unlock()
			s.dropView(l)
		}
	}
	owner.entry.Detaching = false
	delete(s.layers, work.entry.Name)
	if err := s.checkpointLocked(); err != nil {
		return err
	}
	s.discard(before)
	work.dropMaps()
	s.epochs.retire(garbage)
	s.wakeBackground()
	return nil
}

// copyMap brings everything that one map holds into another, which nobody looks into yet.
func (s *Store) copyMap(to, from *sectorMap, freed func(slot uint64)) error {
	return s.eachRegion(from, func(_ uint64, records []record) error {
		to.mu.Lock()
		defer to.mu.Unlock()
		for i := range records {
			to.apply(&records[i], freed)
		}
		return nil
	})
}
