package prefetch

import (
	"context"
	"errors"
	"iter"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// Reader is what is read through, such as one of a cache.
type Reader interface {
	// TryRead fills p from byte off on and returns true where that takes no time.
	TryRead(p []byte, off int64) bool
	// Read fills p from byte off on.
	Read(ctx context.Context, p []byte, off int64) error
}

// MaxRange is how many bytes a job reads at once, unless a chunk is longer.
const MaxRange = 256 << 10

// buffers are what jobs read into. Nobody looks at it.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// room returns n bytes of a buffer, which is made longer where it has to be.
func room(buffer *[]byte, n int64) []byte {
	if int64(len(*buffer)) < n {
		*buffer = make([]byte, max(n, MaxRange))
	}
	return (*buffer)[:n]
}

// Job reads ranges so that they are near when somebody asks for them.
type Job struct {
	From Reader
	// AtOnce is how many ranges are read at a time while nobody waits, at least 1.
	AtOnce int
	// Busy tells whether somebody waits for what he reads. Meanwhile one range at a time is read. nil: nobody ever does.
	Busy func() bool
	// Take is asked before so many bytes are read that were not there. The job ends where it says no. nil: it never does.
	Take func(n int64) bool
	// Done is told, from any goroutine, that n bytes more are there, of which read had to be read. nil: nobody is.
	Done func(n, read int64)
}

// busyLook is how often a job looks whether somebody still waits.
const busyLook = time.Millisecond

// Run reads the ranges, each at once, more or less in order. It ends with the first error, and soon after ctx.
func (j Job) Run(ctx context.Context, ranges iter.Seq[Range]) error {
	next, stop := iter.Pull(ranges)
	defer stop()
	var mu sync.Mutex // guards next
	var enough atomic.Bool
	// What has been pulled is read, also where another goroutine finds no more at the same time.
	pull := func(ctx context.Context) (r Range, ok bool) {
		mu.Lock()
		defer mu.Unlock()
		if enough.Load() || ctx.Err() != nil {
			return r, false
		}
		return next()
	}
	work, inner := errgroup.WithContext(ctx)
	for i := range max(j.AtOnce, 1) {
		work.Go(func() error {
			buffer := buffers.Get().(*[]byte)
			defer buffers.Put(buffer)
			for i == 0 || j.waitIdle(inner, &enough) {
				r, ok := pull(inner)
				if !ok {
					break
				}
				if more, err := j.read(inner, room(buffer, r.Len), r.Off); err != nil {
					return err
				} else if !more {
					break
				}
			}
			enough.Store(true)
			return nil
		})
	}
	return errors.Join(work.Wait(), ctx.Err())
}

// waitIdle returns when nobody waits for what he reads, or the job is to end.
func (j Job) waitIdle(ctx context.Context, enough *atomic.Bool) bool {
	for j.Busy != nil && j.Busy() && !enough.Load() {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(busyLook):
		}
	}
	return true
}

// read reports false where the job is to end without an error.
func (j Job) read(ctx context.Context, p []byte, off int64) (more bool, err error) {
	n := int64(len(p))
	if j.From.TryRead(p, off) {
		j.done(n, 0)
		return true, nil
	}
	if j.Take != nil && !j.Take(n) {
		return false, nil
	}
	if err := j.From.Read(ctx, p, off); err != nil {
		return false, err
	}
	j.done(n, n)
	return true, nil
}

func (j Job) done(n, read int64) {
	if j.Done != nil {
		j.Done(n, read)
	}
}
