package image

import (
	"context"
	"time"
)

const (
	// Of requests, hedgeShare may be made twice because the first replica is slow, and hedgeBurst at once.
	hedgeShare = 0.1
	hedgeBurst = 10
	// minHedge and maxHedge bound how long a replica is given alone. Between them it is a little more than the 95th percentile of all requests.
	minHedge, maxHedge = 2 * time.Millisecond, 250 * time.Millisecond
	// hedgeCheck is how often it is looked for somebody else to ask after that.
	hedgeCheck = 20 * time.Millisecond
	// unfairWait is how long a request may take at a replica that answers others, before somebody else is asked whatever it costs.
	unfairWait = time.Second
	// minPause and maxPause lie between two rounds of asking all replicas.
	minPause, maxPause = 20 * time.Millisecond, time.Second
)

// attempt is one replica's doing of an errand.
type attempt struct {
	r      *replica
	member *member
	lanes  *int // one of which it holds
	about  span
	began  time.Time
}

// outcome is what became of an attempt.
type outcome[T any] struct {
	a     *attempt
	value T
	err   error
}

// errand is something that several replicas may be asked for.
type errand[T any] struct {
	s        *Set
	about    span // the chunks
	do       func(context.Context, *Image) (T, error)
	ctx      context.Context // ends when one has done it
	outcomes chan outcome[T]
	out      []*attempt             // under way
	asked    map[*replica]time.Time // when, in this round
}

// ask lets replicas do something until one of them has done it. It ends with its context, and in no other way. What is slow is called off
// when somebody else was faster.
func ask[T any](ctx context.Context, s *Set, about span, do func(context.Context, *Image) (T, error)) (v T, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	s.begin()
	defer s.end()
	e := errand[T]{s: s, about: about, do: do, ctx: ctx, outcomes: make(chan outcome[T])}
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		a, err := s.acquire(ctx, about)
		if err != nil {
			return v, err
		}
		if v, ok := e.round(a); ok {
			return v, nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return v, ctx.Err()
		}
	}
}

// round asks one replica after the other where they fail, and more than one at a time where they are slow, until one has done it or all have failed.
func (e *errand[T]) round(a *attempt) (v T, ok bool) {
	e.out, e.asked = nil, map[*replica]time.Time{}
	timer := time.NewTimer(e.s.alone())
	defer timer.Stop()
	for e.start(a); len(e.out) > 0; {
		select {
		case o := <-e.outcomes:
			if o.err == nil {
				return o.value, true
			}
			e.drop(o.a)
			e.start(e.s.another(e.about, e.asked))
		case <-timer.C:
			e.start(e.s.takeOver(e.out, e.asked))
			timer.Reset(hedgeCheck)
		case <-e.ctx.Done():
			return v, false
		}
	}
	return v, false
}

// start begins an attempt, if there is one to begin.
func (e *errand[T]) start(a *attempt) {
	if a == nil {
		return
	}
	e.out = append(e.out, a)
	e.asked[a.r] = a.began
	e.s.work.Go(func() {
		v, err := e.do(e.ctx, a.member.im)
		e.s.release(a, err, e.ctx.Err() != nil)
		select {
		case e.outcomes <- outcome[T]{a, v, err}:
		case <-e.ctx.Done():
		}
	})
}

func (e *errand[T]) drop(a *attempt) {
	for i := range e.out {
		if e.out[i] == a {
			e.out = append(e.out[:i:i], e.out[i+1:]...)
			return
		}
	}
}

func (s *Set) begin() {
	s.mu.Lock()
	s.errands++
	s.begun++
	s.mu.Unlock()
}

func (s *Set) end() {
	s.mu.Lock()
	s.errands--
	s.mu.Unlock()
}

// alone is how long one replica is given before it is looked for another.
func (s *Set) alone() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hedgeAfter()
}

// hedgeAfter is called with mu held.
func (s *Set) hedgeAfter() time.Duration {
	return min(max(s.latency.p95*5/4, minHedge), maxHedge)
}

// acquire waits until a replica can take one more request.
func (s *Set) acquire(ctx context.Context, about span) (*attempt, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hedges = min(s.hedges+hedgeShare, hedgeBurst)
	if a := s.choose(about, nil); a != nil {
		return a, nil
	}
	defer context.AfterFunc(ctx, func() {
		s.mu.Lock()
		s.free.Broadcast()
		s.mu.Unlock()
	})()
	for ctx.Err() == nil {
		if a := s.choose(about, nil); a != nil {
			return a, nil
		}
		s.nudgeIfStarving()
		s.free.Wait()
	}
	s.free.Signal() // which may have been meant for another
	return nil, ctx.Err()
}

// another returns an attempt at a replica that was not asked yet, or is back since it was, if one can take it now.
func (s *Set) another(about span, asked map[*replica]time.Time) *attempt {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.choose(about, asked)
}

// takeOver returns an attempt at another replica where it is time for one: the last one asked is slow and it may be hedged, or it is silent.
func (s *Set) takeOver(out []*attempt, asked map[*replica]time.Time) *attempt {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	silent := 0
	for _, a := range out {
		if a.r.silent(now, a.began) {
			s.fellSilent(a.r, a.about)
			silent++
		}
	}
	last := out[len(out)-1]
	waited := now.Sub(last.began)
	price := 1.0
	switch {
	case silent == len(out) || waited >= unfairWait:
		price = 0
	case waited < s.hedgeAfter() || s.hedges < price:
		return nil
	}
	a := s.choose(last.about, asked)
	if a != nil && silent < len(out) {
		s.hedges -= price
		s.overtaken(last.r, waited)
	}
	return a
}
