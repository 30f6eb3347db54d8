package union

import (
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/google/uuid"
)

// modLog is the modification log of a store: the records that a recovery applies on top
// of the runs. Records are appended to blocks in the pending ring, which is memory; a commit writes those
// blocks to both copies on the store and flushes the device once. With the ring on tmpfs, a
// record survives the process from the moment it is appended.
//
// Between two commits it holds at most the ring's blocks; the log as a whole holds at
// most n blocks since its start, which a checkpoint moves on. Who finds no room waits in stalled.
type modLog struct {
	id   uuid.UUID
	n    uint64 // blocks of one copy on the store
	ring []byte // block seq lies at seq mod size
	size uint64 // blocks of ring, which divides n

	mu         sync.Mutex
	start      uint64 // a recovery begins here
	next       uint64 // block that takes records
	count      int    // records in it
	appended   uint64 // records so far
	settled    uint64 // of them, those before start
	written    uint64 // blocks up to here are in both copies, which nothing can take back
	durable    uint64 // blocks up to here are written, and so is, by a flush, the data of their records
	committing bool
	begun      uint64 // commits that flush
	flushed    uint64 // of them, the last that ended well
	failed     bool
	limbo      []extent  // slots superseded by records that no commit has taken
	taken      []extent  // slots superseded by records of the commit under way
	waiters    opList    // want durable ≥ op.target
	stalled    opList    // want room for records
	ended      sync.Cond // a commit has ended; for goroutines

	// Changed under mu and read by anybody.
	pending atomic.Int64 // slots in limbo or taken
}

func newModLog(id uuid.UUID, n uint64, ring []byte, start uint64) *modLog {
	l := &modLog{id: id, n: n, ring: ring, size: uint64(len(ring)) >> blockShift, start: start, next: start, written: start - 1, durable: start - 1}
	l.ended.L = &l.mu
	l.open()
	return l
}

func (l *modLog) block(seq uint64) []byte {
	at := seq % l.size << blockShift
	return l.ring[at : at+blockSize : at+blockSize]
}

func (l *modLog) open() {
	h := logHeader{UUID: l.id, Seq: l.next, Durable: l.durable}
	p := l.block(l.next)
	// First no records, then the new number: or a successor of this process would take the old block's
	// records for the new one's.
	l.setCount(p, 0)
	h.encode(p)
	clear(p[logHeaderSize:])
}

func (l *modLog) seal() {
	p := l.block(l.next)
	le.PutUint64(p[32:], l.durable)
	if seeded(bugClaimsDurable) {
		le.PutUint64(p[32:], l.next-1)
	}
	sealLogBlock(p)
	l.next++
}

// room tells whether k more records fit. The caller holds mu, here and below.
func (l *modLog) room(k int) bool {
	last := l.next + uint64(l.count+k)/recordsPerLog + 1
	return last-l.written <= l.size && (last-l.start < l.n || seeded(bugLogOverrun))
}

// maxReplay is how many records a recovery should have to repeat. Each takes some 0.7 us, most of it for memory that is far away.
const maxReplay = 384 << 10

// nearlyFull tells that a checkpoint should move the start on.
func (l *modLog) nearlyFull() bool {
	return l.next-l.start > l.n/4*3 || l.appended-l.settled > maxReplay
}

// append adds one record; room must have said that it fits. The count in the header is
// stored last, so that a successor of this process never takes a record that is half written.
func (l *modLog) append(r *record) {
	if l.count == recordsPerLog {
		l.seal()
		l.open()
	}
	p := l.block(l.next)
	r.encode(p[logHeaderSize+l.count*recordSize:])
	l.setCount(p, l.count+1)
	l.appended++
}

// together makes the next records, at most recordsPerLog, lie in one block.
func (l *modLog) together(records int) {
	if l.count+records > recordsPerLog && !seeded(bugSealSplit) {
		l.seal()
		l.open()
	}
}

// appendText adds up to 24 bytes that belong to the record before.
func (l *modLog) appendText(layer uint32, text []byte) {
	if seeded(bugSealTextMissing) {
		return
	}
	if seeded(bugSealSplit) && l.count == recordsPerLog {
		l.seal()
		l.open()
	}
	p := l.block(l.next)
	encodeText(p[logHeaderSize+l.count*recordSize:], layer, text)
	l.setCount(p, l.count+1)
}

func (l *modLog) setCount(p []byte, n int) {
	l.count = n
	if seeded(bugCountLags) && n > 0 {
		n--
	}
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&p[40])), uint32(n))
}

// supersede notes slots that become free once a commit has covered the records so far.
func (l *modLog) supersede(slot uint64) {
	l.limbo = appendExtent(l.limbo, slot, 1)
	l.pending.Add(1)
}

// covers tells whether the request's records are as durable as it asked for.
func (l *modLog) covers(o *op) bool {
	if o.fua {
		return o.target <= l.written
	}
	return o.target <= l.durable
}

// target is the block that must be durable for all records so far to be.
func (l *modLog) target() uint64 {
	if l.count > 0 {
		return l.next
	}
	return l.next - 1
}

// cut seals the block that takes records, if it has any, and begins the next.
func (l *modLog) cut() {
	if l.count > 0 {
		l.seal()
		l.open()
	}
}

// hasFailed is for callers that do not hold mu.
func (l *modLog) hasFailed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed
}

// begin starts a commit of all records so far. It returns the blocks to write, from
// through to (none where to is less), which stay untouched until end. A commit for FUA writes the log alone, durably, and
// frees nothing: the data of other requests' records may still be lost.
func (l *modLog) begin(fua bool) (from, to uint64) {
	l.committing = true
	l.cut()
	if !fua || seeded(bugFUAFrees) {
		l.taken, l.limbo = l.limbo, l.taken[:0]
	}
	if !fua {
		l.begun++
	}
	return l.written + 1, l.next - 1
}

// end finishes a commit and returns the operations that can go on: those whose target is durable
// now, all that stalled, and one that leads the next commit where some are left
// waiting. On failure everybody goes on, to fail. The slots in taken may be retired after it.
func (l *modLog) end(to uint64, fua, failed bool) (ready opList) {
	l.committing = false
	l.ended.Broadcast()
	// Where another's write or flush failed meanwhile, nobody knows what this one's flush has covered.
	if failed || l.failed {
		l.fail()
		l.taken = l.taken[:0]
		return l.drop()
	}
	l.written = to
	if !fua {
		l.flushed = l.begun
	}
	if !fua || seeded(bugFUADurable) {
		l.durable = to
	}
	ready = l.satisfied()
	ready.take(&l.stalled)
	if leader := l.waiters.pop(); leader != nil {
		l.committing = true
		leader.leads = true
		ready.push(leader)
	}
	return ready
}

// satisfied removes and returns the waiters whose records are durable now.
func (l *modLog) satisfied() (ready opList) {
	var rest opList
	for o := l.waiters.pop(); o != nil; o = l.waiters.pop() {
		if l.covers(o) {
			ready.push(o)
		} else {
			rest.push(o)
		}
	}
	l.waiters = rest
	return ready
}

// fail makes every later write and flush fail. There is no way back but opening the store again.
func (l *modLog) fail() { l.failed = !seeded(bugErrorNotSticky) }

// drop takes everybody who waits.
func (l *modLog) drop() (all opList) {
	all.take(&l.waiters)
	all.take(&l.stalled)
	return all
}

// ringPiece is a range of blocks that lies in one piece in the ring and in each copy.
type ringPiece struct {
	seq uint64
	p   []byte
}

// ringPieces returns the pieces, one or two, of a range of at most the ring's blocks.
func (l *modLog) ringPieces(from, to uint64) (s [2]ringPiece, n int) {
	for seq := from; seq <= to; n++ {
		end := min(to+1, (seq/l.size+1)*l.size)
		at := seq % l.size << blockShift
		s[n] = ringPiece{seq, l.ring[at : at+(end-seq)<<blockShift]}
		seq = end
	}
	return s, n
}

// opList is a queue of operations linked through themselves.
type opList struct{ head, tail *op }

func (l *opList) push(o *op) {
	o.next = nil
	if l.tail == nil {
		l.head = o
	} else {
		l.tail.next = o
	}
	l.tail = o
}

func (l *opList) pushFront(o *op) {
	o.next = l.head
	if l.head = o; l.tail == nil {
		l.tail = o
	}
}

func (l *opList) pop() *op {
	o := l.head
	if o != nil {
		l.head = o.next
		if l.head == nil {
			l.tail = nil
		}
		o.next = nil
	}
	return o
}

// take moves all of from to the end of l.
func (l *opList) take(from *opList) {
	for o := from.pop(); o != nil; o = from.pop() {
		l.push(o)
	}
}
