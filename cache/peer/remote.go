package peer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"coppice/cache"
)

// State is what a client thinks of a peer.
type State string

// The states of peers. All but the first are not asked.
const (
	StateReady State = "ready"
	StateDown  State = "down" // cannot be reached, breaks connections, is silent, or answers what makes no sense
	StateSlow  State = "slow" // did not have a chunk in time, though it was not silent
	StateLiar  State = "liar" // gave bytes that were not what they should be
	StateSelf  State = "self" // is this node
)

const (
	// lanes is how many requests a peer is asked for at once.
	lanes = 32
	// busyTime is for how long a peer is not asked that has too much to do.
	busyTime = 100 * time.Millisecond
	// A peer that was put aside is tried after minAside, then twice as long each time, up to maxAside; a liar likewise.
	minAside, maxAside = 250 * time.Millisecond, 30 * time.Second
	minLiar, maxLiar   = 10 * time.Second, 10 * time.Minute
	// goodTime is for how long a peer has to be good for what was before to be forgotten.
	goodTime = time.Minute
)

var errRemoved = fmt.Errorf("the peer is not in the list any more: %w", ErrAside)

// remote is a peer.
type remote struct {
	url   string
	seed  uint64
	c     *Client
	lanes chan struct{}
	life  context.Context // ends when it is not in the list any more, or the client is closed
	ended context.CancelFunc

	// Guarded by the client's mu.
	state  State
	since  time.Time // of the state
	err    error     // the last one
	level  int       // of the back-off
	busy   time.Time // it is not asked before
	roots  roots
	ctx    context.Context // ends when it is put aside; anew when it is back
	cancel context.CancelCauseFunc
	count  counts
}

// counts is what became of requests.
type counts struct {
	requests, hits, misses, errors, busy, lies, bytes int64
	latency                                           time.Duration // moving average of hits
}

// suspect is what a peer went wrong about.
type suspect struct {
	chunk cache.Chunk
	held  bool
}

func (c *Client) newRemote(url string) *remote {
	r := &remote{url: url, seed: seedOf(url), c: c, lanes: make(chan struct{}, lanes), state: StateReady, since: time.Now(), roots: roots{}}
	r.life, r.ended = context.WithCancel(c.ctx)
	r.ctx, r.cancel = context.WithCancelCause(r.life)
	return r
}

// removed ends what concerns a peer that was taken off the list. mu is held.
func (r *remote) removed() {
	r.cancel(errRemoved)
	r.ended()
}

// usable reports whether a peer can be asked. mu is held.
func (r *remote) usable() bool { return r.state == StateReady && !time.Now().Before(r.busy) }

// ask asks the peer for a chunk, and takes down how that went. held asks for what it has already.
func (r *remote) ask(ctx context.Context, chunk cache.Chunk, p []byte, held bool) error {
	alive, self := r.begin()
	select {
	case r.lanes <- struct{}{}:
		defer func() { <-r.lanes }()
	case <-ctx.Done():
		return fmt.Errorf("%d requests are under way: %w", lanes, ErrBusy)
	case <-alive.Done():
		return context.Cause(alive)
	}
	began := time.Now()
	err := r.c.web.get(ctx, alive, r.c.o.Silence, r.request(chunk, held, self), p)
	gone := ctx.Err() != nil && !errors.Is(context.Cause(ctx), ErrSlow)
	r.finish(alive, suspect{chunk, held}, err, time.Since(began), gone)
	return err
}

func (r *remote) request(chunk cache.Chunk, held bool, self string) request {
	return request{url: r.url + target(chunk, held), id: r.c.o.ID, self: self}
}

// begin returns what ends when the peer is put aside, and what this node is called.
func (r *remote) begin() (alive context.Context, self string) {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	r.count.requests++
	if _, isPeer := r.c.self(); isPeer {
		self = r.c.selfURL
	}
	return r.ctx, self
}

// finish takes down what a request came to. Where the peer was put aside meanwhile, which alive tells, an error is nothing new; gone says that who asked does not
// wait any more: then it is not the peer's.
func (r *remote) finish(alive context.Context, about suspect, err error, took time.Duration, gone bool) {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	switch {
	case err == nil:
		r.hit(about, took)
	case isMiss(err):
		r.count.misses++
		r.heard(about, false)
	case errors.Is(err, errSelf):
		r.isSelf()
	case alive.Err() != nil || gone:
	case errors.Is(err, ErrBusy):
		r.count.busy++
		r.busy = time.Now().Add(busyTime)
	case errors.Is(err, ErrSlow):
		if r.count.errors++; took >= r.c.o.Patience/2 { // else somebody before it took the time
			r.aside(StateSlow, about, err)
		}
	default:
		r.count.errors++
		r.aside(StateDown, about, err)
		r.cancel(ErrAside)
	}
}

// hit takes down an answer. mu is held.
func (r *remote) hit(about suspect, took time.Duration) {
	r.count.hits++
	r.count.bytes += int64(about.chunk.Len)
	if r.count.latency == 0 {
		r.count.latency = took
	}
	r.count.latency += (took - r.count.latency) / 4
	r.heard(about, true)
	r.c.given.Add(about.chunk.Key, giver{r, about.held})
	if r.state == StateReady && time.Since(r.since) > goodTime {
		r.level = 0
	}
}

// heard takes down whether the peer has an image open, if it was asked that. mu is held.
func (r *remote) heard(about suspect, open bool) {
	if !about.held {
		r.roots.learn(about.chunk.Root, open)
	}
}

// isSelf takes down that the peer is this node, under a name that it did not know. mu is held.
func (r *remote) isSelf() {
	if r.state == StateSelf {
		return
	}
	r.state, r.since = StateSelf, time.Now()
	r.c.selfURL = r.url
	r.c.o.Log.Info("this node is in the list of peers", "self", r.url)
}

// lied takes down that what the peer gave was wrong. mu is held.
func (r *remote) lied(about suspect) {
	r.count.lies++
	r.aside(StateLiar, about, fmt.Errorf("chunk %s of it was not that", about.chunk.Key))
	r.cancel(ErrAside)
}

// aside sees to it that a peer is not asked until it is right about what it went wrong about. mu is held.
func (r *remote) aside(state State, about suspect, err error) {
	r.err = err
	if r.state != StateReady || r.life.Err() != nil {
		return
	}
	r.state, r.since = state, time.Now()
	level := slog.LevelWarn
	if state == StateLiar {
		level = slog.LevelError // only people can find out what is wrong with it
	}
	r.c.o.Log.Log(r.life, level, "peer put aside", "peer", r.url, "state", state, "error", err)
	r.c.work.Go(func() { r.nurse(state, about) })
}

// nurse tries a peer until it is good again.
func (r *remote) nurse(was State, about suspect) {
	for {
		select {
		case <-time.After(r.wait(was)):
		case <-r.life.Done():
			return
		}
		if err := r.probe(about); err == nil {
			r.back()
			return
		} else if r.life.Err() == nil {
			r.stays(err)
		}
	}
}

// wait returns how long it takes until the next try, give or take a quarter, so that nodes do not come all at once.
func (r *remote) wait(was State) time.Duration {
	least, most := minAside, maxAside
	if was == StateLiar {
		least, most = r.c.o.liar, maxLiar
	}
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	d := most
	if r.level < 20 {
		d = min(least<<r.level, most)
	}
	r.level++
	return time.Duration(float64(d) * (0.75 + rand.Float64()/2))
}

// probe asks for what a peer was wrong about. One that says that it does not have it is right about that.
func (r *remote) probe(about suspect) error {
	ctx, cancel := context.WithTimeoutCause(r.life, r.c.o.Patience, ErrSlow)
	defer cancel()
	p := make([]byte, about.chunk.Len)
	err := r.c.web.get(ctx, r.life, r.c.o.Silence, r.request(about.chunk, about.held, ""), p)
	switch {
	case isMiss(err):
		return nil
	case err == nil && sha256.Sum256(p) != about.chunk.Key:
		return fmt.Errorf("chunk %s of it is not that", about.chunk.Key)
	}
	return err
}

func (r *remote) back() {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	if r.life.Err() != nil {
		return
	}
	r.c.o.Log.Info("peer is back", "peer", r.url, "was", r.state, "for", time.Since(r.since).Round(time.Millisecond))
	r.state, r.since = StateReady, time.Now()
	r.ctx, r.cancel = context.WithCancelCause(r.life)
}

func (r *remote) stays(err error) {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	r.err = err
}
