package union

import (
	"syscall"

	"coppice/ublk"
)

// span computes which blocks the range of the request touches, and which of them in part.
func (o *op) span() {
	off, end := o.r.Off, o.r.Off+o.r.Len
	o.first = uint64(off) >> blockShift
	last := uint64(end-1) >> blockShift
	o.n = int(last - o.first + 1)
	o.nEdges = 0
	from, to := int(off&(blockSize-1)), int(end&(blockSize-1))
	switch {
	case o.first == last && (from != 0 || to != 0):
		if to == 0 {
			to = blockSize
		}
		o.addEdge(o.first, from, to)
	default:
		if from != 0 {
			o.addEdge(o.first, from, blockSize)
		}
		if to != 0 {
			o.addEdge(last, 0, to)
		}
	}
}

func (o *op) addEdge(block uint64, from, to int) {
	o.edges[o.nEdges] = edge{block: block, from: from, to: to}
	o.nEdges++
}

// read resolves each block and starts one I/O per neighbouring slots or root blocks.
func (o *op) read() {
	d := o.q.d
	o.span()
	o.pin()
	if want := o.lookup(o.first, o.n); want.m != nil {
		o.load(want, (*op).read)
		return
	}
	o.begin()
	for i := 0; i < o.n; {
		m := o.maps[i]
		k := i + 1
		switch {
		case m.isData():
			for k < o.n && o.maps[k].isData() && o.maps[k].slot() == m.slot()+uint64(k-i) {
				k++
			}
			o.readLeaf(i, k, m.slot())
		case m == mapZero:
			for k < o.n && o.maps[k] == mapZero {
				k++
			}
			p, _ := o.bytes(i, k)
			clear(p)
			o.from |= FromZeros
			d.stats.zero.Add(uint64(len(p)))
		default:
			for k < o.n && o.maps[k] == mapAbsent {
				k++
			}
			p, off := o.bytes(i, k)
			o.readRoot(p, off)
		}
		i = k
	}
	if len(o.pieces) == 0 {
		o.unpin() // it may wait for the root for long, and slots are nothing to it
	}
	o.issueAll(stepRead)
}

func (o *op) lookup(first uint64, n int) missing {
	var told *Origins
	if o.r.Marked() {
		told = &o.from
	}
	return o.q.d.layer.lookup(first, o.maps[:n], o.sums[:n], told)
}

// bytes returns the part of the request's buffer that blocks i to k of it cover, and where on the device it lies.
func (o *op) bytes(i, k int) ([]byte, int64) {
	start := max(int64(o.first+uint64(i))<<blockShift, o.r.Off)
	end := min(int64(o.first+uint64(k))<<blockShift, o.r.Off+o.r.Len)
	return o.r.Buf[start-o.r.Off : end-o.r.Off], start
}

// readLeaf reads blocks i to k from neighbouring slots: straight into the request's buffer, except
// for a block that the request covers in part, whose checksum needs all of it.
func (o *op) readLeaf(i, k int, slot uint64) {
	store := o.q.d.layer.store
	p, _ := o.bytes(i, k)
	o.q.d.stats.leaf.Add(uint64(len(p)))
	for e := range o.nEdges {
		at := int(o.edges[e].block - o.first)
		if at < i || at >= k {
			continue
		}
		o.pieces = append(o.pieces, piece{o.scratch[e], store.sb.slotOffset(slot + uint64(at-i)), o.q.leaf, false})
		if at == i {
			i++
			slot++
		} else {
			k--
		}
	}
	if i < k {
		p, _ := o.bytes(i, k)
		o.pieces = append(o.pieces, piece{p, store.sb.slotOffset(slot), o.q.leaf, false})
	}
}

// readRoot reads a range from the root; what lies beyond its end reads as zeros. What the root has in memory is there when it returns, and
// takes no place among those that wait for it.
func (o *op) readRoot(p []byte, off int64) {
	d := o.q.d
	have := max(0, min(int64(len(p)), d.baseSize-off))
	clear(p[have:])
	d.stats.zero.Add(uint64(int64(len(p)) - have))
	if have < int64(len(p)) {
		o.from |= FromZeros
	}
	if have == 0 {
		return
	}
	d.stats.root.Add(uint64(have))
	if o.q.hasRoot {
		o.from |= FromRoot
		o.pieces = append(o.pieces, piece{p[:have], off, o.q.root, false})
		return
	}
	if from, ok := d.base.TryRead(p[:have], off); ok {
		o.from |= from
		d.stats.rootMemory.Add(uint64(have))
		return
	}
	o.asks = append(o.asks, ask{p[:have], off})
}

// readDone checks what came from the leaf and ends the read.
func (o *op) readDone() {
	if o.errno == 0 && !o.checkLeaf() {
		o.errno = syscall.EIO
	}
	o.complete(o.errno)
}

func (o *op) checkLeaf() bool {
	d := o.q.d
	for e := range o.nEdges {
		g := &o.edges[e]
		at := int(g.block - o.first)
		if !o.maps[at].isData() {
			continue
		}
		if !o.intact(o.scratch[e], o.sums[at]) {
			return false
		}
		p, _ := o.bytes(at, at+1)
		copy(p, o.scratch[e][g.from:g.to])
	}
	if !d.verify {
		return true
	}
	for i := range o.n {
		if !o.maps[i].isData() || o.isEdge(i) {
			continue
		}
		p, _ := o.bytes(i, i+1)
		if !o.intact(p, o.sums[i]) {
			return false
		}
	}
	return true
}

func (o *op) intact(p []byte, sum uint32) bool {
	d := o.q.d
	if !d.verify || checksum(p) == sum {
		return true
	}
	d.stats.checksums.Add(1)
	return false
}

func (o *op) isEdge(i int) bool {
	for e := range o.nEdges {
		if o.edges[e].block == o.first+uint64(i) {
			return true
		}
	}
	return false
}

var _ ublk.Handler = (*Device)(nil)
