package node

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"coppice/union"
)

// How fast a store is read in the background where nothing else is configured: once a week, within these bounds in bytes a second.
const (
	DefaultScrubRate = 16 << 20
	leastScrubRate   = 256 << 10
	scrubPeriod      = 7 * 24 * time.Hour
	// scrubDelay keeps the first pass away from the start of the devices.
	scrubDelay = 5 * time.Minute
)

// ScrubRequest asks for a store that the daemon has open to be read all over now, or only how far that is.
type ScrubRequest struct {
	Store  string `json:"store"` // absolute path
	Status bool   `json:"status"`
}

// ScrubReport tells how far a scrub is, and what it found.
type ScrubReport struct {
	Store string `json:"store"`
	union.ScrubStatus
	Complete bool `json:"complete"` // the pass that was asked for came to its end
}

// scrubber reads an open store over and over, slowly, and at once where somebody asks for it.
type scrubber struct {
	st     *union.Store
	rate   *int64
	log    *slog.Logger
	cancel context.CancelFunc
	ended  chan struct{}
	wake   chan struct{}

	mu      sync.Mutex         // guards what follows
	asked   *scrubPass         // to be done next
	running *scrubPass         // of those that were asked for
	quit    context.CancelFunc // ends a pass in the background
}

// scrubPass is one pass that somebody asked for.
type scrubPass struct {
	ended chan struct{}
	err   error // once ended is closed
}

func startScrubber(st *union.Store, rate *int64, log *slog.Logger) *scrubber {
	ctx, cancel := context.WithCancel(context.Background())
	s := &scrubber{st: st, rate: rate, log: log.With("store", st.Path()), cancel: cancel, ended: make(chan struct{}), wake: make(chan struct{}, 1)}
	go s.work(ctx)
	return s
}

// stop ends a pass under way.
func (s *scrubber) stop() {
	s.cancel()
	<-s.ended
}

// ask returns a pass that begins now, or that somebody else has asked for already.
func (s *scrubber) ask() *scrubPass {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running != nil {
		return s.running
	}
	if s.asked == nil {
		s.asked = &scrubPass{ended: make(chan struct{})}
		if s.quit != nil {
			s.quit()
		}
		s.wake <- struct{}{}
	}
	return s.asked
}

func (s *scrubber) work(ctx context.Context) {
	defer close(s.ended)
	timer := time.NewTimer(scrubDelay)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			s.giveUp(ctx.Err())
			return
		case <-s.wake:
			s.once(ctx)
			timer.Reset(scrubPeriod)
		case <-timer.C:
			timer.Reset(scrubPeriod)
			s.slowly(ctx)
		}
	}
}

// giveUp ends a pass that was asked for and did not begin.
func (s *scrubber) giveUp(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked != nil {
		s.asked.err = err
		close(s.asked.ended)
		s.asked = nil
	}
}

// once does what was asked for, as fast as the devices let it.
func (s *scrubber) once(ctx context.Context) {
	s.mu.Lock()
	p := s.asked
	s.asked, s.running = nil, p
	s.mu.Unlock()
	p.err = s.pass(ctx, 0)
	s.mu.Lock()
	s.running = nil
	s.mu.Unlock()
	close(p.ended)
}

// slowly is a pass in the background. One that somebody asks for takes its place.
func (s *scrubber) slowly(ctx context.Context) {
	rate := s.backgroundRate()
	if rate == 0 {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	s.quit = cancel
	if s.asked != nil {
		cancel()
	}
	s.mu.Unlock()
	err := s.pass(ctx, rate)
	s.mu.Lock()
	s.quit = nil
	s.mu.Unlock()
	if err != nil && ctx.Err() == nil {
		s.log.Error("scrub failed", "error", oneLine(err))
	}
}

func (s *scrubber) backgroundRate() int64 {
	if s.rate != nil {
		return *s.rate
	}
	info := s.st.Info()
	return min(max((info.SlotBytes-info.FreeBytes)/int64(scrubPeriod.Seconds()), leastScrubRate), DefaultScrubRate)
}

// pass reads the store once and logs what it finds.
func (s *scrubber) pass(ctx context.Context, rate int64) error {
	began := time.Now()
	damaged := 0
	err := s.st.Scrub(ctx, union.ScrubOptions{BytesPerSecond: rate}, func(p union.Problem, layer string) {
		log := s.log.With("structure", p.Structure, "offset", p.Offset, "detail", p.Detail)
		if layer != "" {
			log = log.With("layer", layer)
		}
		if p.Repairable {
			log.Warn("damage found and mended")
			return
		}
		damaged++
		log.Error("DAMAGE FOUND: reads of it fail; write it anew, or restore it from a backup")
	})
	if err == nil {
		s.log.Info("store scrubbed", "bytes", s.st.ScrubStatus().LastBytes, "damaged", damaged, "seconds", int(time.Since(began).Seconds()))
	}
	return err
}

// Scrub has a store read all over, and tells the progress until the end, or ctx ends, which does not end the pass.
func (d *Daemon) Scrub(ctx context.Context, r ScrubRequest, emit func(ScrubReport) error) error {
	if !filepath.IsAbs(r.Store) {
		return fail(CodeBadRequest, "give an absolute path", "leaf store %q is not an absolute path", r.Store)
	}
	if err := d.begin(ctx); err != nil {
		return err
	}
	defer d.ops.Done()
	st, err := d.stores.joinOpen(r.Store)
	if err != nil {
		return err
	}
	defer func() { _ = d.stores.release(st) }() // its last device has closed it well, or says so
	report := func(complete bool) ScrubReport {
		return ScrubReport{Store: r.Store, ScrubStatus: st.ScrubStatus(), Complete: complete}
	}
	if r.Status {
		return emit(report(false))
	}
	p := st.scrubber.ask()
	const every = 200 * time.Millisecond
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-d.quit.Done():
			return fail(CodeStopping, "try again when it has been started again", "the daemon is stopping")
		case <-p.ended:
			if p.err != nil {
				return p.err
			}
			return emit(report(true))
		case <-tick.C:
			if err := emit(report(false)); err != nil {
				return clientGone(err)
			}
		}
	}
}

// joinOpen adds a user to a store that is open.
func (s *stores) joinOpen(path string) (*sharedStore, error) {
	key, err := keyOf(path)
	if err != nil {
		return nil, err
	}
	st := s.join(key)
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.Store == nil {
		s.leave(st)
		return nil, fail(CodeBadRequest, "coppice store check "+path+" reads a store that no device uses", "no device uses %s", path)
	}
	return st, nil
}
