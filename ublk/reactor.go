package ublk

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"coppice/ublk/uring"
)

// A reactor is one goroutine, locked to one thread that is pinned to one CPU, with one ring. It
// serves queues of many devices. Everything but the fields marked shared belongs to its
// thread.
//
// Its loop makes one system call per batch: io_uring_enter submits what the last batch led to
// (commits and target I/O) and waits for the next.
type reactor struct {
	cpu   int
	tid   int // of the thread
	ring  *uring.Ring
	files *fileTable

	lanes  []*lane // by slot; nil: free
	free   []uint16
	polled []*lane // those with a Transport
	reaped [64]Completion
	dirty  []*lane // to settle after the batch

	batch, handled uint32 // completions of the current batch, and how many are done with
	now            int64
	epoch          time.Time // where the clock begins, the same for all reactors of a pool
	stats          ReactorStats

	spin time.Duration
	spun uint64 // requests when it last slept

	wakeBuf   [8]byte // where the ring reads the eventfd to
	wakeArmed bool
	exiting   bool

	waker    *waker       // shared
	posts    postList     // shared
	called   atomic.Bool  // shared: calls is not empty
	attached atomic.Int32 // shared: queues
	mu       sync.Mutex   // guards what follows; never taken with another lock held
	calls    []func()     // shared
	gone     bool         // shared: no call is taken any more

	stopped chan struct{} // closed when the thread's work is over
	ended   sync.Once     // tearDown
}

// ReactorStats counts what a reactor has done.
type ReactorStats struct {
	CPU         int    // that it is pinned to
	Queues      int    // attached now
	Enters      uint64 // waits in io_uring_enter
	Spins       uint64 // io_uring_enter calls that looked for work without waiting
	Flushes     uint64 // further io_uring_enter calls, because the submission queue was full
	Completions uint64
	Requests    uint64 // handed to a Handler
	Posts       uint64 // delivered
	Wakes       uint64 // reads of the eventfd
	Strays      uint64 // completions that belong to nothing: a fault of the driver or of this package
}

// startReactor makes a ring on a thread of its own and begins to serve.
func startReactor(cpu int, cfg *ReactorConfig, epoch time.Time) (*reactor, error) {
	re := &reactor{cpu: cpu, epoch: epoch, stopped: make(chan struct{})}
	re.stats.CPU = cpu
	re.spin = cfg.Spin
	ready := make(chan error)
	go onOwnThread(func() { re.run(cfg, ready) })
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("start reactor on CPU %d: %w", cpu, err)
	}
	return re, nil
}

// run is the life of the thread, which ends with it.
func (re *reactor) run(cfg *ReactorConfig, ready chan<- error) {
	defer close(re.stopped)
	re.tid = unix.Gettid()
	if err := re.setUp(cfg); err != nil {
		ready <- err
		return
	}
	ready <- nil
	re.loop()
	re.refuseCalls()
}

func (re *reactor) setUp(cfg *ReactorConfig) error {
	var set unix.CPUSet
	set.Set(re.cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("pin thread: %w", err)
	}
	ring, err := uring.New(uring.Config{Entries: uint32(cfg.Entries), SingleIssuer: true})
	if err != nil {
		return err
	}
	re.ring = ring
	if re.waker, err = newWaker(); err != nil {
		return errors.Join(fmt.Errorf("make eventfd: %w", err), ring.Close())
	}
	if err := re.register(cfg); err != nil {
		return errors.Join(err, ring.Close(), unix.Close(re.waker.fd))
	}
	return nil
}

func (re *reactor) register(cfg *ReactorConfig) (err error) {
	if re.files, err = newFileTable(re.ring, cfg.Files); err != nil {
		return err
	}
	if err := re.ring.RegisterIOWQMaxWorkers(uint32(cfg.IOWorkers), 0); err != nil {
		return err
	}
	// Saves a descriptor look-up per enter; the ring works as well without it (before Linux 5.18).
	if err := re.ring.RegisterRingFD(); err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	return nil
}

func (re *reactor) loop() {
	re.armWake()
	for {
		re.now = int64(time.Since(re.epoch))
		re.drain()
		re.reap()
		re.deliverPosts()
		if re.called.Load() {
			re.runCalls()
		}
		re.settle()
		if re.exiting && !re.wakeArmed {
			return
		}
		re.wait()
	}
}

// wait submits the batch, and sleeps unless there is work already. The flag is raised before
// looking for work and work is made visible before looking at the flag, so no wake-up is lost.
func (re *reactor) wait() {
	if re.spin > 0 && re.stats.Requests != re.spun && re.spinForWork() {
		return
	}
	re.spun = re.stats.Requests
	re.waker.asleep.Store(true)
	n := uint32(1)
	if re.hasWork() {
		re.waker.asleep.Store(false)
		n = 0
	}
	_, err := re.ring.SubmitAndWait(n, -1)
	re.waker.asleep.Store(false)
	re.stats.Enters++
	re.tolerate(err)
}

// spinForWork submits the batch and looks for the next until there is one or the time is over.
func (re *reactor) spinForWork() bool {
	began := time.Now()
	for {
		if re.ring.Space() < re.ring.Entries() || re.ring.Deferred() {
			_, err := re.ring.Submit()
			re.stats.Spins++
			re.tolerate(err)
		}
		if re.hasWork() {
			return true
		}
		if time.Since(began) > re.spin {
			return false
		}
	}
}

func (re *reactor) hasWork() bool {
	if !re.posts.empty() || re.called.Load() || re.ring.Ready() > 0 {
		return true
	}
	for _, l := range re.polled {
		if l.transport.Ready() {
			return true
		}
	}
	return false
}

// tolerate accepts an enter that only has to be repeated. Any other failure means that requests
// are lost in the kernel: the process must die, so that its successor gets them anew.
func (re *reactor) tolerate(err error) {
	if err == nil || errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EBUSY) {
		return
	}
	panic(fmt.Errorf("ublk: reactor of CPU %d cannot go on: %w", re.cpu, err))
}

// drain handles the completions that are there and releases them at once.
func (re *reactor) drain() {
	re.batch, re.handled = re.ring.Ready(), 0
	for re.handled < re.batch {
		c := re.ring.CQE(re.handled)
		u, res := userData(c.UserData), c.Res
		re.handled++
		re.complete(u, res)
	}
	re.release()
}

// release gives the handled completions back to the kernel.
func (re *reactor) release() {
	re.stats.Completions += uint64(re.handled)
	re.ring.Advance(re.handled)
	re.batch -= re.handled
	re.handled = 0
}

func (re *reactor) complete(u userData, res int32) {
	if u.kind() == kindWake {
		re.woken()
		return
	}
	var l *lane
	if int(u.slot()) < len(re.lanes) {
		l = re.lanes[u.slot()]
	}
	switch {
	case l == nil || int(u.tag()) >= len(l.q.reqs):
		re.stats.Strays++
	case u.kind() == kindTarget:
		l.targetEnded(u, res)
	case u.kind() == kindCommand:
		l.commandEnded(u, res)
	default:
		re.stats.Strays++
	}
}

func (re *reactor) reap() {
	for _, l := range re.polled {
		n := l.transport.Reap(re.reaped[:])
		for _, c := range re.reaped[:n] {
			re.complete(userData(c.UserData), c.Res)
		}
		re.stats.Completions += uint64(n)
	}
}

func (re *reactor) deliverPosts() {
	if re.posts.empty() {
		return
	}
	for r := re.posts.take(); r != nil; {
		next := r.next // a Handler may post r again, which links it anew
		r.next = nil
		re.stats.Posts++
		r.queue.ResumePosted(r)
		r = next
	}
}

// sqe returns a free submission entry, if need be after submitting the others.
func (re *reactor) sqe() *uring.SQE {
	for {
		if s := re.ring.SQE(); s != nil {
			return s
		}
		re.flush()
	}
}

// flush submits all entries without waiting.
func (re *reactor) flush() {
	for re.ring.Space() < re.ring.Entries() {
		re.stats.Flushes++
		_, err := re.ring.Submit()
		re.tolerate(err)
		if err != nil {
			re.release() // the kernel wants room for completions first
		}
	}
}

func (re *reactor) armWake() {
	re.wakeArmed = true
	s := re.sqe()
	s.PrepRead(int32(re.waker.fd), addressOf(re.wakeBuf[:]), uint32(len(re.wakeBuf)), 0)
	s.SetUserData(uint64(packUserData(kindWake, 0, 0, 0, 0)))
}

func (re *reactor) woken() {
	re.stats.Wakes++
	re.wakeArmed = false
	if !re.exiting {
		re.armWake()
	}
}

func (re *reactor) settle() {
	for len(re.dirty) > 0 {
		l := re.dirty[len(re.dirty)-1]
		re.dirty = re.dirty[:len(re.dirty)-1]
		l.settle()
	}
}

func (re *reactor) touch(l *lane) {
	if !slices.Contains(re.dirty, l) {
		re.dirty = append(re.dirty, l)
	}
}
