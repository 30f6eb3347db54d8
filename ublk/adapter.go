package ublk

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
)

// Backend is a disk with blocking methods, as github.com/ehrlich-b/go-ublk has it. They are called from
// several goroutines at once. A backend may also be a [Discarder] and a [ZeroWriter].
//
// An error that wraps ENOSPC or EOPNOTSUPP reaches the kernel as that, any other as EIO.
type Backend interface {
	// ReadAt fills p. Less with io.EOF means that zeros follow.
	io.ReaderAt

	// WriteAt stores p.
	io.WriterAt

	// Size returns the size in bytes.
	Size() int64

	// Flush makes durable every write that has returned.
	Flush() error

	// Close ends the use of the backend.
	Close() error
}

// Discarder is a [Backend] that can forget a range. Without it DISCARD is answered with EOPNOTSUPP.
type Discarder interface {
	Discard(off, length int64) error
}

// ZeroWriter is a [Backend] that can zero a range without being given the zeros. Without it they are
// written.
type ZeroWriter interface {
	WriteZeroes(off, length int64) error
}

// Adapter is a [Handler] that has a [Backend] do its work, on goroutines that exist while a
// queue is attached. Each request costs a hand-over to a goroutine and back, 10 to 20 µs on most machines: a
// Handler that never blocks is faster.
type Adapter struct {
	backend Backend
	workers int

	mu     sync.Mutex // guards what follows
	queues int
	pool   *workPool // while queues > 0
}

// Adapt makes a Handler of a backend. At most the given number of its methods run at a time, at least 1.
func Adapt(b Backend, workers int) *Adapter {
	return &Adapter{backend: b, workers: max(workers, 1)}
}

// Close closes the backend. No queue may be attached.
func (a *Adapter) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.queues > 0 {
		return fmt.Errorf("close adapter: %w", ErrServing)
	}
	if err := a.backend.Close(); err != nil {
		return fmt.Errorf("close backend: %w", err)
	}
	return nil
}

// Attach implements [Handler].
func (a *Adapter) Attach(q *Queue) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.queues == 0 {
		a.pool = newWorkPool()
		for range a.workers {
			go a.work(a.pool)
		}
	}
	a.queues++
	q.SetLocal(a.pool)
	return nil
}

// Detach implements [Handler].
func (a *Adapter) Detach(*Queue) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.queues--; a.queues == 0 {
		a.pool.close()
	}
}

// Serve implements [Handler].
func (a *Adapter) Serve(r *Request) { r.Queue().Local().(*workPool).put(r) }

// Resume implements [Handler].
func (a *Adapter) Resume(r *Request, _ uint16, res int32) { r.Complete(syscall.Errno(-res)) }

func (a *Adapter) work(p *workPool) {
	for r := p.take(); r != nil; r = p.take() {
		r.Post(0, -int32(errnoOf(a.do(r))))
	}
}

// errnoOf is the errno that err wraps, or EIO.
func errnoOf(err error) syscall.Errno {
	var errno syscall.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &errno) && errno != 0:
		return errno
	case errors.Is(err, errors.ErrUnsupported):
		return syscall.EOPNOTSUPP
	default:
		return syscall.EIO
	}
}

func (a *Adapter) do(r *Request) error {
	switch r.Op {
	case OpRead:
		return a.read(r.Buf, r.Off)
	case OpWrite:
		if err := a.write(r.Buf, r.Off); err != nil || !r.FUA {
			return err
		}
		return a.backend.Flush()
	case OpFlush:
		return a.backend.Flush()
	case OpDiscard:
		if d, ok := a.backend.(Discarder); ok {
			return d.Discard(r.Off, r.Len)
		}
	case OpWriteZeroes:
		if z, ok := a.backend.(ZeroWriter); ok {
			return z.WriteZeroes(r.Off, r.Len)
		}
		return a.writeZeroes(r.Off, r.Len)
	}
	return errors.ErrUnsupported
}

func (a *Adapter) read(p []byte, off int64) error {
	n, err := a.backend.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case errors.Is(err, io.EOF) && n >= 0 && n < len(p):
		clear(p[n:])
		return nil
	case err == nil:
		return io.ErrUnexpectedEOF
	}
	return err
}

func (a *Adapter) write(p []byte, off int64) error {
	n, err := a.backend.WriteAt(p, off)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return err
}

// zeros is written where a backend cannot zero by itself, and never changed.
var zeros [64 << 10]byte

func (a *Adapter) writeZeroes(off, n int64) error {
	for n > 0 {
		part := min(n, int64(len(zeros)))
		if err := a.write(zeros[:part], off); err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}

// workPool passes requests to goroutines in the order in which they came. The links lie in the
// requests, so it has room for all of them.
type workPool struct {
	mu          sync.Mutex // guards what follows
	some        sync.Cond  // there is a request, or the end
	first, last *Request
	closed      bool
}

func newWorkPool() *workPool {
	p := &workPool{}
	p.some.L = &p.mu
	return p
}

func (p *workPool) put(r *Request) {
	p.mu.Lock()
	r.next = nil
	if p.first == nil {
		p.first = r
	} else {
		p.last.next = r
	}
	p.last = r
	p.mu.Unlock()
	p.some.Signal()
}

// take waits for a request, or returns nil when the pool is closed.
func (p *workPool) take() *Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.first == nil {
		if p.closed {
			return nil
		}
		p.some.Wait()
	}
	r := p.first
	p.first, r.next = r.next, nil
	return r
}

func (p *workPool) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.some.Broadcast()
}

var _ Handler = (*Adapter)(nil)
