package peer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"coppice/ca"
	"coppice/cache"
	"coppice/certs"
	"coppice/image"
)

var quiet = slog.New(slog.DiscardHandler)

// picture is the content of an image, as chunks.
type picture struct {
	root   image.Digest
	chunks map[cache.Key][]byte
	order  []cache.Chunk
}

// draw makes an image of n random chunks.
func draw(seed uint64, n, size int) *picture {
	rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1})
	p := &picture{chunks: map[cache.Key][]byte{}}
	_, _ = rng.Read(p.root[:])
	for i := range n {
		content := make([]byte, size)
		_, _ = rng.Read(content)
		c := cache.Chunk{Key: sha256.Sum256(content), Root: p.root, Index: int64(i), Len: size}
		p.chunks[c.Key] = content
		p.order = append(p.order, c)
	}
	return p
}

// shelf is a [Local] that has some chunks, and others after a while.
type shelf struct {
	*picture
	held  func(cache.Chunk) bool // nil: all of it is there already
	delay time.Duration          // of a fetch
	err   error                  // of a fetch
	spoil func([]byte)

	mu      sync.Mutex
	fetches int
}

func (s *shelf) Serve(ctx context.Context, c cache.Chunk, p []byte) error {
	content, ok := s.chunks[c.Key]
	if !ok || len(p) != len(content) {
		return fmt.Errorf("chunk %s: %w", c.Key, cache.ErrMiss)
	}
	if s.held != nil && !s.held(c) {
		if c.Root != s.root {
			return cache.ErrMiss
		}
		s.mu.Lock()
		s.fetches++
		s.mu.Unlock()
		select {
		case <-time.After(s.delay):
		case <-ctx.Done():
			return ctx.Err()
		}
		if s.err != nil {
			return s.err
		}
	}
	if copy(p, content); s.spoil != nil {
		s.spoil(p)
	}
	return nil
}

// nothing is a [cache.Chunk] that is not there.
func never(cache.Chunk) bool { return false }

// serve starts a server without TLS, and returns its URL.
func serve(t testing.TB, h http.Handler) string {
	t.Helper()
	s, err := Listen("127.0.0.1:0", h, ServerOptions{Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return "http://" + s.Addr().String()
}

// prompt are the usual limits, for tests that are about them.
var prompt = Options{Silence: defaultSilence, Patience: defaultPatience}

// dial returns a client of peers, which it puts aside for being slow only where that is asked for: the machine that a test runs on may be busy.
func dial(t testing.TB, o Options, urls ...string) *Client {
	t.Helper()
	o.Insecure = o.TLS == nil
	if o.Silence == 0 {
		o.Silence = time.Minute
	}
	if o.Patience == 0 {
		o.Patience = time.Minute
	}
	if o.Log == nil {
		o.Log = quiet
	}
	c, err := New(urls, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// take gets a chunk as a cache does, and rejects what is wrong.
func take(c *Client, chunk cache.Chunk) ([]byte, error) {
	p := make([]byte, chunk.Len)
	if err := c.Get(context.Background(), chunk, p); err != nil {
		return nil, err
	}
	if sha256.Sum256(p) != chunk.Key {
		c.Reject(chunk)
		return nil, errWrong
	}
	return p, nil
}

var errWrong = errors.New("wrong bytes")

// only returns how the one peer of a client does.
func only(t testing.TB, c *Client) PeerStats {
	t.Helper()
	s := c.Stats()
	if len(s.Peers) != 1 {
		t.Fatalf("%d peers", len(s.Peers))
	}
	return s.Peers[0]
}

// eventually waits until something is so.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for took := start(); !is(); time.Sleep(5 * time.Millisecond) {
		if took() > time.Minute {
			t.Fatalf("not after a minute: %s", what)
		}
	}
}

// stopwatch measures time for which this process ran: on a machine that is busy with something else it hardly goes.
type stopwatch struct{ ran atomic.Int64 }

// watch is the stopwatch of all tests.
var watch = sync.OnceValue(func() *stopwatch {
	w := &stopwatch{}
	go func() {
		const slice = 5 * time.Millisecond
		for last := time.Now(); ; {
			time.Sleep(slice)
			now := time.Now()
			w.ran.Add(int64(min(now.Sub(last), 2*slice)))
			last = now
		}
	}()
	return w
})

// start returns what says how long it was since then.
func start() func() time.Duration {
	w := watch()
	began := w.ran.Load()
	return func() time.Duration { return time.Duration(w.ran.Load() - began) }
}

// authority makes one, and returns what issues certificates of peers, as files.
func authority(t testing.TB) func(name string, o ca.Options) *certs.Files {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "authority")
	if _, err := ca.Init(dir, ca.Options{}); err != nil {
		t.Fatal(err)
	}
	return func(name string, o ca.Options) *certs.Files {
		t.Helper()
		o.Name = name
		pair, err := ca.Issue(dir, o)
		if err != nil {
			t.Fatal(err)
		}
		files, err := certs.Open(filepath.Join(dir, "ca.crt"), pair.Cert, pair.Key)
		if err != nil {
			t.Fatal(err)
		}
		return files
	}
}

// both is a certificate of a node, which is a server and a client.
func both(hosts ...string) ca.Options {
	return ca.Options{Hosts: slices.Concat([]string{"127.0.0.1"}, hosts), Client: true}
}
