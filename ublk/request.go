package ublk

import (
	"fmt"
	"sync/atomic"
	"syscall"
)

// A Request is one request of the kernel to a block device. There is one Request per tag
// of a [Queue], reused for as long as the queue lives: a [Handler] owns it from
// Serve until it calls Complete, and must not touch it afterwards.
//
// All methods except Post belong to the thread that serves the queue.
type Request struct {
	// Op tells what to do; NoUnmap (WRITE_ZEROES only) asks that the range stay
	// allocated, FUA (WRITE only) that the data be durable before Complete. Meta says that a file
	// system called the request one of metadata (REQ_META): its journal, its tables.
	Op      Op
	FUA     bool
	NoUnmap bool
	Meta    bool

	// Off and Len give the range in bytes, multiples of 512. Len is at most
	// [Queue.MaxIO] for READ and WRITE, 0 for FLUSH, and may be as much as
	// 2 TiB for DISCARD and WRITE_ZEROES.
	Off, Len int64

	// Buf has Len bytes for READ and WRITE and is nil otherwise. It lies outside the
	// Go heap, aligned to a page, and belongs to this tag alone. A READ begins with
	// what earlier requests of the tag left there: fill all of it or complete with an error.
	Buf []byte

	queue *Queue
	next  *Request // while on a post list
	state requestState
	errno syscall.Errno // once completing
	left  bool          // it is withheld, once completing
	tag   uint16
	gen   uint16 // counts the requests that this tag has carried

	inflight int32 // target I/Os that have not ended
	began    int64 // Target.Now at Serve, ns

	posted     atomic.Bool
	postCookie uint16
	postRes    int32
}

type requestState uint8

const (
	stateIdle       requestState = iota // the driver owns the tag
	stateServed                         // the Handler owns the request
	stateCompleting                     // completed, but target I/O of it is still in flight
	stateEnded                          // the driver will send no request with this tag any more
	stateWithheld                       // left for a successor: fetched while draining, or given back then
)

// Tag returns the request's slot in its queue, 0 ≤ Tag < Depth: an index for what a
// Handler keeps per request.
func (r *Request) Tag() int { return int(r.tag) }

// Queue returns the queue that the request came from.
func (r *Request) Queue() *Queue { return r.queue }

// Began returns when the request was handed to the Handler, on the clock of [Queue.Now].
func (r *Request) Began() int64 { return r.began }

// Marked tells whether anybody wants to know what Mark says.
func (r *Request) Marked() bool { return r.queue.marks != nil }

// Mark says something about the request to who looks at the queue from outside the process, in memory that it shares ([Device.SetMarks]). It is to be said
// before Complete, and costs nothing where nobody wants to know.
func (r *Request) Mark(m uint8) {
	if marks := r.queue.marks; marks != nil {
		marks[r.tag] = uint64(m)
	}
}

// Complete ends the request. An errno of 0 means that all of it is done. ENOSPC and
// EOPNOTSUPP reach the kernel as they are, any other errno as EIO.
//
// Target I/O of this request may still be in flight (a hedged read, say): the driver
// then gets its answer only when the last one has ended, because the kernel may write to the
// buffers until then; Resume is not called for them any more.
func (r *Request) Complete(errno syscall.Errno) {
	r.errno = errno
	r.end()
}

// Withhold ends the request as Complete does, but without an answer: the kernel issues it to the successor of this process, which serves it
// from the start. It is for a [Leaver] whose Leave has been called.
func (r *Request) Withhold() {
	if l := r.queue.lane; l == nil || l.state != laneDraining {
		panic(fmt.Sprintf("ublk: request of queue %d tag %d withheld, and nobody is to follow", r.queue.index, r.tag))
	}
	r.left = true
	r.end()
}

func (r *Request) end() {
	if r.state != stateServed {
		panic(fmt.Sprintf("ublk: request of queue %d tag %d completed twice", r.queue.index, r.tag))
	}
	if r.inflight == 0 && !r.posted.Load() {
		r.finish()
		return
	}
	r.state = stateCompleting
}

func (r *Request) finish() {
	r.queue.served--
	if r.left {
		r.queue.lane.withhold(r)
		return
	}
	r.state = stateIdle
	r.queue.target.Commit(r, driverResult(r.Op, r.Len, r.errno))
}

// driverResult is the one place where an errno becomes the result that the driver sees.
// Other codes than these three are no I/O errors to blk-mq but resource shortages
// that it retries without end (errno_to_blk_status, block/blk-core.c, Linux 6.12).
func driverResult(op Op, n int64, errno syscall.Errno) int32 {
	switch errno {
	case 0:
		if op == OpRead || op == OpWrite {
			return int32(n)
		}
		return 0
	case syscall.ENOSPC, syscall.EOPNOTSUPP:
		return -int32(errno)
	default:
		return -int32(syscall.EIO)
	}
}

// Read begins filling p from byte off of f. It ends in [Handler.Resume] with cookie
// and the bytes read (fewer than len(p) at the end of the file) or a negative errno. p
// lies outside the Go heap or stays reachable until then.
//
// Any number of target I/Os of one request may be in flight, with equal or
// different cookies. None fails for lack of room in the ring.
func (r *Request) Read(f File, p []byte, off int64, cookie uint16) {
	r.beginIO()
	r.queue.target.Read(r, f, p, off, cookie)
}

// Write begins storing p at byte off of f; with dsync set the data is durable when it
// ends (RWF_DSYNC). It ends like [Request.Read]; a short write is possible and is the
// Handler's to continue.
func (r *Request) Write(f File, p []byte, off int64, dsync bool, cookie uint16) {
	r.beginIO()
	r.queue.target.Write(r, f, p, off, dsync, cookie)
}

// Fsync begins an fdatasync of f, which covers the writes that had ended (that is,
// reached Resume) before this call. It ends like [Request.Read], with 0 or a negative errno.
func (r *Request) Fsync(f File, cookie uint16) {
	r.beginIO()
	r.queue.target.Fsync(r, f, cookie)
}

func (r *Request) beginIO() {
	if r.state != stateServed {
		panic(fmt.Sprintf("ublk: target I/O begun by queue %d tag %d, which is not being served", r.queue.index, r.tag))
	}
	r.inflight++
}

// Post makes the serving thread call [Handler.Resume] with r, cookie and res. It is
// the way back from another thread, and the only method that any
// goroutine may call. At most one Post of a request is outstanding, and a request
// that is to be posted must not be completed before the Post has arrived.
func (r *Request) Post(cookie uint16, res int32) {
	if r.posted.Swap(true) {
		panic(fmt.Sprintf("ublk: second Post outstanding for queue %d tag %d", r.queue.index, r.tag))
	}
	r.postCookie, r.postRes = cookie, res
	r.queue.target.Post(r)
}

// Posted returns what an outstanding Post was called with. It is meant for a Target.
func (r *Request) Posted() (cookie uint16, res int32) { return r.postCookie, r.postRes }
