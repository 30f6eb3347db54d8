package ublk

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"coppice/ublk/uapi"
)

// Limits of the driver (the depth) and of this package (the size of a request).
const (
	maxDepth     = uapi.MaxQueueDepth
	sectorShift  = uapi.SectorShift
	maxMaxIO     = 32 << 20
	defaultDepth = 128
	defaultMaxIO = 512 << 10
)

// QueueConfig describes one queue of a device.
type QueueConfig struct {
	Handler Handler

	Index     int   // of the queue within its device
	Depth     int   // tags, 1 to 4096; 0 means 128
	MaxIO     int   // largest READ or WRITE in bytes, a multiple of 4096; 0 means 512 KiB
	SizeBytes int64 // of the device; requests beyond are answered with EIO. 0: not checked
}

func (c *QueueConfig) setDefaults() error {
	if c.Depth == 0 {
		c.Depth = defaultDepth
	}
	if c.MaxIO == 0 {
		c.MaxIO = defaultMaxIO
	}
	var errs []error
	if c.Handler == nil {
		errs = append(errs, errors.New("no Handler"))
	}
	if c.Index < 0 || c.Index >= maxDepth {
		errs = append(errs, fmt.Errorf("index %d is not within 0 to %d", c.Index, maxDepth-1))
	}
	if c.Depth < 1 || c.Depth > maxDepth {
		errs = append(errs, fmt.Errorf("depth %d is not within 1 to %d", c.Depth, maxDepth))
	}
	if c.MaxIO < 4096 || c.MaxIO > maxMaxIO || c.MaxIO%4096 != 0 {
		errs = append(errs, fmt.Errorf("largest I/O of %d bytes is not a multiple of 4096 up to %d", c.MaxIO, maxMaxIO))
	}
	if c.SizeBytes < 0 {
		errs = append(errs, fmt.Errorf("device size of %d bytes is negative", c.SizeBytes))
	}
	return errors.Join(errs...)
}

// A Queue is one hardware queue of a block device: its requests, one per tag, and their
// buffers. It belongs to the thread of the [Target] that serves it.
type Queue struct {
	handler Handler
	target  Target
	index   int
	maxIO   int
	size    int64
	served  int // requests that the Handler owns, or whose target I/O has not ended
	reqs    []Request
	bufs    []byte // depth × maxIO, mapped outside the Go heap and touched when used

	marks []uint64 // by tag; nil: nobody wants to know
	local any      // the Handler's
	lane  *lane    // how a reactor reaches the driver; nil over any other Target
}

// NewQueue makes a queue whose requests act on t. It maps depth × MaxIO bytes of
// address space, of which only what requests touch becomes memory; Release gives them
// back. It is for those who write a Target; devices get their queues from the data plane.
func NewQueue(cfg QueueConfig, t Target) (*Queue, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, fmt.Errorf("make queue %d: %w", cfg.Index, err)
	}
	bufs, err := mapBuffers(cfg.Depth * cfg.MaxIO)
	if err != nil {
		return nil, fmt.Errorf("map %d buffers of %d bytes for queue %d: %w", cfg.Depth, cfg.MaxIO, cfg.Index, err)
	}
	q := &Queue{
		handler: cfg.Handler,
		target:  t,
		index:   cfg.Index,
		maxIO:   cfg.MaxIO,
		size:    cfg.SizeBytes,
		reqs:    make([]Request, cfg.Depth),
		bufs:    bufs,
	}
	for i := range q.reqs {
		q.reqs[i].queue = q
		q.reqs[i].tag = uint16(i)
	}
	return q, nil
}

// mapBuffers maps n bytes of zeros. Huge pages are declined: buffers of mostly idle tags
// would otherwise take 2 MiB each at their first use.
func mapBuffers(n int) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, err
	}
	// EINVAL where the kernel has no transparent huge pages: nothing to decline then.
	if err := unix.Madvise(b, unix.MADV_NOHUGEPAGE); err != nil && !errors.Is(err, unix.EINVAL) {
		return nil, errors.Join(err, unix.Munmap(b))
	}
	return b, nil
}

// Release unmaps the buffers. No request may be in service.
func (q *Queue) Release() error {
	if q.bufs == nil {
		return nil
	}
	b := q.bufs
	q.bufs = nil
	if err := unix.Munmap(b); err != nil {
		return fmt.Errorf("unmap buffers of queue %d: %w", q.index, err)
	}
	return nil
}

// Index returns the queue's number within its device.
func (q *Queue) Index() int { return q.index }

// Depth returns the number of tags.
func (q *Queue) Depth() int { return len(q.reqs) }

// MaxIO returns the largest READ or WRITE in bytes, which is also the size of each tag's buffer.
func (q *Queue) MaxIO() int { return q.maxIO }

// SetLocal keeps what a Handler wants to find again with the queue: per-tag state, registered files. It
// is meant for Attach.
func (q *Queue) SetLocal(v any) { q.local = v }

// Local returns what SetLocal kept.
func (q *Queue) Local() any { return q.local }

// SetMarks has [Request.Mark] write to m, which has a word for each tag, or to nothing where m is nil. It is for a Target, on its thread; of a device,
// [Device.SetMarks] calls it.
func (q *Queue) SetMarks(m []uint64) error {
	if m != nil && len(m) != len(q.reqs) {
		return fmt.Errorf("set marks of queue %d: %d words for %d tags", q.index, len(m), len(q.reqs))
	}
	q.marks = m
	return nil
}

// InService returns how many requests are between Serve and their answer to the driver.
func (q *Queue) InService() int { return q.served }

// Now returns a monotonic clock in nanoseconds that is read once per batch: cheap, and exact to a
// batch.
func (q *Queue) Now() int64 { return q.target.Now() }

// RegisterFile makes f usable by this queue's requests. A file that several queues register takes one
// slot of their reactor's table. The caller keeps f open until [Handler.Detach] has been
// called, after which the queue releases its files by itself.
func (q *Queue) RegisterFile(f *os.File) (File, error) {
	file, err := q.target.RegisterFile(q, f)
	if err != nil {
		return 0, fmt.Errorf("register file for queue %d: %w", q.index, err)
	}
	return file, nil
}

// Descriptor is a request as the driver describes it, in bytes.
type Descriptor struct {
	Op                 Op
	FUA, NoUnmap, Meta bool
	Off, Len           int64
}

// Buffer returns all MaxIO bytes of a tag's buffer, where a Target puts the data of a WRITE before
// Start and finds that of a READ at Commit.
func (q *Queue) Buffer(tag int) []byte {
	return q.bufs[tag*q.maxIO : (tag+1)*q.maxIO : (tag+1)*q.maxIO]
}

// Start hands the request of an idle tag to the Handler; a descriptor that no device
// could serve is committed as an error at once. It is for a Target, on its thread.
func (q *Queue) Start(tag int, d Descriptor) {
	r := &q.reqs[tag]
	if r.state != stateIdle {
		panic(fmt.Sprintf("ublk: queue %d tag %d started while in service", q.index, tag))
	}
	r.Op, r.FUA, r.NoUnmap, r.Meta = d.Op, d.FUA, d.NoUnmap, d.Meta
	r.Off, r.Len, r.Buf = d.Off, d.Len, nil
	r.gen++
	r.began = q.target.Now()
	r.state = stateServed
	q.served++
	if errno := q.check(&d); errno != 0 {
		r.Complete(errno)
		return
	}
	if d.Op == OpRead || d.Op == OpWrite {
		at := tag * q.maxIO
		end := at + int(d.Len)
		r.Buf = q.bufs[at:end:end]
	}
	q.handler.Serve(r)
}

func (q *Queue) check(d *Descriptor) syscall.Errno {
	switch d.Op {
	case OpRead, OpWrite:
		if d.Len <= 0 || d.Len > int64(q.maxIO) {
			return syscall.EIO
		}
	case OpDiscard, OpWriteZeroes:
		if d.Len < 0 {
			return syscall.EIO
		}
	case OpFlush:
		return 0
	default:
		return syscall.EOPNOTSUPP
	}
	if d.Off < 0 || (q.size > 0 && (d.Off > q.size || d.Len > q.size-d.Off)) {
		return syscall.EIO
	}
	return 0
}

// Resume ends one target I/O of r with res. It is for a Target, on its thread.
func (q *Queue) Resume(r *Request, cookie uint16, res int32) {
	r.inflight--
	q.resume(r, cookie, res)
}

// ResumePosted delivers the outstanding Post of r. It is for a Target, on its thread.
func (q *Queue) ResumePosted(r *Request) {
	cookie, res := r.Posted()
	r.posted.Store(false)
	q.resume(r, cookie, res)
}

func (q *Queue) resume(r *Request, cookie uint16, res int32) {
	switch r.state {
	case stateServed:
		q.handler.Resume(r, cookie, res)
	case stateCompleting:
		if r.inflight == 0 && !r.posted.Load() {
			r.finish()
		}
	default:
		panic(fmt.Sprintf("ublk: queue %d tag %d resumed while not in service", q.index, r.tag))
	}
}
