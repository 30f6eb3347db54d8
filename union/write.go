package union

import (
	"fmt"
	"syscall"

	"coppice/ublk"
)

// write begins a write: at once where it covers whole blocks, else after the rest of its
// first and last block has been read.
func (o *op) write() {
	o.span()
	o.zeroes = 0
	if o.nEdges > 0 {
		o.readEdges()
		return
	}
	o.allocate()
}

// zeroRange makes the range read as zeros, whatever the root holds there: whole blocks by one
// record, a part of a block like a write.
func (o *op) zeroRange() {
	if o.r.Len == 0 {
		o.complete(0)
		return
	}
	o.span()
	o.zero, o.zeroes = o.first, uint64(o.n)
	for e := range o.nEdges {
		if o.edges[e].block == o.zero {
			o.zero++
		}
		o.zeroes--
	}
	o.n = o.nEdges
	if o.nEdges > 0 {
		o.readEdges()
		return
	}
	o.allocate()
}

// blockAt is the i-th block that the request writes to a slot.
func (o *op) blockAt(i int) uint64 {
	if o.r.Op == ublk.OpWrite {
		return o.first + uint64(i)
	}
	return o.edges[i].block
}

// readEdges copies up: it reads the blocks that the request covers in part, from wherever they are now.
func (o *op) readEdges() {
	d := o.q.d
	o.pin()
	for i := range o.nEdges {
		e := &o.edges[i]
		if want := o.lookup(e.block, 1); want.m != nil {
			o.load(want, (*op).readEdges)
			return
		}
		e.was, e.sum = o.maps[0], o.sums[0]
	}
	o.begin()
	for i := range o.nEdges {
		e := &o.edges[i]
		d.stats.copied.Add(uint64(blockSize - (e.to - e.from)))
		switch {
		case e.was.isData():
			o.pieces = append(o.pieces, piece{o.scratch[i], d.layer.store.sb.slotOffset(e.was.slot()), o.q.leaf, false})
		case e.was == mapZero:
			o.from |= FromZeros
			clear(o.scratch[i])
		default:
			o.readRoot(o.scratch[i], int64(e.block)<<blockShift)
		}
	}
	o.issueAll(stepEdges)
}

// edgesDone merges the request's bytes into the blocks that were read.
func (o *op) edgesDone() {
	for i := range o.nEdges {
		e := &o.edges[i]
		if o.errno == 0 && e.was.isData() && !o.intact(o.scratch[i], e.sum) {
			o.errno = syscall.EIO
		}
		part := o.scratch[i][e.from:e.to]
		if o.r.Op == ublk.OpWrite {
			copy(part, o.r.Buf[int64(e.block)<<blockShift+int64(e.from)-o.r.Off:])
		} else {
			clear(part)
		}
	}
	if o.errno != 0 {
		o.complete(o.errno)
		return
	}
	o.allocate()
}

// source is the content that the i-th written block is to have.
func (o *op) source(i int) []byte {
	block := o.blockAt(i)
	for e := range o.nEdges {
		if o.edges[e].block == block {
			return o.scratch[e]
		}
	}
	at := int64(block)<<blockShift - o.r.Off
	return o.r.Buf[at : at+blockSize]
}

// addWrite joins a block to the piece before it where it follows that one in memory and in the store.
func (o *op) addWrite(p []byte, off int64) {
	if k := len(o.pieces); k > 0 {
		last := &o.pieces[k-1]
		if last.off+int64(len(last.p)) == off && follows(last.p, p) {
			last.p = last.p[:len(last.p)+len(p)]
			return
		}
	}
	o.pieces = append(o.pieces, piece{p: p, off: off, file: o.q.leaf, write: true})
}

// follows tells whether q begins where p ends, in one buffer that p may be extended in.
func follows(p, q []byte) bool {
	if cap(p) < len(p)+len(q) {
		return false
	}
	longer := p[: len(p)+1 : len(p)+1]
	return &longer[len(p)] == &q[0]
}

// dataDone goes on when the data is in its slots.
func (o *op) dataDone() {
	if o.errno != 0 {
		o.q.d.layer.store.fail(fmt.Errorf("write of data: %w", o.errno))
		o.complete(o.errno)
		return
	}
	o.record()
}

// record switches the map to the new slots and appends the records, in one critical section, so that map and log agree
// on the order of two writes to one block.
func (o *op) record() {
	layer := o.q.d.layer
	s := layer.store
	records := o.n
	if o.zeroes > 0 {
		records++
	}
	layer.mu.Lock()
	changed, want := o.edgesChanged()
	if want.m != nil {
		layer.mu.Unlock()
		o.load(want, (*op).record)
		return
	}
	if changed {
		layer.mu.Unlock()
		o.giveBack() // written and never recorded
		o.readEdges()
		return
	}
	l := s.log
	l.mu.Lock()
	if l.failed {
		l.mu.Unlock()
		layer.mu.Unlock()
		o.complete(syscall.EIO)
		return
	}
	if !l.room(records) {
		o.step = stepRecord
		l.stalled.push(o)
		l.mu.Unlock()
		layer.mu.Unlock()
		s.wakeBackground()
		return
	}
	if want = o.apply(layer, l); want.m == nil {
		o.settle(layer)
	}
	busy := l.nearlyFull() || l.next-l.durable > flushAfterBlocks || s.pager.crowded()
	l.mu.Unlock()
	layer.mu.Unlock()
	if want.m != nil {
		o.load(want, (*op).record)
		return
	}
	if busy {
		s.wakeBackground()
	}
	if s.space.parked.Load() > 0 {
		s.spaceFreed() // of the layer's quota
	}
	if o.zeroes > 0 {
		o.record()
		return
	}
	if o.fua {
		o.flush()
		return
	}
	o.complete(0)
}

// edgesChanged tells whether a block that this request completed from its old content was
// written by another since: then that content must be merged again. No slot is used
// again while this request has its epoch entered, so an equal mapping means equal content.
func (o *op) edgesChanged() (bool, missing) {
	var m [1]mapping
	var sum [1]uint32
	for i := range o.nEdges {
		e := &o.edges[i]
		if want := o.q.d.layer.lookupLocked(e.block, m[:], sum[:]); want.m != nil {
			return false, want
		}
		if m[0] != e.was && !seeded(bugEdgesForgotten) {
			return true, missing{}
		}
	}
	return false, missing{}
}

// apply brings the request's blocks into the map and the log; of a range to zero, as much as is loaded. Where
// it has to wait for entries, it changes nothing.
func (o *op) apply(layer *Layer, l *modLog) missing {
	m := layer.m
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range o.n {
		if region, found := m.paged(o.blockAt(i), 1); found {
			return missing{m, region}
		}
	}
	zeroes := o.zeroes
	if zeroes > 0 {
		if region, found := m.paged(o.zero, zeroes); found {
			if zeroes = region<<regionShift - min(o.zero, region<<regionShift); zeroes == 0 {
				return missing{m, region}
			}
		}
	}
	slots := layer.store.slots
	slots.mu.Lock()
	defer slots.mu.Unlock()
	free := func(slot uint64) {
		if seeded(bugReleaseAtRecord) {
			slots.disown(slot)
			slots.mu.Unlock()
			slots.release(slot, 1)
			slots.mu.Lock()
			return
		}
		l.supersede(slot)
		slots.disown(slot)
	}
	i := 0
	for _, e := range o.exts[:min(len(o.exts), o.n)] {
		for j := range uint64(e.Count) {
			r := record{kindData, layer.entry.Number, o.blockAt(i), e.Slot + j, o.sums[i]}
			l.append(&r)
			slots.own(r.Slot)
			if old := m.set(r.Block, dataMapping(r.Slot), r.CRC); old.isData() {
				free(old.slot())
			}
			i++
		}
	}
	if zeroes > 0 {
		r := record{Kind: kindZero, Layer: layer.entry.Number, Block: o.zero, Slot: zeroes}
		l.append(&r)
		if seeded(bugDiscardFreesEarly) {
			free = func(slot uint64) {
				slots.disown(slot)
				slots.mu.Unlock()
				slots.release(slot, 1)
				slots.mu.Lock()
			}
		}
		m.zero(r.Block, r.Slot, free)
		o.zero += zeroes
		o.zeroes -= zeroes
	}
	// What is left to zero goes on as a request without blocks of its own.
	if o.zeroes > 0 {
		o.n, o.nEdges, o.exts = 0, 0, o.exts[:0]
	}
	return missing{}
}

// flush makes everything recorded so far durable: with one commit, which is this request's own or,
// where one is under way, the next.
func (o *op) flush() {
	l := o.q.d.layer.store.log
	l.mu.Lock()
	o.target = l.target()
	if seeded(bugFlushSkipsOpen) {
		o.target = l.next - 1
	}
	switch {
	case l.failed:
		l.mu.Unlock()
		o.complete(syscall.EIO)
	case l.covers(o):
		l.mu.Unlock()
		o.complete(0)
	case l.committing:
		o.step = stepWait
		l.waiters.push(o)
		l.mu.Unlock()
	default:
		l.committing = true
		l.mu.Unlock()
		o.lead()
	}
}

// lead writes the log to both copies.
func (o *op) lead() {
	s := o.q.d.layer.store
	l := s.log
	l.mu.Lock()
	if l.failed {
		l.committing = false
		l.ended.Broadcast()
		l.mu.Unlock()
		o.complete(syscall.EIO)
		return
	}
	from, to := l.begin(o.fua)
	l.mu.Unlock()
	o.to = to
	o.begin()
	segs, n := l.ringPieces(from, to)
	for _, seg := range segs[:n] {
		for _, first := range [...]uint64{s.sb.LogA, s.sb.LogB} {
			if seeded(bugOneLogCopy) && first == s.sb.LogB {
				continue
			}
			o.pieces = append(o.pieces, piece{p: seg.p, off: s.logOffset(first, seg.seq), file: o.q.leaf, write: true})
		}
	}
	if seeded(bugFlushBesideLog) && !o.fua {
		o.left = 1
		o.r.Fsync(o.q.leaf, cookieFlush)
		o.issueAll(stepFlush)
		return
	}
	o.issueAll(stepLog)
}

func (o *op) logDone() {
	if o.errno != 0 || o.fua {
		o.endCommit(o.fua)
		o.complete(o.errno)
		return
	}
	if seeded(bugNoDeviceFlush) {
		o.flushDone()
		return
	}
	if seeded(bugReleaseAtLogWrite) {
		s := o.q.d.layer.store
		s.epochs.retire(s.log.taken)
		s.log.taken = s.log.taken[:0]
	}
	o.step = stepFlush
	if !o.mayWrite() {
		o.flushDone()
		return
	}
	o.left = 1
	o.r.Fsync(o.q.leaf, cookieFlush)
}

// endCommit ends the commit that the request led, which fails where the store has failed meanwhile.
func (o *op) endCommit(fua bool) {
	var err error
	if o.errno != 0 {
		err = fmt.Errorf("commit of a request: %w", o.errno)
	}
	if !o.q.d.layer.store.endCommit(o.to, fua, err) && err == nil {
		o.errno = syscall.EIO
	}
}

func (o *op) flushDone() {
	o.endCommit(false)
	if seeded(bugAckFailedFlush) {
		o.errno = 0
	}
	o.complete(o.errno)
}

// committed goes on after a commit that another request led, or leads the next.
func (o *op) committed() {
	if o.leads {
		o.leads = false
		o.lead()
		return
	}
	l := o.q.d.layer.store.log
	l.mu.Lock()
	failed := !l.covers(o)
	l.mu.Unlock()
	if failed {
		o.complete(syscall.EIO)
		return
	}
	o.complete(0)
}
