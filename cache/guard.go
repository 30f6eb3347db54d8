package cache

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// A tier that did not answer in time so often in a row is put aside, for leastAside at first, and twice as long each time up to mostAside. Then one read
	// tries it.
	silences   = 3
	leastAside = time.Second
	mostAside  = 30 * time.Second

	// What others have without a fetch they give sooner: in one part of the limit in heldShare.
	heldShare = 4

	// mostAbandoned bounds the calls of a tier that were given up and have not returned. A disk that hangs holds a thread for each.
	mostAbandoned = 64
)

// guard is a tier as reads use it. It bounds how long the tier may take, verifies what it gives, and counts. A nil guard has nothing.
type guard struct {
	name  string
	tier  Tier
	limit time.Duration // of one Get
	log   *slog.Logger

	counts    *tierCounts
	abandoned atomic.Int64

	mu       sync.Mutex // guards what follows
	silent   int        // calls in a row that did not answer in time
	aside    time.Duration
	asideTil time.Time
}

func newGuard(name string, t Tier, limit time.Duration, counts *tierCounts, log *slog.Logger) *guard {
	if t == nil {
		return nil
	}
	return &guard{name: name, tier: t, limit: limit, counts: counts, log: log}
}

// getter is a tier's Get or Held.
type getter func(ctx context.Context, c Chunk, p []byte) error

// get returns a verified chunk, or nil where the tier is of no use.
func (g *guard) get(ctx context.Context, c Chunk) []byte {
	if g == nil {
		return nil
	}
	return g.take(ctx, c, g.limit, g.tier.Get)
}

// held returns a verified chunk that others have without a fetch, or nil.
func (g *guard) held(ctx context.Context, c Chunk) []byte {
	if g == nil {
		return nil
	}
	h, ok := g.tier.(Holder)
	if !ok {
		return nil
	}
	return g.take(ctx, c, g.limit/heldShare, h.Held)
}

func (g *guard) take(ctx context.Context, c Chunk, limit time.Duration, get getter) []byte {
	if ctx.Err() != nil {
		return nil
	}
	if !g.admit() {
		g.counts.skipped.Add(1)
		return nil
	}
	began := time.Now()
	content, err := g.call(ctx, c, limit, get)
	g.counts.latency.add(time.Since(began))
	switch {
	case err == nil && Key(sha256.Sum256(content)) == c.Key:
		g.answered()
		g.counts.hits.Add(1)
		g.counts.bytes.Add(uint64(len(content)))
		return content
	case err == nil:
		g.counts.rejected.Add(1)
		g.log.Warn("tier of the cache gave something else than the chunk", "tier", g.name, "chunk", c.Key)
		g.tier.Reject(c)
	case errors.Is(err, ErrMiss):
		g.answered()
		g.counts.misses.Add(1)
	case ctx.Err() != nil: // nobody waits any more
	default:
		g.counts.errors.Add(1)
		if errors.Is(err, context.DeadlineExceeded) {
			g.counts.timeouts.Add(1)
			g.fellSilent()
		}
	}
	return nil
}

// call asks the tier in a goroutine, so that one that hangs can be left alone with the buffer that it may still fill.
func (g *guard) call(ctx context.Context, c Chunk, limit time.Duration, get getter) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	content := make([]byte, c.Len)
	ended := make(chan error, 1)
	g.abandoned.Add(1)
	go func() {
		defer g.abandoned.Add(-1)
		ended <- get(ctx, c, content)
	}()
	select {
	case err := <-ended:
		if err != nil && ctx.Err() != nil {
			err = ctx.Err()
		}
		return content, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// admit reports whether the tier may be asked.
func (g *guard) admit() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.aside == 0 {
		return true
	}
	now := time.Now()
	if now.Before(g.asideTil) || g.abandoned.Load() >= mostAbandoned {
		return false
	}
	g.asideTil = now.Add(g.aside) // others wait for what this one finds
	return true
}

func (g *guard) answered() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.aside != 0 {
		g.log.Info("tier of the cache answers again", "tier", g.name)
	}
	g.silent, g.aside = 0, 0
}

func (g *guard) fellSilent() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.silent++; g.silent < silences && g.aside == 0 {
		return
	}
	if g.aside == 0 {
		g.log.Warn("tier of the cache does not answer, and is put aside", "tier", g.name)
	}
	g.aside = min(max(2*g.aside, leastAside), mostAside)
	g.asideTil = time.Now().Add(g.aside)
}

// put offers a chunk.
func (g *guard) put(c Chunk, content []byte) {
	if g != nil {
		g.tier.Put(c, content)
	}
}

// isAside reports whether the tier is put aside.
func (g *guard) isAside() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.aside != 0
}
