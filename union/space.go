package union

import (
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// space decides who may take which slots of a store that gets full.
//
// Of the free slots, some are kept for those that must go on:
//
//	need       what a checkpoint of what changed takes before it gives anything back: nobody else touches it
//	in flight  by how much that can grow by what requests have been admitted and not recorded
//	first      one request of the greatest size, for overwrites: they give back as many slots as they take
//	second     some 1 % of the store, for metadata of file systems, and for zeroes and freezes: all of these together, and what the
//	           maps take already, are 2 % and a little, where maps are not unusually long
//	the rest   anybody's
//
// A request that wants more than it may have stands in line: first come, first served, overwrites before metadata before
// other writes, because each of those may take what the next may not. Where slots are on their way (superseded ones that
// the next commit frees, those that overwrites under way give back, a checkpoint's) it waits for those. Otherwise,
// and where its layer's quota is used up, it waits for somebody to make space: to grow the store, to raise the quota, to
// remove something. That is what is called waiting.
//
// Waiting is bounded twice. It ends in ENOSPC some time ([StoreOptions.FullWait]) after the first request of an episode began
// it, and from then on until there is space again nobody waits any more: a device is never held up for longer in
// all, however many requests come. And only some of a queue's tags may wait at a time (maxWaiting), so that
// flushes, overwrites, discards and reads still get one; who comes then gets ENOSPC at once. Buffered writes do not
// come so far: the kernel's writeback throttling (block/blk-wbt.c, Linux 6.12) gives them at most three quarters of a
// queue. Requests that carry the flags of metadata or FUA, which is how file systems write their journals, take from the
// second reserve, and may go beyond a quota a little, so that a file system does not come to a stop because its journal is first
// written just now.
//
// No request in line has its epoch entered: the slots that it waits for could not become free.
//
// Lock order: Store.mu, mu, Layer.mu.
type space struct {
	fullWait time.Duration
	notify   func(SpaceEvent)

	meta     atomic.Uint64 // slots that maps, bitmap and catalog lay in after the last checkpoint
	busy     atomic.Int32  // checkpoints under way: they give slots back
	lent     atomic.Int64  // slots that overwrites under way hold and will have given back
	parked   atomic.Int32  // requests in line
	short    atomic.Int32  // those of them for which the store has too little
	recount  atomic.Bool   // a checkpoint is wanted, to measure again
	spent    atomic.Bool   // some pool is
	watched  atomic.Bool   // watchSpace runs
	wake     chan struct{}
	inFlight atomic.Uint64 // slots for what requests under way add to checkpointNeed
	ahead    atomic.Uint64 // those, and for an overwrite
	aside    atomic.Uint64 // all slots, those of the maps included, that first writes of blocks never get

	mu      sync.Mutex // guards what follows
	slots   uint64     // of the store
	tags    uint64     // of the attached queues
	request uint64     // most blocks of one request so far
	line    [classes]opList
	lacking [classes]int // requests in line for which the store has too little
	pass    uint64       // of serveLine
	store   pool
	quotas  map[*Layer]struct{} // layers with a quota
	events  []SpaceEvent        // to be told
}

// class is what a request may take of the reserves.
type class uint8

const (
	classOverwrite class = iota // takes no more than it gives back
	classMeta                   // metadata, FUA, and zeroes of what the layer does not hold
	classData
	classes
)

// pool is what can be full: the store, or a layer with a quota. Guarded by space.mu.
type pool struct {
	level   int // index of levels that was reached
	waiting int // requests that wait for somebody to make space
	began   time.Time
	spent   bool   // waiting has lasted its time: ENOSPC at once until there is more space
	left    uint64 // blocks, when last looked at; where spent, the least since then
	told    SpaceState
	events  uint64
	waits   uint64
	refused uint64
}

// SpaceState tells how full a store or a layer with a quota is.
type SpaceState string

// The states. Each begins at its share of the space that first writes of blocks can take, and ends two percent
// below it.
const (
	SpaceOK      SpaceState = "ok"
	Space80      SpaceState = "80"
	Space90      SpaceState = "90"
	Space95      SpaceState = "95"
	SpaceFull    SpaceState = "full"
	SpaceWaiting SpaceState = "waiting" // requests wait for space
)

var levels = [...]struct {
	from  float64 // percent
	state SpaceState
}{{0, SpaceOK}, {80, Space80}, {90, Space90}, {95, Space95}, {100, SpaceFull}}

const (
	levelSlack = 2 // percent below a level at which it ends
	// freezeLimit is from when on, in percent, a freeze is refused unless forced: all that is overwritten after it
	// takes new space.
	freezeLimit = 95
)

// SpaceInfo describes how full a store or a layer with a quota is.
type SpaceInfo struct {
	State       SpaceState `json:"state"`
	UsedPercent float64    `json:"used_percent"` // of what blocks can take that are written for the first time
	// AvailableBytes is what such blocks can still take. Reserves are not counted, slots that the next flush frees are.
	AvailableBytes int64  `json:"available_bytes"`
	Waiting        int    `json:"waiting"` // requests that wait for space
	Waits          uint64 `json:"waits"`   // requests that did since the store was opened
	Refused        uint64 `json:"refused"` // requests that got ENOSPC since then
	Events         uint64 `json:"events"`  // changes of State since then
}

// SpaceEvent tells that a store or layer has another [SpaceState].
type SpaceEvent struct {
	Layer string // empty: the store
	Was   SpaceState
	SpaceInfo
}

func (sp *space) setUp(o StoreOptions) {
	sp.fullWait, sp.notify = o.FullWait, o.Notify
	sp.wake = make(chan struct{}, 1)
	sp.quotas = make(map[*Layer]struct{})
	sp.store.told = SpaceOK
}

// findSpace takes stock of a store that was just read.
func (s *Store) findSpace() {
	s.measure(s.describe())
	s.space.resize(s.sb.Slots)
	for _, l := range s.layers {
		l.setQuota()
	}
}

// requestBlocks is the greatest request of a device with the usual limit, 512 KiB, at an odd place.
const requestBlocks = 512<<10>>blockShift + 1

// attach counts what a queue can have in flight in, and detach out.
func (sp *space) attach(depth, maxBlocks int) {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	sp.tags += uint64(depth)
	sp.request = max(sp.request, uint64(maxBlocks))
	sp.reckon()
}

func (sp *space) detach(depth int) {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	sp.tags -= uint64(depth)
	sp.reckon()
}

// resize notes how many slots the store has.
func (sp *space) resize(slots uint64) {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	sp.slots = slots
	sp.reckon()
}

// tagNeed is by how much a request under way can raise what a checkpoint needs: two regions of entries, two pages of their directory,
// and two of the bitmap.
const tagNeed = 2*(maxRegionBytes/mapPayload+1) + 4

// reckon computes the reserves. The caller holds mu.
func (sp *space) reckon() {
	inFlight := min(sp.tags*tagNeed, sp.slots/100)
	first := min(max(sp.request, requestBlocks), sp.slots/16)
	sp.inFlight.Store(inFlight)
	sp.ahead.Store(inFlight + first)
	sp.aside.Store(inFlight + first + sp.slots/50 + min(80, sp.slots/6))
}

// keepFor is how many slots a request for n slots leaves free.
func (s *Store) keepFor(c class, n int) uint64 { return s.keepWith(c, s.checkpointNeed(n)) }

// keepWith is keepFor where a checkpoint needs so much.
func (s *Store) keepWith(c class, need uint64) uint64 {
	switch c {
	case classOverwrite:
		return need + s.space.inFlight.Load()
	case classMeta:
		return need + s.space.ahead.Load()
	}
	// Not what maps take now, but the same at all times: or one block less could be written after a checkpoint than before.
	keep := need + s.space.ahead.Load()
	if aside, meta := s.space.aside.Load(), s.space.meta.Load(); aside > meta {
		keep = max(keep, aside-meta)
	}
	return keep
}

// maxWaiting is how many requests of a queue may wait for space at once: all but an eighth, and at least but two, because one
// tag of each queue is idle anyway. A queue of up to three has one that may.
func maxWaiting(depth int) int { return max(1, depth-max(2, depth/8)) }

// layerRoom is what a layer more takes of the reserve.
const layerRoom = 6

// roomForLayer fails where one more layer could leave too little for a checkpoint.
func (s *Store) roomForLayer() error {
	s.log.mu.Lock()
	failed := s.log.failed
	s.log.mu.Unlock()
	if failed {
		return errFailed
	}
	if s.slots.freeSlots() < s.keepFor(classOverwrite, 0)+layerRoom {
		return fmt.Errorf("not even the reserve has room for another layer: %w", ErrNoSpace)
	}
	return nil
}

// measure counts the slots that catalog, bitmap and the maps of the layers lie in. The caller holds Store.mu, or has the store to itself.
func (s *Store) measure(layers []layerEntry) {
	n := countSlots(s.catalogSlots) + int64(len(s.slots.bitmapEntries()))
	for i := range layers {
		n += countSlots(layers[i].mapSlots())
	}
	s.space.meta.Store(uint64(n))
}

// checkpointBegins and checkpointEnds enclose a checkpoint. The caller holds Store.mu.
func (s *Store) checkpointBegins() {
	s.space.busy.Add(1)
	s.space.recount.Store(false)
}

func (s *Store) checkpointEnds() {
	s.space.busy.Add(-1)
	s.spaceFreed()
}

// coming is how many slots are on their way back.
func (s *Store) coming() uint64 {
	return s.returning() + uint64(max(0, s.space.lent.Load()))
}

// returning is how many slots the next commits and the end of readers make free.
func (s *Store) returning() uint64 {
	n := s.log.pending.Load()
	if s.epochs != nil { // nil while it is formatted
		n += s.epochs.pending.Load()
	}
	return uint64(max(0, n))
}

// available tells how many blocks can be written for the first time, and how many the store has for such in all.
func (s *Store) available() (available, capacity uint64) {
	keep := s.keepFor(classData, 0)
	free := s.slots.freeSlots() + s.returning()
	if free > keep {
		available = free - keep
	}
	if n := s.slots.size(); n > keep+s.space.meta.Load() {
		capacity = n - keep - s.space.meta.Load()
	}
	return min(available, capacity), capacity
}

func usedPercent(available, capacity uint64) float64 {
	if capacity == 0 {
		return 100
	}
	return 100 * float64(capacity-available) / float64(capacity)
}

// levelOf is the level at a share of used space, coming from another.
func levelOf(percent float64, was int) int {
	level := len(levels) - 1
	for percent < levels[level].from {
		level--
	}
	if level < was && percent > levels[was].from-levelSlack {
		return was
	}
	return level
}

func (p *pool) state() SpaceState {
	if p.waiting > 0 {
		return SpaceWaiting
	}
	return levels[p.level].state
}

func (p *pool) info(available, capacity uint64) SpaceInfo {
	return SpaceInfo{
		State: p.state(), UsedPercent: math.Round(10*usedPercent(available, capacity)) / 10, AvailableBytes: int64(available) << blockShift,
		Waiting: p.waiting, Waits: p.waits, Refused: p.refused, Events: p.events,
	}
}

// look brings a pool's level up to date and notes an event where its state is another than the last that was told.
func (sp *space) look(p *pool, layer string, available, capacity uint64) {
	if capacity > 0 || layer == "" {
		p.level = levelOf(usedPercent(available, capacity), p.level)
	}
	if p.spent && available > p.left {
		p.spent = false
	}
	if !p.spent || available < p.left {
		p.left = available
	}
	was := p.told
	if p.told = p.state(); p.told == was {
		return
	}
	p.events++
	if sp.notify != nil {
		sp.events = append(sp.events, SpaceEvent{Layer: layer, Was: was, SpaceInfo: p.info(available, capacity)})
	}
}

// lookAround brings all levels up to date. The caller holds mu.
func (s *Store) lookAround() {
	sp := &s.space
	available, capacity := s.available()
	sp.look(&sp.store, "", available, capacity)
	spent := sp.store.spent
	for l := range sp.quotas {
		available, capacity := l.quotaLeft()
		sp.look(&l.pool, l.name, available, capacity)
		spent = spent || l.pool.spent
	}
	sp.spent.Store(spent)
}

// spaceInfo describes the store's space.
func (s *Store) spaceInfo() SpaceInfo {
	s.space.mu.Lock()
	defer s.space.mu.Unlock()
	s.lookAround()
	return s.space.store.info(s.available())
}

// FreezeAllowed fails with [ErrNearlyFull] above 95 %: every block that is overwritten after a freeze takes new space,
// and in a full store there is none.
func (s *Store) FreezeAllowed() error {
	available, capacity := s.available()
	if used := usedPercent(available, capacity); used >= freezeLimit {
		return fmt.Errorf("store %s is %.1f%% full: %w", s.path, used, ErrNearlyFull)
	}
	return nil
}

// watchSpace serves the line, ends what has waited for too long, and tells events. It does no I/O, so that
// nothing slow keeps it from that.
func (s *Store) watchSpace() {
	s.space.watched.Store(true)
	defer s.space.watched.Store(false)
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-s.space.wake:
		case <-t.C:
		}
		t.Reset(s.tendSpace())
	}
}

// tendSpace is one round of watchSpace. It returns when the next is due.
func (s *Store) tendSpace() time.Duration {
	next := s.serveLine()
	sp := &s.space
	sp.mu.Lock()
	s.lookAround()
	events := sp.events
	sp.events = nil
	sp.mu.Unlock()
	for _, e := range events {
		sp.notify(e)
	}
	return next
}

// spaceFreed has the line looked at again. The caller holds no lock but Store.mu.
func (s *Store) spaceFreed() {
	if s.space.spent.Load() {
		s.space.mu.Lock()
		s.lookAround()
		s.space.mu.Unlock()
	}
	if !s.space.watched.Load() {
		if s.space.parked.Load() > 0 {
			s.wakeBackground()
		}
		return
	}
	select {
	case s.space.wake <- struct{}{}:
	default:
	}
}
