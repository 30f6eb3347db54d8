package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"
)

const (
	// minBackOff doubles with every probe that fails, up to maxBackOff, or starvingBackOff where somebody waits for any replica at all.
	minBackOff, maxBackOff = 100 * time.Millisecond, 10 * time.Second
	starvingBackOff        = 500 * time.Millisecond
	// steadyTime is how long a replica is ready before its back-off begins anew.
	steadyTime = 10 * time.Second
	// slowLook is how often a slow replica is measured in the background, refusedLook how often one with other content is looked at again.
	slowLook    = 500 * time.Millisecond
	refusedLook = time.Minute
	// liarRest is how long a liar is not asked while there is somebody else. Only people can know what is wrong with it, and they can remove it and add it
	// again when it is mended; but nothing wrong gets past the digests, so one that was mended and forgotten may come back when it is right
	// about what it lied about.
	liarRest = time.Hour
	// openTime bounds the opening of a replica, probeTime a probe; a replica that is far away has probeShare of its best answers.
	openTime   = time.Minute
	probeTime  = time.Second
	probeShare = 4
	// never is a time at which nothing is done.
	never = 365 * 24 * time.Hour
)

// tend looks after a replica until it is removed: it opens it, and probes it while it is not as it should be, so that no reader pays for it.
func (s *Set) tend(r *replica) {
	for {
		timer := time.NewTimer(s.untilProbe(r))
		select {
		case <-r.ctx.Done():
			timer.Stop()
			return
		case <-r.nudged:
			timer.Stop()
		case <-timer.C:
			s.look(r)
		}
	}
}

// look probes a replica. A slow one is only measured while the set is read.
func (s *Set) look(r *replica) {
	s.mu.Lock()
	r.probed = time.Now()
	r.due = r.probed.Add(slowLook)
	idle := r.state == StateReady && r.looked == s.begun
	r.looked = s.begun
	s.mu.Unlock()
	if !idle {
		s.probe(r)
	}
}

// nudge lets a replica's keeper look at it.
func (r *replica) nudge() {
	select {
	case r.nudged <- struct{}{}:
	default:
	}
}

// untilProbe is how long a replica is left alone.
func (s *Set) untilProbe(r *replica) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case r.state == StateReady && !r.slow:
		return never
	case r.state == StateDown && s.starving():
		return min(time.Until(r.due), time.Until(r.probed.Add(starvingBackOff)))
	}
	return time.Until(r.due)
}

// starving reports whether somebody waits and no replica is ready. mu is held.
func (s *Set) starving() bool { return s.errands > 0 && !s.any(StateReady) }

// nudgeIfStarving lets all replicas be probed soon where nobody else can be asked. mu is held.
func (s *Set) nudgeIfStarving() {
	if s.starving() {
		for _, r := range s.replicas {
			r.nudge()
		}
	}
}

// probe finds out whether a replica is what it should be.
func (s *Set) probe(r *replica) {
	s.mu.Lock()
	m, about := r.member, r.suspect
	limit := max(probeTime, probeShare*r.recent.best)
	if m != nil {
		m.users++
	}
	s.mu.Unlock()
	if m == nil {
		s.open(r)
		return
	}
	ctx, cancel := context.WithTimeout(r.ctx, limit)
	defer cancel()
	err := m.im.prove(ctx, about)
	s.mu.Lock()
	defer s.mu.Unlock()
	m.users--
	s.retire(m, false)
	if r.member == m && r.ctx.Err() == nil {
		s.proved(r, about, err)
	}
}

// prove reads what a reader needs of a replica: the config, which shows whether it answers, and some chunks.
func (im *Image) prove(ctx context.Context, some span) error {
	if _, err := im.fetchConfig(ctx); err != nil {
		return err
	}
	_, err := im.load(ctx, some)
	return err
}

// proved takes down what a probe found. mu is held.
func (s *Set) proved(r *replica, about span, err error) {
	if err == nil {
		if r.fails = 0; r.state != StateReady {
			s.up(r)
		}
		return
	}
	s.failed(r, about, err)
	if r.state == StateLiar {
		r.due = time.Now().Add(liarRest)
		return
	}
	if errors.Is(err, ErrNotFound) { // it may have been packed anew
		s.retire(r.member, true)
		r.member = nil
	}
	s.down(r)
}

// up, down, lied and refused change a replica's state. mu is held.
func (s *Set) up(r *replica) {
	if r.err != nil {
		s.tell(slog.LevelInfo, "replica is read from again", r, "after", time.Since(r.since).Round(time.Millisecond))
	}
	r.state, r.since, r.fails, r.busy = StateReady, time.Now(), 0, new(int)
	s.compare(r)
	s.free.Broadcast()
}

func (s *Set) down(r *replica) {
	if r.state == StateReady && time.Since(r.since) > steadyTime {
		r.level = 0
	}
	if r.state != StateDown {
		s.tell(slog.LevelWarn, "replica is not read from until it answers again", r, "error", r.err)
		r.state, r.since = StateDown, time.Now()
	}
	s.postpone(r)
	s.nudgeIfStarving()
	s.free.Broadcast() // liars may be all that is left
}

// tell writes to the log, which may take its time.
func (s *Set) tell(level slog.Level, what string, r *replica, key string, value any) {
	s.work.Go(func() { s.o.Log.Log(context.Background(), level, what, "replica", r.ref.String(), key, value) })
}

// postpone sets the time of the next probe. mu is held.
func (s *Set) postpone(r *replica) {
	wait := min(minBackOff<<r.level, maxBackOff)
	if wait < maxBackOff && !s.starving() { // many probes in a short time say no more than one
		r.level++
	}
	r.due = time.Now().Add(wait/2 + rand.N(wait))
	r.nudge()
}

func (s *Set) lied(r *replica) {
	if r.state != StateLiar {
		r.due = time.Now().Add(liarRest)
		s.tell(slog.LevelError, "replica gave wrong bytes, which were noticed, and is not read from while there is another; when it is mended, remove it and add it again",
			r, "error", r.err)
		r.state, r.since = StateLiar, time.Now()
	}
	r.nudge()
	s.nudgeIfStarving()
	s.free.Broadcast()
}

func (s *Set) refused(r *replica, got Digest) {
	r.err = fmt.Errorf("replica %s: has content %s, and the others have %s: %w", r.ref, got, s.root, ErrOther)
	r.due = time.Now().Add(refusedLook)
	if r.state != StateRefused {
		s.tell(slog.LevelWarn, "replica has other content, and is not read from", r, "error", r.err)
		r.state, r.since = StateRefused, time.Now()
	}
	r.nudge()
}

// open opens a replica, and lets it join.
func (s *Set) open(r *replica) { s.openKnowing(r, nil) }

// openKnowing is open with some metadata that the replica is not asked for.
func (s *Set) openKnowing(r *replica, known map[Digest][]byte) {
	ctx, cancel := context.WithTimeout(r.ctx, openTime)
	defer cancel()
	m, err := s.openMember(ctx, r, known)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil:
		s.join(r, m)
	case r.ctx.Err() == nil:
		if r.failures++; r.err == nil {
			s.tell(slog.LevelWarn, "replica cannot be opened, and is tried again", r, "error", err)
		}
		r.err = fmt.Errorf("replica %s: %w", r.ref, err)
		s.down(r)
	}
}

// openMember opens the image that a replica's reference means.
func (s *Set) openMember(ctx context.Context, r *replica, known map[Digest][]byte) (*member, error) {
	o := s.o.Source
	o.arrived = r.arrive
	src, err := s.o.source(r.ref, o)
	if err != nil {
		return nil, err
	}
	im, err := r.ref.open(ctx, knowing{measured{src, r}, known})
	if err != nil {
		return nil, errors.Join(err, src.Close())
	}
	im.src = measured{src, r}
	im.slots = nil // the replica's lanes bound them
	return &member{im: im, src: src}, nil
}

// join takes an image for a replica where it has the content of the set. mu is held.
func (s *Set) join(r *replica, m *member) {
	switch {
	case r.ctx.Err() != nil:
		s.retire(m, true)
	case s.root == Digest{}: // it will be decided
		r.member = m
	case m.im.ContentRoot() != s.root:
		s.retire(m, true)
		s.refused(r, m.im.ContentRoot())
	default:
		r.member = m
		s.up(r)
	}
}

// Add lets a replica join, which has to have the content of the set now. It fails with [ErrExists] where it is one already, and with [ErrOther] where it has other
// content.
func (s *Set) Add(ctx context.Context, ref Ref) error {
	fail := func(err error) error { return fmt.Errorf("add replica %s: %w", ref, err) }
	r := s.newReplica(ref)
	m, err := s.openMember(ctx, r, nil)
	if err != nil {
		r.cancel()
		return fail(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.find(ref.String()) != nil:
		err = ErrExists
	case m.im.ContentRoot() != s.root:
		err = fmt.Errorf("has content %s, and the others have %s: %w", m.im.ContentRoot(), s.root, ErrOther)
	}
	if err != nil {
		r.cancel()
		s.retire(m, true)
		return fail(err)
	}
	s.replicas = append(s.replicas, r)
	s.join(r, m)
	s.work.Go(func() { s.tend(r) })
	return nil
}

// AddLater takes a reference that is believed to have the content without looking at it: it joins when it has been opened and has, as those that
// [OpenSet] could not reach do. It fails with [ErrExists] where it is a replica already.
func (s *Set) AddLater(ref Ref) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.find(ref.String()) != nil {
		return fmt.Errorf("add replica %s: %w", ref, ErrExists)
	}
	r := s.newReplica(ref)
	s.replicas = append(s.replicas, r)
	s.work.Go(func() { s.tend(r) })
	return nil
}

// Remove ends the use of a replica. Reads of it that are under way end well. It fails with [ErrNotFound] where there is no such replica, and with [ErrLast]
// where no other one has shown that it has the content.
func (s *Set) Remove(ref string) error {
	fail := func(err error) error { return fmt.Errorf("remove replica %s: %w", ref, err) }
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.find(ref)
	if r == nil {
		return fail(ErrNotFound)
	}
	var rest []*replica
	open := 0
	for _, other := range s.replicas {
		if other == r {
			continue
		}
		if rest = append(rest, other); other.member != nil {
			open++
		}
	}
	if open == 0 {
		return fail(fmt.Errorf("nothing else is known to have the content: %w", ErrLast))
	}
	s.replicas = rest
	r.cancel()
	r.state = StateDown
	if m := r.member; m != nil {
		r.member = nil
		s.retire(m, true)
	}
	s.nudgeIfStarving()
	s.free.Broadcast()
	return nil
}

// find returns the replica of a reference, or nil. mu is held.
func (s *Set) find(ref string) *replica {
	for _, r := range s.replicas {
		if r.ref.String() == ref {
			return r
		}
	}
	return nil
}
