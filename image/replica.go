package image

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// State is what a set thinks of a replica.
type State string

// The states of replicas.
const (
	StateReady   State = "ready"   // asked
	StateSlow    State = "slow"    // asked, but seldom: others are several times as fast
	StateDown    State = "down"    // cannot be reached, fails or is silent; tried in the background
	StateLiar    State = "liar"    // gave bytes that were not what they should be; asked only while there is nobody else
	StateRefused State = "refused" // holds other content; looked at again from time to time
)

const (
	// lanes is how many requests a replica is asked for at once.
	lanes = 32
	// maxFails is how many requests in a row may fail before a replica is down.
	maxFails = 3
	// minQuiet is how long a replica may be silent while it is asked, before it is down; quietShare that in multiples of its best answer.
	minQuiet   = 250 * time.Millisecond
	quietShare = 3
	// lastQuiet is minQuiet of a replica that is the only one that is ready: giving it up gains nothing but another connection.
	lastQuiet = time.Second
	// slowShare is in multiples of the fastest replica's latency where a slow one begins.
	slowShare = 4
	// minLatency is what is not told apart from nothing, firstLatency what is assumed of a replica before anything is known.
	minLatency, firstLatency = 100 * time.Microsecond, 10 * time.Millisecond
)

// replica is one place that has, or should have, the content of a set.
type replica struct {
	ref     Ref
	set     *Set
	ctx     context.Context // ends when it is removed
	cancel  context.CancelFunc
	nudged  chan struct{} // its keeper is to look at it
	reading atomic.Int64  // requests to its source under way
	arrived atomic.Int64  // Unix nanoseconds of when it gave anything last, or was asked after it had nothing to do

	// Guarded by the set's mu.
	member  *member // nil until it was opened, and when it has to be again
	state   State
	since   time.Time // of the state
	err     error     // the last one
	fails   int       // in a row
	level   int       // of the back-off
	due     time.Time // of the next probe
	looked  int64     // errands of the set that had begun at the last look
	probed  time.Time // when the last one began
	suspect span      // the chunks that went wrong last, or were asked for last: what a probe reads
	busy    *int      // lanes in use; anew when it is back, because those who asked before may wait for nothing

	latency  time.Duration // moving average
	slow     bool
	recent   samples
	share    rate
	requests int64
	bytes    int64
	failures int64
	hedged   int64
}

// member is the image of a replica while it is open. It is closed when it is retired and nobody uses it.
type member struct {
	im      *Image
	src     Source
	users   int
	retired bool
}

func (m *member) close() error { return errors.Join(m.im.Close(), m.src.Close()) }

func (s *Set) newReplica(ref Ref) *replica {
	r := &replica{ref: ref, set: s, state: StateDown, since: time.Now(), busy: new(int), nudged: make(chan struct{}, 1)}
	r.ctx, r.cancel = context.WithCancel(s.ctx)
	return r
}

// measured is a source that takes down how it does.
type measured struct {
	Source
	r *replica
}

// ReadBlob reads, and takes down how long it took.
func (m measured) ReadBlob(ctx context.Context, blob ocispec.Descriptor, p []byte, off int64) error {
	if m.r.reading.Add(1) == 1 {
		m.r.arrive()
	}
	defer m.r.reading.Add(-1)
	began := time.Now()
	err := m.Source.ReadBlob(ctx, blob, p, off)
	if err == nil {
		m.r.measure(len(p), time.Since(began))
	}
	return err
}

// measure takes down a request.
func (r *replica) measure(n int, took time.Duration) {
	s := r.set
	s.mu.Lock()
	defer s.mu.Unlock()
	r.arrive()
	r.requests++
	r.bytes += int64(n)
	r.recent.add(took)
	s.latency.add(took)
	r.share.add(time.Now())
	if r.latency == 0 {
		r.latency = took
	}
	r.latency += (took - r.latency) / 4
	s.compare(r)
}

// overtaken takes down that somebody else was asked after a time, because a replica was slow. How slow is not known then. mu is held.
func (s *Set) overtaken(r *replica, waited time.Duration) {
	r.hedged++
	r.latency = min(max(r.latency*3/2, waited), unfairWait)
	s.compare(r)
}

// compare takes down whether a replica is several times slower than another one. mu is held.
func (s *Set) compare(r *replica) {
	slow := false
	for _, other := range s.replicas {
		known := r.state == StateReady && other.state == StateReady && other.requests > 0
		slow = slow || known && r.latency > slowShare*max(other.latency, minLatency)
	}
	if slow && !r.slow {
		r.due = time.Now().Add(slowLook)
		r.nudge()
	}
	r.slow = slow
}

// arrive is called when a replica gave something.
func (r *replica) arrive() { r.arrived.Store(time.Now().UnixNano()) }

// quiet is how long a replica may be silent while it is asked for something. The set's mu is held.
func (r *replica) quiet() time.Duration {
	least := lastQuiet
	for _, other := range r.set.replicas {
		if other != r && other.state == StateReady {
			least = minQuiet
		}
	}
	return max(least, quietShare*r.recent.best)
}

// silent reports whether a replica gave nothing to anybody for so long, since it was asked for something, that it has gone. What it gave may take
// long to verify: then there is nothing that it has to give.
func (r *replica) silent(now, asked time.Time) bool {
	since := max(asked.UnixNano(), r.arrived.Load())
	return r.reading.Load() > 0 && time.Duration(now.UnixNano()-since) >= r.quiet()
}

// weight is a replica's chance to be asked: small where it is slow, and where it is busy.
func (r *replica) weight() float64 {
	latency := max(r.latency, minLatency)
	if r.latency == 0 {
		latency = firstLatency
	}
	load := latency.Seconds() * float64(*r.busy+1)
	return 1 / (load * load)
}

// choose picks a replica at random, by weight, and takes a lane of it. Those that were asked are not asked again, unless they came back since. Liars
// are asked while nobody else can be, because they may be right about this chunk. It returns nil where there is nobody. mu is held.
func (s *Set) choose(about span, asked map[*replica]time.Time) *attempt {
	state := StateReady
	if !s.any(StateReady) {
		state = StateLiar
	}
	var fit []*replica
	total := 0.0
	for _, r := range s.replicas {
		when, was := asked[r]
		if r.state == state && r.member != nil && *r.busy < lanes && (!was || r.since.After(when)) {
			fit = append(fit, r)
			total += r.weight()
		}
	}
	if len(fit) == 0 {
		return nil
	}
	at := rand.Float64() * total
	r := fit[len(fit)-1]
	for _, candidate := range fit {
		if at -= candidate.weight(); at < 0 {
			r = candidate
			break
		}
	}
	*r.busy++
	r.member.users++
	return &attempt{r, r.member, r.busy, about, time.Now()}
}

func (s *Set) any(state State) bool {
	for _, r := range s.replicas {
		if r.state == state {
			return true
		}
	}
	return false
}

// release takes down how an attempt ended, and gives its lane back. What was called off says nothing about the replica, unless it lied before.
func (s *Set) release(a *attempt, err error, calledOff bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*a.lanes--
	a.member.users--
	s.retire(a.member, false)
	switch {
	case a.member != a.r.member: // it was removed, or opened anew
	case err == nil:
		s.succeeded(a.r, a.about)
	case !calledOff || errors.Is(err, ErrCorrupt):
		s.failed(a.r, a.about, err)
	}
	s.free.Signal()
}

// retire lets a member be closed when nobody uses it: from now on, or if it was retired before. mu is held.
func (s *Set) retire(m *member, now bool) {
	m.retired = m.retired || now
	if m.retired && m.users == 0 {
		s.work.Go(func() { _ = m.close() })
	}
}

// succeeded, failed and fellSilent are the breaker. mu is held.
func (s *Set) succeeded(r *replica, about span) {
	r.fails = 0
	switch r.state {
	case StateDown:
		s.up(r)
	case StateReady:
		r.suspect = about
	}
}

func (s *Set) failed(r *replica, about span, err error) {
	r.failures++
	r.err, r.suspect = fmt.Errorf("replica %s: %w", r.ref, err), about
	r.fails++
	switch {
	case errors.Is(err, ErrCorrupt):
		s.lied(r)
	case r.state == StateReady && r.fails >= maxFails:
		s.down(r)
	}
}

func (s *Set) fellSilent(r *replica, about span) {
	if r.state != StateReady {
		return
	}
	r.failures++
	r.err, r.suspect = fmt.Errorf("replica %s: gave nothing for %s", r.ref, r.quiet()), about
	s.down(r)
}
