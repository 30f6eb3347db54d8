package ublk

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ReactorConfig configures [Reactors]. Its zero value serves on every CPU that the process may use.
type ReactorConfig struct {
	CPUs      []int // to pin one thread each to; none: those that the process may run on
	Entries   int   // of each ring's submission queue, 64 to 32768; 0 means 4096
	Files     int   // registered files per ring, bounded by RLIMIT_NOFILE; 0 means 4096
	IOWorkers int   // kernel threads per ring for target I/O that blocks; 0 means 32

	// Spin is how long a thread that has just had requests looks for more before it sleeps, because going to sleep and
	// waking costs more than most requests do. It is spent at most once per sleep. 0 means 50 µs, or nothing
	// where there is only one CPU, which who sends requests needs; negative means never.
	Spin time.Duration
}

// defaultSpin is some three times what passes between two requests of a busy device.
const defaultSpin = 50 * time.Microsecond

func (c *ReactorConfig) setDefaults() error {
	var errs []error
	for _, v := range []struct {
		name          string
		value         *int
		unset, lo, hi int
	}{
		{"Entries", &c.Entries, 4096, 64, 32768},
		{"Files", &c.Files, 4096, 1, 1 << 20},
		{"IOWorkers", &c.IOWorkers, 32, 1, 1 << 16},
	} {
		if *v.value == 0 {
			*v.value = v.unset
		}
		if *v.value < v.lo || *v.value > v.hi {
			errs = append(errs, fmt.Errorf("%s of %d is not within %d to %d", v.name, *v.value, v.lo, v.hi))
		}
	}
	cpus, err := allowedCPUs()
	errs = append(errs, err)
	if len(c.CPUs) == 0 {
		c.CPUs = cpus
	}
	if c.Spin == 0 && len(cpus) > 1 {
		c.Spin = defaultSpin
	}
	return errors.Join(errs...)
}

func allowedCPUs() ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("read CPU affinity: %w", err)
	}
	var cpus []int
	for i := 0; len(cpus) < set.Count(); i++ {
		if set.IsSet(i) {
			cpus = append(cpus, i)
		}
	}
	return cpus, nil
}

// Reactors serve the queues of any number of devices: one thread with one ring per CPU, started when its
// first queue comes. Its methods may be called from any goroutine, but not from a Handler: they
// wait for the threads that Handlers run on.
type Reactors struct {
	cfg   ReactorConfig
	epoch time.Time

	mu     sync.Mutex // guards what follows
	byCPU  map[int]*reactor
	closed bool
}

// NewReactors checks the configuration. It starts no thread.
func NewReactors(cfg ReactorConfig) (*Reactors, error) {
	cfg.CPUs = slices.Clone(cfg.CPUs)
	if err := cfg.setDefaults(); err != nil {
		return nil, fmt.Errorf("configure reactors: %w", err)
	}
	return &Reactors{cfg: cfg, epoch: time.Now(), byCPU: make(map[int]*reactor)}, nil
}

// pick returns the reactor for a queue that would like to be served on a CPU.
func (rs *Reactors) pick(cpu int) (*reactor, error) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.closed {
		return nil, ErrReactorsClosed
	}
	if !slices.Contains(rs.cfg.CPUs, cpu) {
		cpu = slices.MinFunc(rs.cfg.CPUs, func(a, b int) int { return rs.load(a) - rs.load(b) })
	}
	re := rs.byCPU[cpu]
	if re == nil {
		var err error
		if re, err = startReactor(cpu, &rs.cfg, rs.epoch); err != nil {
			return nil, err
		}
		rs.byCPU[cpu] = re
	}
	return re, nil
}

// load is how many queues a CPU's reactor serves, known exactly enough to spread queues.
func (rs *Reactors) load(cpu int) int {
	if re := rs.byCPU[cpu]; re != nil {
		return int(re.attached.Load())
	}
	return 0
}

func (rs *Reactors) running() []*reactor {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	var all []*reactor
	for _, cpu := range rs.cfg.CPUs {
		if re := rs.byCPU[cpu]; re != nil && !slices.Contains(all, re) {
			all = append(all, re)
		}
	}
	return all
}

// Stats returns the counters of every running reactor, each read on its own thread.
func (rs *Reactors) Stats() ([]ReactorStats, error) {
	var all []ReactorStats
	for _, re := range rs.running() {
		err := re.call(func() error {
			st := re.stats
			st.Queues = int(re.attached.Load())
			all = append(all, st)
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("read statistics: %w", err)
		}
	}
	return all, nil
}

// Close ends the threads and closes their rings. It refuses with ErrServing while a queue is
// neither ended nor drained. Closing twice is harmless.
func (rs *Reactors) Close() error {
	all := rs.running()
	for _, re := range all {
		// Asked of all before any ends: half-closed reactors could serve nobody.
		err := re.call(re.mayExit)
		if err != nil && !errors.Is(err, ErrReactorsClosed) {
			return err
		}
	}
	rs.mu.Lock()
	rs.closed = true
	rs.mu.Unlock()
	for _, re := range all {
		if err := re.call(re.exit); err != nil && !errors.Is(err, ErrReactorsClosed) {
			return err
		}
		<-re.stopped
		re.ended.Do(re.tearDown)
	}
	return nil
}
