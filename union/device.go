package union

import (
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"coppice/ublk"
)

// Device is the union of a layer and a root: the [ublk.Handler] of one block device.
//
// Its methods other than the Handler's are safe for concurrent use.
type Device struct {
	layer    *Layer
	base     Base
	baseFile *os.File
	baseSize int64
	readOnly bool
	verify   bool
	rootWait time.Duration
	leaving  atomic.Bool // for good: another program is to serve the device
	stats    counters
}

// DeviceOptions say how a device behaves.
type DeviceOptions struct {
	ReadOnly bool
	// NoVerify leaves out the check of the CRC-32C of each block read from the leaf.
	NoVerify bool
	// RootWait is how long a root that is no file may leave all that a queue reads of it unanswered, before those beyond three quarters of the
	// queue's requests get EIO, so that the leaf is served. 0 means 10 s.
	RootWait time.Duration
}

// DeviceStats counts what a device did since it was made. Bytes are those that requests asked for.
type DeviceStats struct {
	Reads         uint64 `json:"reads"`
	Writes        uint64 `json:"writes"`
	Flushes       uint64 `json:"flushes"`
	Discards      uint64 `json:"discards"` // and write-zeroes
	LeafReadBytes uint64 `json:"leaf_read_bytes"`
	RootReadBytes uint64 `json:"root_read_bytes"`
	// RootMemoryBytes are those of RootReadBytes that the root had in memory, so that nothing had to be waited for.
	RootMemoryBytes uint64 `json:"root_memory_bytes"`
	ZeroReadBytes   uint64 `json:"zero_read_bytes"`
	WrittenBytes    uint64 `json:"written_bytes"`
	CopiedUpBytes   uint64 `json:"copied_up_bytes"` // of blocks written in part
	Errors          uint64 `json:"errors"`
	ChecksumErrors  uint64 `json:"checksum_errors"`
	MapReads        uint64 `json:"map_reads"`    // waits for a part of a sector map that was not in memory
	RootWaits       uint64 `json:"root_waits"`   // requests that waited because many read the root already
	RootRefused     uint64 `json:"root_refused"` // those of them that got EIO because it had stalled
}

type counters struct {
	reads, writes, flushes, discards  atomic.Uint64
	leaf, root, zero, written, copied atomic.Uint64
	rootMemory                        atomic.Uint64
	errors, checksums, mapReads       atomic.Uint64
	rootWaits, rootRefused            atomic.Uint64
}

// NewDevice makes a device over an open layer and the root that the layer's pin names, or nil where it needs none. The caller
// keeps both open until the device's last queue is detached. A device whose layer is detached meanwhile never reads the root again.
func NewDevice(l *Layer, b Base, o DeviceOptions) (*Device, error) {
	if d := l.Pin().Difference(rootPin(b)); d != "" {
		return nil, fmt.Errorf("device on layer %q: %w: this one has %s", l.Name(), ErrOtherRoot, d)
	}
	if l.store.readOnly && !o.ReadOnly {
		return nil, fmt.Errorf("device on layer %q: %w", l.Name(), ErrReadOnly)
	}
	d := &Device{layer: l, base: b, baseSize: rootLen(b), readOnly: o.ReadOnly, verify: !o.NoVerify, rootWait: o.RootWait}
	if d.rootWait == 0 {
		d.rootWait = defaultRootWait
	}
	if b != nil {
		d.baseFile = b.File()
	}
	return d, nil
}

// SizeBytes returns the size of the device.
func (d *Device) SizeBytes() int64 { return d.layer.SizeBytes() }

// Layer returns the layer that takes the device's writes.
func (d *Device) Layer() *Layer { return d.layer }

// Stats returns what the device did so far.
func (d *Device) Stats() DeviceStats {
	c := &d.stats
	return DeviceStats{
		Reads: c.reads.Load(), Writes: c.writes.Load(), Flushes: c.flushes.Load(), Discards: c.discards.Load(),
		LeafReadBytes: c.leaf.Load(), RootReadBytes: c.root.Load(), RootMemoryBytes: c.rootMemory.Load(), ZeroReadBytes: c.zero.Load(),
		WrittenBytes: c.written.Load(), CopiedUpBytes: c.copied.Load(),
		Errors: c.errors.Load(), ChecksumErrors: c.checksums.Load(), MapReads: c.mapReads.Load(),
		RootWaits: c.rootWaits.Load(), RootRefused: c.rootRefused.Load(),
	}
}

// queue is what a device keeps for one of its queues. Everything in it belongs to the queue's thread.
type queue struct {
	d       *Device
	leaf    ublk.File
	root    ublk.File
	hasRoot bool // the root is a file
	ops     []op
	waiting int // requests that wait for space; guarded by space.mu
	misses  misses
	readers *readers
	scratch []byte // two blocks per tag
}

// op is the state of one request, kept per tag.
type op struct {
	r    *ublk.Request
	q    *queue
	next *op // in an opList

	step   step
	fua    bool // a write whose own data and record must be durable, and no other's
	leads  bool // the next commit
	pinned bool // epoch is entered
	epoch  uint64
	target uint64 // log block that must be durable
	to     uint64 // last log block of the commit that this request leads

	first    uint64 // first block of the request
	n        int    // blocks that it touches; for zeroing, of the edges only
	maps     []mapping
	sums     []uint32
	exts     []extent
	pieces   []piece
	asks     []ask
	left     int // pieces in flight, and one more where the root is asked
	errno    syscall.Errno
	forsaken bool      // it ends without an answer, when its I/O has
	redo     func(*op) // after entries of the sector map were loaded
	unread   error     // they could not be
	async    atomic.Int32
	failed   atomic.Bool
	came     atomic.Uint32 // Origins of what the root was asked for
	from     Origins
	ticket   ticket

	// Of a request for which space is short.
	class   class
	granted bool          // exts are its own, though it was in line for them
	owes    bool          // held, lent or granted are to be settled
	fresh   int           // blocks of it that the layer does not hold
	held    uint64        // of the layer's quota
	lent    int64         // slots that it gives back when it is recorded
	lack    *pool         // in which there is too little for it, while it is in line; guarded by space.mu
	waiting bool          // for somebody to make space; guarded by space.mu
	verdict syscall.Errno // how waiting ended

	edges   [2]edge
	nEdges  int
	zero    uint64 // first whole block to zero
	zeroes  uint64 // number of them
	scratch [2][]byte
}

// step tells what Resume goes on with when all target I/O of a request has ended.
type step uint8

const (
	stepRead   step = iota // data of a read is there
	stepEdges              // blocks written in part have been read
	stepAlloc              // slots were short
	stepData               // data of a write is in its slots
	stepRecord             // the log was full
	stepWait               // a commit by another request
	stepLog                // log blocks are written
	stepFlush              // the device is flushed
	stepMap                // entries of the sector map are being loaded
)

// edge is a block that a request covers only in part.
type edge struct {
	block    uint64
	from, to int // bytes of the block that the request covers
	was      mapping
	sum      uint32
}

// piece is one target I/O, kept so that a short one can go on.
type piece struct {
	p     []byte
	off   int64
	file  ublk.File
	write bool
}

const (
	cookieWake  = 0xffff // from another thread
	cookieFlush = 0xfffe
)

// Attach registers the files and allocates the state of each tag.
func (d *Device) Attach(uq *ublk.Queue) error {
	q := &queue{d: d, ops: make([]op, uq.Depth()), misses: misses{most: maxMisses(uq.Depth()), wait: d.rootWait}}
	var err error
	if q.leaf, err = uq.RegisterFile(d.layer.store.File()); err != nil {
		return fmt.Errorf("leaf: %w", err)
	}
	if d.baseFile != nil {
		q.hasRoot = true
		if q.root, err = uq.RegisterFile(d.baseFile); err != nil {
			return fmt.Errorf("root: %w", err)
		}
	}
	q.scratch, err = unix.Mmap(-1, 0, uq.Depth()*2*blockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("map scratch blocks: %w", err)
	}
	blocks := uq.MaxIO()>>blockShift + 1
	for i := range q.ops {
		o := &q.ops[i]
		o.q = q
		o.maps = make([]mapping, blocks)
		o.sums = make([]uint32, blocks)
		o.exts = make([]extent, 0, blocks)
		o.pieces = make([]piece, 0, blocks+2)
		if d.base != nil && !q.hasRoot {
			o.asks = make([]ask, 0, max(2, (blocks+1)/2))
		}
		at := i * 2 * blockSize
		o.scratch[0] = q.scratch[at : at+blockSize : at+blockSize]
		o.scratch[1] = q.scratch[at+blockSize : at+2*blockSize : at+2*blockSize]
	}
	q.readers = d.layer.store.epochs.join()
	d.layer.store.space.attach(uq.Depth(), blocks)
	uq.SetLocal(q)
	return nil
}

// Detach releases what Attach allocated.
func (d *Device) Detach(uq *ublk.Queue) {
	q := uq.Local().(*queue)
	d.layer.store.epochs.leave(q.readers)
	d.layer.store.space.detach(uq.Depth())
	if err := unix.Munmap(q.scratch); err != nil {
		panic(fmt.Sprintf("union: unmap scratch blocks: %v", err))
	}
}

// Serve begins a request.
func (d *Device) Serve(r *ublk.Request) {
	o := &r.Queue().Local().(*queue).ops[r.Tag()]
	o.r = r
	o.leads = false
	o.fua = r.FUA && r.Op == ublk.OpWrite
	o.errno = 0
	o.forsaken = false
	o.from = 0
	if r.Op != ublk.OpRead {
		o.from = FromLeaf
	}
	o.exts = o.exts[:0]
	if d.readOnly && r.Op != ublk.OpRead && r.Op != ublk.OpFlush {
		o.complete(syscall.EIO)
		return
	}
	switch r.Op {
	case ublk.OpRead:
		d.stats.reads.Add(1)
		o.read()
	case ublk.OpWrite:
		d.stats.writes.Add(1)
		d.stats.written.Add(uint64(r.Len))
		o.write()
	case ublk.OpFlush:
		d.stats.flushes.Add(1)
		o.flush()
	case ublk.OpDiscard, ublk.OpWriteZeroes:
		d.stats.discards.Add(1)
		o.zeroRange()
	default:
		o.complete(syscall.EOPNOTSUPP)
	}
}

// complete ends the request.
func (o *op) complete(errno syscall.Errno) {
	o.unpin()
	if o.owes {
		o.leave()
	}
	if o.forsaken {
		o.r.Withhold()
		return
	}
	if errno != 0 {
		o.q.d.stats.errors.Add(1)
	}
	o.r.Mark(uint8(o.from))
	o.r.Complete(errno)
}

// pin keeps the slots that a lookup finds from being used again until the request ends.
func (o *op) pin() {
	if !o.pinned {
		o.epoch = o.q.d.layer.store.epochs.enter(o.q.readers)
		o.pinned = true
	}
}

func (o *op) unpin() {
	if o.pinned {
		o.pinned = false
		o.q.readers.exit(o.epoch)
	}
}

// Resume goes on after one target I/O, or after another thread has posted.
func (d *Device) Resume(r *ublk.Request, cookie uint16, res int32) {
	o := &r.Queue().Local().(*queue).ops[r.Tag()]
	switch cookie {
	case cookieWake:
		o.woken()
		return
	case cookieFlush:
		o.note(res)
	default:
		if !o.pieceDone(int(cookie), res) {
			return
		}
	}
	o.left--
	o.goOn()
}

// pieceDone reports whether the piece has ended: a short one goes on.
func (o *op) pieceDone(i int, res int32) bool {
	p := &o.pieces[i]
	switch {
	case res == -int32(syscall.EINTR) || res == -int32(syscall.EAGAIN):
	case res < 0:
		o.note(res)
		return true
	case int(res) >= len(p.p):
		return true
	case res == 0:
		o.note(-int32(syscall.EIO))
		return true
	default:
		p.p = p.p[res:]
		p.off += int64(res)
	}
	if p.write && !o.mayWrite() {
		return true
	}
	o.issue(i)
	return false
}

// mayWrite tells whether another node cannot have the store yet; otherwise the request fails.
func (o *op) mayWrite() bool {
	if o.q.d.layer.store.mayWrite() {
		return true
	}
	o.note(-int32(syscall.EIO))
	return false
}

// writes tells whether one of the request's pieces is a write: then all are.
func (o *op) writes() bool { return len(o.pieces) > 0 && o.pieces[0].write }

func (o *op) note(res int32) {
	if res < 0 && o.errno == 0 {
		o.errno = syscall.Errno(-res)
	}
}

func (o *op) issue(i int) {
	p := &o.pieces[i]
	if p.write {
		o.r.Write(p.file, p.p, p.off, o.fua && !seeded(bugFUAVolatile), uint16(i))
	} else {
		o.r.Read(p.file, p.p, p.off, uint16(i))
	}
}

// begin forgets the I/O of the step before.
func (o *op) begin() {
	o.pieces, o.asks, o.left = o.pieces[:0], o.asks[:0], 0
}

// issueAll starts the pieces, and asks the root. Without any, the request goes on at once.
func (o *op) issueAll(next step) {
	o.step = next
	if o.writes() && !o.mayWrite() {
		o.pieces = o.pieces[:0]
	}
	o.left += len(o.pieces)
	if len(o.asks) > 0 {
		o.askRoot()
	}
	if o.left == 0 {
		o.advance()
		return
	}
	for i := range o.pieces {
		o.issue(i)
	}
}

func (o *op) advance() {
	switch o.step {
	case stepRead:
		o.readDone()
	case stepEdges:
		o.edgesDone()
	case stepData:
		o.dataDone()
	case stepLog:
		o.logDone()
	case stepFlush:
		o.flushDone()
	}
}

// again goes on with the slots that were waited for, or ends where there are none.
func (o *op) again() {
	if errno := o.verdict; errno != 0 {
		o.verdict = 0
		o.complete(errno)
		return
	}
	if o.nEdges > 0 {
		o.readEdges()
		return
	}
	o.allocate()
}

// load brings entries of the sector map into memory, on a goroutine, and then goes on with redo.
func (o *op) load(want missing, redo func(*op)) {
	o.step, o.redo = stepMap, redo
	o.q.d.stats.mapReads.Add(1)
	store := o.q.d.layer.store
	store.spawn(func() {
		o.unread = store.load(want.m, want.region)
		o.r.Post(cookieWake, 0)
	})
}

func (o *op) loaded() {
	if o.unread != nil {
		slog.Error("part of a sector map cannot be read", "store", o.q.d.layer.store.path, "layer", o.q.d.layer.Name(), "error", o.unread)
		o.giveBack()
		o.complete(syscall.EIO)
		return
	}
	o.redo(o)
}

// woken goes on after a commit of somebody else, an asynchronous read, or a checkpoint.
func (o *op) woken() {
	switch o.step {
	case stepAlloc:
		o.again()
	case stepRecord:
		o.record()
	case stepWait:
		o.committed()
	case stepMap:
		o.loaded()
	default:
		o.rootWoken()
	}
}
