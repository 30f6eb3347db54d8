package ublktest

import (
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"coppice/ublk"

	"golang.org/x/sys/unix"
)

// FakeConfig describes the device of a [Fake].
type FakeConfig struct {
	SizeBytes int64
	Queues    int // 0 means 1
	Depth     int // 0 means 128
	MaxIO     int // in bytes; 0 means 512 KiB

	// KeepBuffers leaves in a READ's buffer what earlier requests left there, as the kernel does. Without
	// it the buffer is scribbled over, so that a part which the Handler does not fill shows.
	KeepBuffers bool

	// Unchecked leaves out the protocol checks that cost system calls and the copies of data that
	// the kernel would make, for benchmarks.
	Unchecked bool
}

// A Fake stands in for the kernel's driver: reactors fetch requests from it and commit them over
// shared memory, in the kernel's protocol, so that the very code that serves /dev/ublkbN runs
// without root and without the driver. It checks what it is sent; see [Fake.Err].
//
// Its client side may be used from any goroutine, except that the blocking helpers must not be called
// from a Handler or from a done function.
type Fake struct {
	cfg    FakeConfig
	queues []*fakeQueue

	mu         sync.Mutex // guards violations and next; taken after a queue's
	violations []error
	next       int // the queue that gets the next request
}

// NewFake makes a driver with one device that nobody serves yet.
func NewFake(cfg FakeConfig) (*Fake, error) {
	cfg.Queues = max(cfg.Queues, 1)
	if cfg.Depth == 0 {
		cfg.Depth = 128
	}
	if cfg.MaxIO == 0 {
		cfg.MaxIO = 512 << 10
	}
	f := &Fake{cfg: cfg}
	for i := range cfg.Queues {
		q, err := newFakeQueue(f, i)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("make fake queue %d: %w", i, err), f.Close())
		}
		f.queues = append(f.queues, q)
	}
	return f, nil
}

// Close frees the descriptor areas. No reactor may serve the device any more.
func (f *Fake) Close() error {
	var errs []error
	for _, q := range f.queues {
		errs = append(errs, unix.Munmap(q.area))
	}
	f.queues = nil
	return errors.Join(errs...)
}

// Sources describes the queues for Reactors.Attach, with queue i on cpus[i%len(cpus)], or anywhere
// without cpus.
func (f *Fake) Sources(h ublk.Handler, cpus ...int) []ublk.QueueSource {
	var all []ublk.QueueSource
	for i, q := range f.queues {
		src := ublk.QueueSource{
			QueueConfig: ublk.QueueConfig{
				Handler: h, Index: i, Depth: f.cfg.Depth, MaxIO: f.cfg.MaxIO, SizeBytes: f.cfg.SizeBytes,
			},
			CPU:         -1,
			Descriptors: q.area,
			Transport:   q,
		}
		if len(cpus) > 0 {
			src.CPU = cpus[i%len(cpus)]
		}
		all = append(all, src)
	}
	return all
}

// Start attaches h to reactors and waits, as START_DEV does, until every tag is fetched.
func (f *Fake) Start(rs *ublk.Reactors, h ublk.Handler, cpus ...int) (*ublk.Attachment, error) {
	a, err := rs.Attach(f.Sources(h, cpus...))
	if err != nil {
		return nil, err
	}
	if err := a.Fetch(); err != nil {
		return nil, err
	}
	for _, q := range f.queues {
		select {
		case <-q.allFetched():
		case <-time.After(10 * time.Second):
			return nil, fmt.Errorf("start fake device: queue %d was not fetched in 10 s", q.index)
		}
	}
	return a, nil
}

// Stop does what STOP_DEV does: it fails requests that no tag has yet, waits for those in service, and
// ends every tag with ENODEV.
func (f *Fake) Stop() {
	for _, q := range f.queues {
		q.stop()
	}
}

// Quiesce does what the kernel does when the server's rings are closed and the device has USER_RECOVERY with
// REISSUE: requests in service wait again, for the next Start. Call it when the Attachment is drained, and while
// requests are submitted before Reactors.Close frees the buffers that idle tags have: the Fake writes to them as long
// as it is not quiesced, where the kernel would find no page and issue the request again.
func (f *Fake) Quiesce() {
	for _, q := range f.queues {
		q.quiesce()
	}
}

// Err returns the violations of the protocol so far, joined.
func (f *Fake) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return errors.Join(f.violations...)
}

func (f *Fake) violation(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.violations = append(f.violations, fmt.Errorf(format, args...))
}

// InService returns how many requests the server has, and Waiting how many wait for a tag.
func (f *Fake) InService() int {
	n := 0
	for _, q := range f.queues {
		n += q.count(func() int { return q.serving })
	}
	return n
}

// Waiting returns how many requests wait for a tag.
func (f *Fake) Waiting() int {
	n := 0
	for _, q := range f.queues {
		n += q.count(func() int { return len(q.waiting) })
	}
	return n
}

// Submit begins a request on the next queue in turn; it waits there when no tag is idle. done, which may be
// nil, is called on the reactor's thread when the request is answered, or at once after Stop, and may
// submit more. data is what a WRITE stores, or where a READ goes; it must stay untouched until then.
func (f *Fake) Submit(desc ublk.Descriptor, data []byte, done func(errno syscall.Errno, data []byte)) {
	f.mu.Lock()
	i := f.next
	f.next = (f.next + 1) % len(f.queues)
	f.mu.Unlock()
	f.SubmitTo(i, desc, data, done)
}

// SubmitTo is Submit for a given queue.
func (f *Fake) SubmitTo(queue int, desc ublk.Descriptor, data []byte, done func(errno syscall.Errno, data []byte)) {
	f.queues[queue].submit(call{desc: desc, data: data, done: done})
}

// Do submits one request and waits for its answer.
func (f *Fake) Do(desc ublk.Descriptor, data []byte) error {
	answer := make(chan syscall.Errno, 1)
	f.Submit(desc, data, func(errno syscall.Errno, _ []byte) { answer <- errno })
	if errno := <-answer; errno != 0 {
		return errno
	}
	return nil
}

// ReadAt reads len(p) bytes, at most MaxIO, at off.
func (f *Fake) ReadAt(p []byte, off int64) (int, error) {
	if err := f.Do(ublk.Descriptor{Op: ublk.OpRead, Off: off, Len: int64(len(p))}, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteAt writes p, at most MaxIO bytes, at off.
func (f *Fake) WriteAt(p []byte, off int64) (int, error) {
	if err := f.Do(ublk.Descriptor{Op: ublk.OpWrite, Off: off, Len: int64(len(p))}, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Flush makes durable what has been answered.
func (f *Fake) Flush() error { return f.Do(ublk.Descriptor{Op: ublk.OpFlush}, nil) }

// Discard tells that n bytes at off are not needed any more.
func (f *Fake) Discard(off, n int64) error {
	return f.Do(ublk.Descriptor{Op: ublk.OpDiscard, Off: off, Len: n}, nil)
}

// WriteZeroes writes n bytes of zeros at off.
func (f *Fake) WriteZeroes(off, n int64) error {
	return f.Do(ublk.Descriptor{Op: ublk.OpWriteZeroes, Off: off, Len: n}, nil)
}

// memoryAt is the n bytes of a server's buffer.
func memoryAt(addr uintptr, n int64) []byte {
	// The address came from the server as a number, as it comes to the kernel, and lies
	// outside the Go heap.
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&addr)), n)
}
