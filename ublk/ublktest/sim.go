package ublktest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"coppice/ublk"

	"golang.org/x/sys/unix"
)

// ErrHalted is returned by a Sim that [Sim.Halt] has stopped.
var ErrHalted = errors.New("ublktest: simulator is halted")

// ErrStuck is returned by [Sim.Run] when requests are in service but nothing is left that could end
// them.
var ErrStuck = errors.New("ublktest: requests wait for something that does not come")

// SimConfig configures a [Sim]. The zero value is deterministic too.
type SimConfig struct {
	Seed uint64
	FIFO bool // execute everything in the order in which it was begun
	// Slow are kinds of target I/O that are executed late: fifteen times out of sixteen something else is done first, while there is any.
	Slow []Kind

	// StuckAfter is how long Run waits for a Post from another goroutine before it
	// gives up with ErrStuck; 0 means 10 s.
	StuckAfter time.Duration
}

// A Sim is a [ublk.Target] over disks in memory. Everything happens in the goroutine that calls
// Step, Run or a Device's blocking helpers; only Post may come from another.
//
// A target I/O has two moments, each at a random time after the one before unless FIFO is set:
// it is executed (the disk changes, hooks run), and its end is told to the Handler.
type Sim struct {
	// Hook, if set, is called before and after each execution of a target I/O. It may call
	// Halt, and may look at disks.
	Hook func(Event)

	// Inject, if set, is asked for each target I/O just before its execution.
	Inject func(Event) Fault

	cfg     SimConfig
	rng     *rand.Rand
	disks   []*Disk
	devices []*Device
	ios     []*simIO
	counts  [3]int
	steps   int64
	halted  bool

	mu    sync.Mutex // guards posts
	posts []*ublk.Request
	wake  chan struct{} // holds one token while posts may be waiting
}

// NewSim makes a simulator without disks and devices.
func NewSim(cfg SimConfig) *Sim {
	if cfg.StuckAfter == 0 {
		cfg.StuckAfter = 10 * time.Second
	}
	return &Sim{cfg: cfg, rng: rand.New(rand.NewPCG(cfg.Seed, 0)), wake: make(chan struct{}, 1)}
}

// AddDisk makes d known, so that handlers can register its file or any other file that
// is open on it.
func (s *Sim) AddDisk(d *Disk) ublk.File {
	s.disks = append(s.disks, d)
	return ublk.File(len(s.disks) - 1)
}

// Rand returns the simulator's own source of randomness.
func (s *Sim) Rand() *rand.Rand { return s.rng }

// Halt stops the simulation for ever: no I/O is executed any more and no Handler called. It is the
// moment of a power cut: [Disk.Crash] then tells what may be left.
func (s *Sim) Halt() { s.halted = true }

// Count returns how many target I/Os of a kind have been executed.
func (s *Sim) Count(k Kind) int { return s.counts[k] }

// RegisterFile finds the disk that f is open on.
func (s *Sim) RegisterFile(_ *ublk.Queue, f *os.File) (ublk.File, error) {
	id, err := inode(f)
	if err != nil {
		return 0, err
	}
	for i, d := range s.disks {
		if have, err := inode(d.file); err == nil && have == id {
			return ublk.File(i), nil
		}
	}
	return 0, fmt.Errorf("file %s is not on a disk of this simulator: add it with AddDisk", f.Name())
}

func inode(f *os.File) (id [2]uint64, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return id, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	return [2]uint64{st.Dev, st.Ino}, nil
}

// ReleaseFiles does nothing: disks stay with the simulator.
func (s *Sim) ReleaseFiles(*ublk.Queue) {}

// Read implements [ublk.Target].
func (s *Sim) Read(r *ublk.Request, f ublk.File, p []byte, off int64, cookie uint16) {
	s.begin(&simIO{r: r, cookie: cookie, ev: Event{Kind: Read, Disk: s.disks[f], Off: off, Data: p}})
}

// Write implements [ublk.Target].
func (s *Sim) Write(r *ublk.Request, f ublk.File, p []byte, off int64, dsync bool, cookie uint16) {
	s.begin(&simIO{r: r, cookie: cookie, sum: checksum(p),
		ev: Event{Kind: Write, Disk: s.disks[f], Off: off, Data: p, DSync: dsync}})
}

// Fsync implements [ublk.Target].
func (s *Sim) Fsync(r *ublk.Request, f ublk.File, cookie uint16) {
	d := s.disks[f]
	s.begin(&simIO{r: r, cookie: cookie, began: d.flushBegins(), ev: Event{Kind: Flush, Disk: d}})
}

func (s *Sim) begin(io *simIO) { s.ios = append(s.ios, io) }

// Post implements [ublk.Target].
func (s *Sim) Post(r *ublk.Request) {
	s.mu.Lock()
	s.posts = append(s.posts, r)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Commit implements [ublk.Target].
func (s *Sim) Commit(r *ublk.Request, result int32) {
	if s.halted {
		return
	}
	for _, d := range s.devices {
		if d.owns(r) {
			d.commit(r, result)
			return
		}
	}
	panic("ublktest: a request was completed that is of no device of this simulator")
}

// InFlight returns the target I/Os that are begun and not executed: after the death of the process any of them may still
// be. Their data belongs to who began them.
func (s *Sim) InFlight() []Event {
	var all []Event
	for _, io := range s.ios {
		if !io.executed {
			all = append(all, io.ev)
		}
	}
	return all
}

// Now returns the number of steps made, in microseconds: a clock that depends on nothing outside.
func (s *Sim) Now() int64 { return s.steps * int64(time.Microsecond) }

// Step does one thing: serve a submitted request, deliver a Post, execute a target I/O or tell its end. It
// returns false when there was nothing to do.
func (s *Sim) Step() bool {
	if s.halted {
		return false
	}
	s.steps++
	if s.deliverPost() {
		return true
	}
	var starts []*Device
	for _, d := range s.devices {
		if d.canStart() {
			starts = append(starts, d)
		}
	}
	choices := len(starts) + len(s.ios)
	if choices == 0 {
		return false
	}
	pick := 0
	if !s.cfg.FIFO {
		pick = s.rng.IntN(choices)
	}
	for len(s.cfg.Slow) > 0 && s.slow(pick-len(starts)) && s.rng.IntN(16) != 0 {
		pick = s.rng.IntN(choices)
	}
	if pick < len(starts) {
		starts[pick].start()
		return true
	}
	s.advance(pick - len(starts))
	return true
}

// slow tells whether i is the index of a target I/O that is to be executed late.
func (s *Sim) slow(i int) bool {
	return i >= 0 && !s.ios[i].executed && slices.Contains(s.cfg.Slow, s.ios[i].ev.Kind)
}

// advance takes an I/O one stage further, and removes it after the last one.
func (s *Sim) advance(i int) {
	io := s.ios[i]
	if !io.executed {
		s.execute(io)
		if !s.cfg.FIFO || s.halted {
			return
		}
	}
	s.ios = append(s.ios[:i], s.ios[i+1:]...)
	if io.record != nil {
		io.ev.Disk.end(io.record)
	}
	io.r.Queue().Resume(io.r, io.cookie, io.ev.Res)
}

func (s *Sim) deliverPost() bool {
	s.mu.Lock()
	if len(s.posts) == 0 {
		s.mu.Unlock()
		return false
	}
	r := s.posts[0]
	s.posts = s.posts[1:]
	s.mu.Unlock()
	r.Queue().ResumePosted(r)
	return true
}

// Run steps until every submitted request is answered. It returns ErrHalted after Halt, and
// ErrStuck when requests stay in service with nothing to do for them.
func (s *Sim) Run() error {
	for {
		for s.Step() {
		}
		if s.halted {
			return ErrHalted
		}
		if s.inService() == 0 {
			return nil
		}
		select {
		case <-s.wake:
		case <-time.After(s.cfg.StuckAfter):
			return fmt.Errorf("%w: %d in service", ErrStuck, s.inService())
		}
	}
}

func (s *Sim) inService() int {
	n := 0
	for _, d := range s.devices {
		n += d.inService()
	}
	return n
}

// Kind is a kind of target I/O.
type Kind uint8

// The kinds of target I/O.
const (
	Read Kind = iota
	Write
	Flush
)

func (k Kind) String() string { return [...]string{"read", "write", "flush"}[k] }

// Event describes one target I/O to hooks.
type Event struct {
	Kind  Kind
	N     int // of this kind, all disks together, from 1
	Disk  *Disk
	Off   int64
	Data  []byte // what is written, or where a read goes; not to be kept
	DSync bool
	After bool  // the I/O has been executed
	Res   int32 // then: bytes moved or a negative errno
}

// Fault says how a target I/O is to go wrong. The zero value lets it be.
type Fault struct {
	Errno syscall.Errno // its result, if not 0
	Short bool          // it moves Bytes bytes and then succeeds, or fails with Errno
	Bytes int
}

// FailNth makes the n-th target I/O of a kind, counted from 1 over all disks, go wrong. It replaces Inject.
func (s *Sim) FailNth(k Kind, n int, f Fault) {
	s.Inject = func(e Event) Fault {
		if e.Kind == k && e.N == n {
			return f
		}
		return Fault{}
	}
}
