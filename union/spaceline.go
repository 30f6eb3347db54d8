package union

import (
	"syscall"
	"time"

	"coppice/ublk"
)

// allocate takes slots and starts writing to them. Where there are none for this request, it stands in line.
func (o *op) allocate() {
	if !o.granted && !o.admit() {
		return
	}
	o.granted = false
	s := o.q.d.layer.store
	o.begin()
	i := 0
	for _, e := range o.exts[:min(len(o.exts), o.n)] {
		for j := range uint64(e.Count) {
			p := o.source(i)
			o.sums[i] = checksum(p)
			o.addWrite(p, s.sb.slotOffset(e.Slot+j))
			i++
		}
	}
	o.issueAll(stepData)
}

// admit gives the request its slots and returns true, or puts it in line, or ends it.
func (o *op) admit() bool {
	l := o.q.d.layer
	s := l.store
	if s.space.short.Load() == 0 && l.inLine.Load() == 0 && l.holdQuota(o, o.n, classData) {
		var ok bool
		if o.exts, ok = s.slots.alloc(o.exts[:0], o.n, s.keepFor(classData, o.n)); ok {
			return true
		}
		o.settleAlone()
	}
	if want := o.classify(); want.m != nil {
		o.load(want, (*op).allocate)
		return false
	}
	return s.standInLine(o)
}

// classify finds out how many blocks the layer does not hold yet, and what the request may take.
func (o *op) classify() missing {
	l := o.q.d.layer
	l.mu.Lock()
	defer l.mu.Unlock()
	var m [1]mapping
	var sum [1]uint32
	o.fresh = 0
	for i := range o.n {
		want := l.m.lookupOwn(o.blockAt(i), m[:], sum[:])
		if want.m != nil {
			return want
		}
		if !m[0].isData() {
			o.fresh++
		}
	}
	switch {
	case o.r.Op != ublk.OpWrite && l.m.dataBlocks() > 0:
		// Where it discards what the layer holds, it gives back more than it takes. It takes two slots at most.
		o.class = classOverwrite
	case o.r.Op != ublk.OpWrite:
		o.class = classMeta
	case o.fresh == 0:
		o.class = classOverwrite
	case o.r.Meta || o.fua:
		o.class = classMeta
	default:
		o.class = classData
	}
	return missing{}
}

// standInLine grants the request what it asks for where nobody of its class was there before. Otherwise the request waits in line,
// or, where that is no use, ends with ENOSPC.
func (s *Store) standInLine(o *op) bool {
	sp := &s.space
	sp.mu.Lock()
	l := o.q.d.layer
	if sp.lacking[o.class] == 0 && l.lined[o.class] == 0 && s.grant(o) {
		sp.mu.Unlock()
		return true
	}
	o.unpin()
	l.lined[o.class]++
	l.inLine.Add(1)
	sp.parked.Add(1)
	if leaving := o.q.d.leaving.Load(); leaving || !s.keepInLine(o, time.Now()) {
		s.stepOut(o)
		sp.mu.Unlock()
		s.spaceFreed()
		if leaving {
			o.forsake()
		}
		o.complete(syscall.ENOSPC)
		return false
	}
	stalled := !o.waiting
	o.step = stepAlloc
	sp.line[o.class].push(o)
	sp.mu.Unlock()
	if stalled {
		s.wakeBackground() // for the commit that frees slots
	}
	s.spaceFreed()
	return false
}

// grant reserves the quota and takes the slots of a request. The caller holds space.mu, here and below.
func (s *Store) grant(o *op) bool {
	l := o.q.d.layer
	if !l.holdQuota(o, o.fresh, o.class) {
		return false
	}
	var ok bool
	if o.exts, ok = s.slots.alloc(o.exts[:0], o.n, s.keepFor(o.class, o.n)); !ok {
		o.settleAlone()
		return false
	}
	if o.class == classOverwrite {
		o.lent = int64(o.n)
		o.owes = true
		s.space.lent.Add(o.lent)
	}
	return true
}

// keepInLine tells whether a request that could not be granted may wait: for what is on its way, or for somebody to make space.
func (s *Store) keepInLine(o *op, now time.Time) bool {
	p, soon := s.lacks(o)
	s.setLack(o, p, o.waiting && !soon && o.lack == p)
	if soon {
		return true
	}
	p.level = len(levels) - 1 // for this request it is full, though some blocks may be left
	switch {
	case o.waiting:
	case p.spent || s.space.fullWait == 0 || o.q.waiting >= maxWaiting(len(o.q.ops)):
		p.refused++
		return false
	default:
		if p.waiting == 0 {
			p.began = now
		}
		p.waits++
		s.setLack(o, p, true)
	}
	if now.Sub(p.began) < s.space.fullWait {
		return true
	}
	p.spent = true
	s.space.spent.Store(true)
	p.refused++
	return false
}

// setLack notes in which pool a request in line finds too little (nil: it is not in line), and whether it waits for somebody to make space.
func (s *Store) setLack(o *op, p *pool, waits bool) {
	sp := &s.space
	if o.lack == &sp.store && p != o.lack {
		sp.lacking[o.class]--
		sp.short.Add(-1)
	}
	if p == &sp.store && p != o.lack {
		sp.lacking[o.class]++
		sp.short.Add(1)
	}
	changed := o.waiting != waits || waits && o.lack != p
	if changed && o.waiting {
		o.lack.waiting--
		o.q.waiting--
	}
	if changed && waits {
		p.waiting++
		o.q.waiting++
	}
	o.lack, o.waiting = p, waits
	if changed {
		s.lookAround()
	}
}

// stepOut takes a request out of the counts of those in line.
func (s *Store) stepOut(o *op) {
	s.setLack(o, nil, false)
	l := o.q.d.layer
	l.lined[o.class]--
	l.inLine.Add(-1)
	s.space.parked.Add(-1)
}

// lacks finds out in which pool there is too little for a request, and whether enough is on its way.
func (s *Store) lacks(o *op) (p *pool, soon bool) {
	l := o.q.d.layer
	switch l.quotaFor(o.fresh, o.class) {
	case quotaUsed:
		return &l.pool, false
	case quotaReserved:
		return &l.pool, true
	}
	if s.space.busy.Load() > 0 {
		return &s.space.store, true
	}
	// First what is on its way: what arrives in between is counted twice and not left out.
	coming := s.coming()
	if s.slots.freeSlots()+coming >= uint64(o.n)+s.keepFor(o.class, o.n) {
		return &s.space.store, true
	}
	// The next checkpoint has to write what others changed, and once it has, less need be kept for it.
	if s.slots.freeSlots()+coming >= uint64(o.n)+s.keepWith(o.class, s.cleanNeed(o.n)) {
		s.space.recount.Store(true)
		s.wakeBackground()
		return &s.space.store, true
	}
	return &s.space.store, false
}

const (
	idleRound  = time.Second
	stallRound = 2 * time.Millisecond // slots are on their way, and nobody tells when readers let go of them
)

// serveLine gives those in line what there is, in their order, and ends those who waited long enough. It returns when to look
// again at the latest.
func (s *Store) serveLine() time.Duration {
	sp := &s.space
	if sp.parked.Load() == 0 {
		return idleRound
	}
	s.epochs.collect()
	s.log.mu.Lock()
	failed, limbo := s.log.failed, len(s.log.limbo) > 0
	s.log.mu.Unlock()
	now := time.Now()
	next := idleRound
	var ready opList
	sp.mu.Lock()
	for c := range sp.line {
		sp.pass++
		var rest opList
		full := false
		for o := sp.line[c].pop(); o != nil; o = sp.line[c].pop() {
			l := o.q.d.layer
			switch {
			case failed:
				o.verdict = syscall.EIO
			case !full && l.passed != sp.pass && s.grant(o):
				o.granted, o.owes = true, true
			default:
				stays := s.keepInLine(o, now)
				if o.lack == &sp.store {
					full = true
				} else {
					l.passed = sp.pass
				}
				if stays {
					rest.push(o)
					next = min(next, o.round(now, sp.fullWait))
					continue
				}
				o.verdict = syscall.ENOSPC
			}
			s.stepOut(o)
			ready.push(o)
		}
		sp.line[c] = rest
	}
	sp.mu.Unlock()
	resumeAll(ready)
	if next == stallRound && (limbo || !sp.watched.Load()) {
		s.wakeBackground() // for a commit, or to look again where nobody else does
	}
	return next
}

// round is how soon a request in line is to be looked at again.
func (o *op) round(now time.Time, fullWait time.Duration) time.Duration {
	if !o.waiting {
		return stallRound
	}
	return max(stallRound+1, fullWait-now.Sub(o.lack.began))
}

// settle gives back what was reserved for a request that is recorded now. The caller holds Layer.mu.
func (o *op) settle(l *Layer) {
	if !o.owes {
		return
	}
	o.owes = false
	l.reserved -= o.held
	o.held = 0
	l.store.space.lent.Add(-o.lent)
	o.lent = 0
}

func (o *op) settleAlone() {
	if !o.owes {
		return
	}
	l := o.q.d.layer
	l.mu.Lock()
	o.settle(l)
	l.mu.Unlock()
}

// giveBack frees slots that the request will not record.
func (o *op) giveBack() {
	s := o.q.d.layer.store
	o.granted = false
	o.settleAlone()
	s.releaseAll(o.exts)
	o.exts = o.exts[:0]
	if s.space.parked.Load() > 0 {
		s.spaceFreed()
	}
}

// leave settles what a request that ends has not.
func (o *op) leave() {
	if o.granted {
		o.giveBack()
		return
	}
	o.settleAlone()
}
