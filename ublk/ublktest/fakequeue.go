package ublktest

import (
	"math/bits"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"coppice/ublk"
	"coppice/ublk/uapi"

	"golang.org/x/sys/unix"
)

// A fakeQueue is the driver's side of one queue: a [ublk.Transport].
type fakeQueue struct {
	fake  *Fake
	index int
	area  []byte       // descriptors
	ready atomic.Int32 // completions to reap

	mu        sync.Mutex // guards what follows; not held while a done function runs
	wake      func()
	tags      []fakeTag
	idle      []uint16          // tags with a command that waits for a request, last in first out
	completed []ublk.Completion // a ring: at most one for each tag
	head, end int               // its first and the one behind its last, modulo its size
	waiting   []call
	serving   int
	unfetched int
	fetched   chan struct{} // closed when unfetched is 0
	stopping  bool
	stopped   *sync.Cond // serving is 0
	thread    int
}

type fakeTag struct {
	state    fakeState
	addr     uintptr
	userData uint64
	call     call
}

type fakeState uint8

const (
	fakeUnfetched fakeState = iota
	fakeIdle                // a command waits for a request
	fakeServed              // the server has a request
	fakeEnded               // the command came back with ENODEV
)

const descSize = int(unsafe.Sizeof(uapi.IODesc{}))

func newFakeQueue(f *Fake, index int) (*fakeQueue, error) {
	size := f.cfg.Depth * descSize
	page := os.Getpagesize()
	area, err := unix.Mmap(-1, 0, (size+page-1)/page*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	q := &fakeQueue{fake: f, index: index, area: area, tags: make([]fakeTag, f.cfg.Depth)}
	q.idle = make([]uint16, 0, f.cfg.Depth)
	q.completed = make([]ublk.Completion, 1<<bits.Len(uint(f.cfg.Depth)))
	q.stopped = sync.NewCond(&q.mu)
	q.reset()
	return q, nil
}

func (q *fakeQueue) reset() {
	for i := range q.tags {
		q.tags[i] = fakeTag{}
	}
	q.idle = q.idle[:0]
	q.head, q.end = 0, 0
	q.ready.Store(0)
	q.serving = 0
	q.unfetched = len(q.tags)
	q.fetched = make(chan struct{})
	q.thread = 0
}

func (q *fakeQueue) allFetched() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.fetched
}

func (q *fakeQueue) count(f func() int) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return f()
}

// Bind implements [ublk.Transport].
func (q *fakeQueue) Bind(wake func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.wake = wake
}

// Ready implements [ublk.Transport].
func (q *fakeQueue) Ready() bool { return q.ready.Load() > 0 }

// Reap implements [ublk.Transport].
func (q *fakeQueue) Reap(into []ublk.Completion) int {
	if !q.Ready() {
		return 0
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	n := min(len(into), q.end-q.head)
	for i := range into[:n] {
		into[i] = q.completed[(q.head+i)%len(q.completed)]
	}
	q.head += n
	q.ready.Add(-int32(n))
	return n
}

// complete ends a tag's command. The lock is held.
func (q *fakeQueue) complete(userData uint64, res int32) {
	q.completed[q.end%len(q.completed)] = ublk.Completion{UserData: userData, Res: res}
	q.end++
	q.ready.Add(1)
}

// Command implements [ublk.Transport].
func (q *fakeQueue) Command(c ublk.Command, userData uint64) {
	q.mu.Lock()
	if !q.check(c) {
		q.complete(userData, -int32(syscall.EINVAL))
		q.mu.Unlock()
		return
	}
	t := &q.tags[c.Tag]
	ended, served := t.call, t.state == fakeServed
	t.call = call{}
	t.userData, t.addr = userData, c.Addr
	t.state = fakeIdle
	if c.Fetch {
		if q.unfetched--; q.unfetched == 0 {
			close(q.fetched)
		}
	}
	if served {
		q.serving--
	}
	var got []byte
	if served && ended.desc.Op == ublk.OpRead && c.Result > 0 && !q.fake.cfg.Unchecked {
		got = ended.data
		copy(got, memoryAt(c.Addr, int64(c.Result)))
	}
	q.next(c.Tag)
	q.mu.Unlock()
	if served && ended.done != nil {
		ended.done(syscall.Errno(max(0, -c.Result)), got)
	}
}

// next gives idle tags, this one first, the requests that have waited longest, or ends it when the device is stopping.
func (q *fakeQueue) next(tag uint16) {
	switch {
	case q.stopping:
		q.endTag(tag)
		if q.serving == 0 {
			q.stopped.Broadcast()
		}
	default:
		q.idle = append(q.idle, tag)
		if q.unfetched == 0 {
			q.drainWaiting()
		}
	}
}

func (q *fakeQueue) drainWaiting() {
	for len(q.waiting) > 0 && len(q.idle) > 0 {
		tag := q.idle[len(q.idle)-1]
		q.idle = q.idle[:len(q.idle)-1]
		c := q.waiting[0]
		q.waiting = q.waiting[1:]
		q.deliver(tag, c)
	}
}

func (q *fakeQueue) endTag(tag uint16) {
	t := &q.tags[tag]
	t.state = fakeEnded
	q.complete(t.userData, -int32(syscall.ENODEV))
}

// deliver fills the tag's descriptor, copies the data of a WRITE as the kernel would, and completes the
// tag's command.
func (q *fakeQueue) deliver(tag uint16, c call) {
	t := &q.tags[tag]
	t.state, t.call = fakeServed, c
	q.serving++
	flags := uint32(c.desc.Op)
	if c.desc.FUA {
		flags |= uapi.IOFUA
	}
	if c.desc.NoUnmap {
		flags |= uapi.IONoUnmap
	}
	if c.desc.Meta {
		flags |= uapi.IOMeta
	}
	*(*uapi.IODesc)(unsafe.Pointer(&q.area[int(tag)*descSize])) = uapi.IODesc{
		OpFlags:     flags,
		NrSectors:   uint32(c.desc.Len >> uapi.SectorShift),
		StartSector: uint64(c.desc.Off >> uapi.SectorShift),
		Addr:        uint64(t.addr),
	}
	if !q.fake.cfg.Unchecked {
		q.fill(t)
	}
	q.complete(t.userData, 0)
}

// fill puts the data of a WRITE into the server's buffer, and into that of a READ what must not come back.
func (q *fakeQueue) fill(t *fakeTag) {
	c := &t.call
	switch {
	case c.desc.Len > int64(q.fake.cfg.MaxIO):
	case c.desc.Op == ublk.OpWrite:
		copy(memoryAt(t.addr, c.desc.Len), c.data)
	case c.desc.Op == ublk.OpRead && !q.fake.cfg.KeepBuffers:
		poison(memoryAt(t.addr, c.desc.Len), byte(t.userData>>16))
	}
}

func (q *fakeQueue) submit(c call) {
	q.mu.Lock()
	if q.stopping {
		q.mu.Unlock()
		if c.done != nil {
			c.done(syscall.ENODEV, nil)
		}
		return
	}
	if q.unfetched > 0 || len(q.idle) == 0 {
		q.waiting = append(q.waiting, c)
		q.mu.Unlock()
		return
	}
	tag := q.idle[len(q.idle)-1]
	q.idle = q.idle[:len(q.idle)-1]
	q.deliver(tag, c)
	wake := q.wake
	q.mu.Unlock()
	wake()
}

func (q *fakeQueue) stop() {
	q.mu.Lock()
	q.stopping = true
	failed := q.waiting
	q.waiting = nil
	for q.serving > 0 {
		q.stopped.Wait()
	}
	for _, tag := range q.idle {
		q.endTag(tag)
	}
	q.idle = q.idle[:0]
	wake := q.wake
	q.mu.Unlock()
	for _, c := range failed {
		if c.done != nil {
			c.done(syscall.ENODEV, nil)
		}
	}
	if wake != nil {
		wake()
	}
}

func (q *fakeQueue) quiesce() {
	q.mu.Lock()
	defer q.mu.Unlock()
	var again []call
	for i := range q.tags {
		if q.tags[i].state == fakeServed {
			again = append(again, q.tags[i].call)
		}
	}
	q.waiting = append(again, q.waiting...)
	q.reset()
}

// check records what the kernel would refuse, or would be harmed by.
func (q *fakeQueue) check(c ublk.Command) bool {
	if int(c.Tag) >= len(q.tags) {
		q.fake.violation("queue %d: command for tag %d of %d", q.index, c.Tag, len(q.tags))
		return false
	}
	t := &q.tags[c.Tag]
	switch {
	case t.state == fakeEnded:
		q.fake.violation("queue %d tag %d: command after ENODEV", q.index, c.Tag)
	case c.Fetch && t.state != fakeUnfetched:
		q.fake.violation("queue %d tag %d: fetched twice", q.index, c.Tag)
	case !c.Fetch && t.state != fakeServed:
		q.fake.violation("queue %d tag %d: committed without a request in service", q.index, c.Tag)
	case !c.Fetch && c.Addr != t.addr:
		q.fake.violation("queue %d tag %d: buffer moved from %#x to %#x", q.index, c.Tag, t.addr, c.Addr)
	default:
		q.checkResult(t, c)
		q.checkPlace(c)
		return true
	}
	return false
}

func (q *fakeQueue) checkResult(t *fakeTag, c ublk.Command) {
	if c.Fetch {
		return
	}
	d := t.call.desc
	switch moves := d.Op == ublk.OpRead || d.Op == ublk.OpWrite; {
	case c.Result < 0:
		switch syscall.Errno(-c.Result) {
		case syscall.EIO, syscall.ENOSPC, syscall.EOPNOTSUPP:
		default:
			q.fake.violation("queue %d tag %d: answered %v, which blk-mq takes for a shortage", q.index, c.Tag, syscall.Errno(-c.Result))
		}
	case moves && int64(c.Result) != d.Len:
		q.fake.violation("queue %d tag %d: answered %d of %d bytes", q.index, c.Tag, c.Result, d.Len)
	case !moves && c.Result != 0:
		q.fake.violation("queue %d tag %d: answered %d to an operation without data", q.index, c.Tag, c.Result)
	}
}

// checkPlace checks that one thread sends all commands of the queue, and buffers are pages.
func (q *fakeQueue) checkPlace(c ublk.Command) {
	if q.fake.cfg.Unchecked {
		return
	}
	if page := uintptr(os.Getpagesize()); c.Addr%page != 0 {
		q.fake.violation("queue %d tag %d: buffer at %#x is not on a page boundary", q.index, c.Tag, c.Addr)
	}
	tid := unix.Gettid()
	if q.thread == 0 {
		q.thread = tid
	}
	if q.thread != tid {
		q.fake.violation("queue %d tag %d: thread %d is not thread %d, which fetched first", q.index, c.Tag, tid, q.thread)
	}
}
