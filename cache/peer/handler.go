package peer

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"coppice/cache"
	"coppice/image"
)

// Local is what a node has for others, such as a [cache.Cache]. It is safe for concurrent use.
type Local interface {
	// Serve fills p, which is as long as the chunk, from what is here, or from the origin where an image with the chunk's root is open here. It
	// fails with [cache.ErrMiss] where it cannot. A chunk of the zero root is not fetched, nor is it waited for.
	Serve(ctx context.Context, c cache.Chunk, p []byte) error
}

// NewID returns what tells a node from all others for as long as it runs: see [Options.ID].
func NewID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	return hex.EncodeToString(id[:])
}

// DefaultMaxTime is how long a fetch for others may take unless [HandlerOptions.MaxTime] says otherwise.
const DefaultMaxTime = 10 * time.Second

// HandlerOptions says how much is done for others. The zero value is complete.
type HandlerOptions struct {
	// ID is that of this node's client: what it asks itself for is refused.
	ID string
	// MaxRequests is how many requests are answered at once. 0 means 256. Requests for a fetch beyond it stand in line for 400 ms, and are told to go elsewhere then; others at once.
	MaxRequests int
	// MaxBytes is about how much memory the answers that are being made may take. 0 means 64 MiB.
	MaxBytes int64
	// MaxTime is how long a fetch may take. 0 means [DefaultMaxTime].
	MaxTime time.Duration
	// Log is told of fetches that fail. nil means [slog.Default].
	Log *slog.Logger
}

func (o HandlerOptions) withDefaults() HandlerOptions {
	if o.MaxRequests == 0 {
		o.MaxRequests = 256
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = 64 << 20
	}
	if o.MaxTime == 0 {
		o.MaxTime = DefaultMaxTime
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return o
}

// lineTime is how long a request waits for its turn: less than clients have patience for, unless they are told to have less.
const lineTime = 400 * time.Millisecond

// pulseTime is how often one who waits for a fetch is told that it goes on.
const pulseTime = 50 * time.Millisecond

// Handler answers requests for chunks. Who may ask is the business of the server that it is part of.
type Handler struct {
	local   Local
	hears   cache.Hearer // nil: nobody wants to know who has what open
	o       HandlerOptions
	mux     *http.ServeMux
	buffers sync.Pool // of *[]byte, image.MaxChunkSize or image.DefaultChunkSize long

	requests, hits, misses, failed, refused, bytes atomic.Int64

	mu    sync.Mutex // guards what follows
	now   int        // requests that are being answered
	taken int64      // bytes of memory for them
	line  []*waiter  // those that wait for their turn
}

// waiter is a request that waits for its turn.
type waiter struct {
	n    int           // bytes of its answer
	turn chan struct{} // closed when it has a place
}

// HandlerStats is what a handler has done.
type HandlerStats struct {
	Requests int64 `json:"requests"`
	Hits     int64 `json:"hits"`
	Misses   int64 `json:"misses"`
	Errors   int64 `json:"errors"`  // fetches that failed
	Refused  int64 `json:"refused"` // because there was too much to do
	Bytes    int64 `json:"bytes"`
	Now      int   `json:"now"` // being answered
}

// NewHandler returns a handler for what a node has.
func NewHandler(local Local, o HandlerOptions) *Handler {
	h := &Handler{local: local, o: o.withDefaults(), mux: http.NewServeMux()}
	h.hears, _ = local.(cache.Hearer)
	h.mux.HandleFunc("GET "+chunksPath+"{digest}", h.chunk)
	return h
}

// ServeHTTP answers a request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.mux.ServeHTTP(w, r) }

// Stats returns what the handler has done.
func (h *Handler) Stats() HandlerStats {
	h.mu.Lock()
	defer h.mu.Unlock()
	return HandlerStats{
		Requests: h.requests.Load(), Hits: h.hits.Load(), Misses: h.misses.Load(), Errors: h.failed.Load(),
		Refused: h.refused.Load(), Bytes: h.bytes.Load(), Now: h.now,
	}
}

// enter takes a place and memory for the answer to a request, if there is room. One for a fetch waits a moment for that. One for what is here already does not: those who fetch for others make it, and nobody is to wait
// for somebody who waits.
func (h *Handler) enter(ctx context.Context, c cache.Chunk) bool {
	h.mu.Lock()
	if len(h.line) == 0 && h.take(c.Len) {
		h.mu.Unlock()
		return true
	}
	if c.Root == (image.Digest{}) {
		h.mu.Unlock()
		return false
	}
	w := &waiter{c.Len, make(chan struct{})}
	h.line = append(h.line, w)
	h.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, lineTime)
	defer cancel()
	select {
	case <-w.turn:
		return true
	case <-ctx.Done():
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	at := slices.Index(h.line, w)
	if at < 0 { // its turn came just now
		return true
	}
	h.line = slices.Delete(h.line, at, at+1)
	h.call() // what is behind it may fit
	return false
}

// take takes a place, if there is room. mu is held.
func (h *Handler) take(n int) bool {
	if h.now >= h.o.MaxRequests || h.taken+int64(n) > h.o.MaxBytes {
		return false
	}
	h.now++
	h.taken += int64(n)
	return true
}

// call gives places to those who stand in line, as far as there is room. mu is held.
func (h *Handler) call() {
	for len(h.line) > 0 && h.take(h.line[0].n) {
		close(h.line[0].turn)
		h.line = h.line[1:]
	}
}

func (h *Handler) leave(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now--
	h.taken -= int64(n)
	h.call()
}

func (h *Handler) chunk(w http.ResponseWriter, r *http.Request) {
	h.requests.Add(1)
	// One who takes no answer does not hold it for ever. Where that cannot be set, as in a test, nobody is at the other end.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(h.o.MaxTime + 5*time.Second))
	c, err := parseRequest(r.PathValue("digest"), r.URL.RawQuery)
	id := r.Header.Get(idHeader)
	switch {
	case err != nil || len(id) > maxID:
		answer(w, http.StatusBadRequest)
		return
	case id != "" && id == h.o.ID:
		answer(w, http.StatusLoopDetected)
		return
	}
	beat := startPulse(w) // tells the other side that it goes on
	defer beat.stop()
	if !h.enter(r.Context(), c) {
		beat.stop()
		h.refused.Add(1)
		answer(w, http.StatusServiceUnavailable)
		return
	}
	defer h.leave(c.Len)
	if url := r.Header.Get(urlHeader); h.hears != nil && url != "" && len(url) <= maxURL && c.Root != (image.Digest{}) {
		h.hears.Heard(url, c.Root)
	}
	buffer := h.buffer(c.Len)
	defer h.buffers.Put(buffer)
	p := (*buffer)[:c.Len]
	err = h.fill(r, c, p)
	if beat.stop(); err != nil {
		h.fail(w, c, err)
		return
	}
	h.hits.Add(1)
	h.bytes.Add(int64(len(p)))
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(len(p)))
	// An error here means that the other side has gone: nobody to tell.
	_, _ = w.Write(p)
}

// fill gets a chunk, within the time that there is for it.
func (h *Handler) fill(r *http.Request, c cache.Chunk, p []byte) error {
	ctx, cancel := context.WithTimeout(r.Context(), h.o.MaxTime)
	defer cancel()
	return h.local.Serve(ctx, c, p)
}

func (h *Handler) fail(w http.ResponseWriter, c cache.Chunk, err error) {
	status := statusOf(err)
	if status == http.StatusNotFound {
		h.misses.Add(1)
	} else {
		h.failed.Add(1)
		h.o.Log.Debug("chunk not given to a peer", "chunk", c.Key, "root", c.Root, "error", err)
	}
	answer(w, status)
}

// buffer returns memory for a chunk. It is as long as chunks usually are, or as they may be.
func (h *Handler) buffer(n int) *[]byte {
	if b, ok := h.buffers.Get().(*[]byte); ok && len(*b) >= n {
		return b
	}
	size := image.DefaultChunkSize
	if n > size {
		size = image.MaxChunkSize
	}
	b := make([]byte, size)
	return &b
}

// answer has nothing but a status.
func answer(w http.ResponseWriter, status int) {
	w.Header().Set("Content-Length", "0")
	w.WriteHeader(status)
}

// pulse tells the other side from time to time that what it waits for is on its way.
type pulse struct {
	mu    sync.Mutex // guards what follows
	w     http.ResponseWriter
	timer *time.Timer
	ended bool
}

func startPulse(w http.ResponseWriter) *pulse {
	p := &pulse{w: w}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer = time.AfterFunc(pulseTime, p.beat)
	return p
}

func (p *pulse) beat() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ended {
		p.w.WriteHeader(http.StatusProcessing)
		p.timer.Reset(pulseTime)
	}
}

// stop returns when no beat is under way or to come: the answer is the caller's again.
func (p *pulse) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	p.timer.Stop()
}

func isMiss(err error) bool { return errors.Is(err, cache.ErrMiss) }
