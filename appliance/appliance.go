package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"coppice/cache"
	"coppice/cache/peer"
	"coppice/certs"
	"coppice/image"
)

// Options say what an appliance serves.
type Options struct {
	// Listen is HOST:PORT.
	Listen string
	// Images are directories with images. Each is served under the last part of its path.
	Images []string
	// Roots are images whose chunks are given, and fetched for that where they are not cached. Those with the same content are replicas.
	Roots []image.Ref
	// MemoryBytes is the threshold of the cache's memory: see [cache.Options].
	MemoryBytes int64
	// Disk is the disk tier of the cache, or nil. It stays the caller's, and is closed after the appliance.
	Disk cache.Tier
	// TLS has the authority of the nodes and the certificate of the server. nil serves everybody, without TLS.
	TLS *certs.Files
	// Source says how the roots are reached, Patience how long reads wait for them: see [image.SetOptions].
	Source   image.SourceOptions
	Patience time.Duration
	// Log is told what happens. nil means [slog.Default].
	Log *slog.Logger

	retry time.Duration // instead of retryTime, for tests
}

const (
	// retryTime is how long it takes until a root is tried again that could not be opened, openTime how long one try may take.
	retryTime, openTime = 10 * time.Second, 20 * time.Second
	// setBytes is what an open image keeps of its chunks beside the cache.
	setBytes = 4 << 20
)

// Appliance is one that runs. It is safe for concurrent use.
type Appliance struct {
	o       Options
	files   files
	cache   *cache.Cache
	handler *peer.Handler
	server  *peer.Server

	ctx    context.Context // ends when the appliance is closed
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu     sync.Mutex // guards what follows
	failed map[string]error
	open   map[image.Digest]*root
}

// root is an image that is open.
type root struct {
	set    *image.Set
	cached *cache.Root

	index *root // of its files; nil: nobody has asked for it
}

func (a *Appliance) newRoot(set *image.Set) *root { return &root{set: set, cached: a.cache.Open(set)} }

func (r *root) close() error {
	if r == nil {
		return nil
	}
	r.cached.Close()
	return errors.Join(r.index.close(), r.set.Close())
}

// Start begins to serve when all roots have been tried once. One that cannot be opened then is tried again and again. ctx bounds the start alone.
func Start(ctx context.Context, o Options) (*Appliance, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.retry == 0 {
		o.retry = retryTime
	}
	a := &Appliance{o: o, failed: map[string]error{}, open: map[image.Digest]*root{}}
	var err error
	if a.files, err = newFiles(o.Images); err != nil {
		return nil, err
	}
	for _, ref := range o.Roots {
		if ref.Kind == image.KindFile {
			return nil, fmt.Errorf("root %s is a raw disk, whose content nothing proves: %w", ref, ErrBadOption)
		}
	}
	if a.cache, err = cache.New(cache.Options{MemoryBytes: o.MemoryBytes, Disk: o.Disk, Log: o.Log}); err != nil {
		return nil, err
	}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	a.handler = peer.NewHandler(a.cache, peer.HandlerOptions{Log: o.Log})
	a.cache.OnAsked(a.openAsked)
	a.openRoots(ctx)
	if a.server, err = peer.Listen(o.Listen, a, peer.ServerOptions{TLS: o.TLS, Log: o.Log}); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

// openRoots returns when each root was tried once.
func (a *Appliance) openRoots(ctx context.Context) {
	var first sync.WaitGroup
	for _, ref := range a.o.Roots {
		first.Add(1)
		tried := sync.OnceFunc(first.Done)
		a.work.Go(func() {
			defer tried()
			for !a.openRoot(ref) {
				tried()
				select {
				case <-time.After(a.o.retry):
				case <-a.ctx.Done():
					return
				}
			}
		})
	}
	all := make(chan struct{})
	go func() {
		first.Wait()
		close(all)
	}()
	select {
	case <-all:
	case <-ctx.Done():
	}
}

// openRoot reports whether a root is open, or need not be any more.
func (a *Appliance) openRoot(ref image.Ref) bool {
	ctx, cancel := context.WithTimeout(a.ctx, openTime)
	defer cancel()
	set, err := a.openSet(ctx, []image.Ref{ref}, image.Digest{}, nil)
	if err == nil {
		err = a.enter(ref, set)
	}
	if a.ctx.Err() != nil {
		return true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	before := a.failed[ref.String()]
	if delete(a.failed, ref.String()); err == nil {
		return true
	}
	a.failed[ref.String()] = err
	if before == nil || before.Error() != err.Error() {
		a.o.Log.Error("root cannot be opened; it is tried again", "root", ref, "error", err)
	}
	return false
}

func (a *Appliance) openSet(ctx context.Context, refs []image.Ref, content image.Digest, known map[image.Digest][]byte) (*image.Set, error) {
	return image.OpenSet(ctx, refs, content, image.SetOptions{Source: a.o.Source, CacheBytes: setBytes, Log: a.o.Log, Patience: a.o.Patience, Known: known})
}

// openAsked opens the index with a content, if one of the roots has it. What an index says, and who signed it, is looked at by the nodes.
func (a *Appliance) openAsked(ctx context.Context, content image.Digest) {
	a.mu.Lock()
	roots := slices.Collect(maps.Values(a.open))
	a.mu.Unlock()
	for _, r := range roots {
		if err := a.openIndex(ctx, r, content); err != nil && !errors.Is(err, image.ErrNotAttached) {
			a.o.Log.Debug("index not opened", "root", r.set.ContentRoot(), "content", content, "error", err)
		}
	}
}

func (a *Appliance) openIndex(ctx context.Context, r *root, content image.Digest) error {
	found, err := r.set.FindIndex(ctx, r.cached.ReadSmall, func(*image.Index) error { return nil })
	if err != nil || found.Statement.Index != content {
		return err
	}
	set, err := a.openSet(ctx, found.Refs, content, found.Known)
	if err != nil {
		return err
	}
	index := a.newRoot(set)
	a.mu.Lock()
	before := r.index
	r.index = index
	a.mu.Unlock()
	return before.close()
}

// enter lets chunks of a set be given, or makes a replica of it.
func (a *Appliance) enter(ref image.Ref, set *image.Set) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	content := set.ContentRoot()
	if before := a.open[content]; before != nil {
		if err := before.set.AddLater(ref); err != nil && !errors.Is(err, image.ErrExists) {
			return errors.Join(err, set.Close())
		}
		return set.Close()
	}
	a.open[content] = a.newRoot(set)
	a.o.Log.Info("root is served", "root", ref, "content", content)
	return nil
}

// ServeHTTP answers nodes.
func (a *Appliance) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/"+apiName+"/stats" && r.Method == http.MethodGet:
		a.stats(w)
	case strings.HasPrefix(r.URL.Path, "/"+apiName+"/"):
		a.handler.ServeHTTP(w, r)
	default:
		a.files.ServeHTTP(w, r)
	}
}

// Stats is what an appliance does.
type Stats struct {
	Roots  []RootStats       `json:"roots"`
	Cache  cache.Stats       `json:"cache"`
	Chunks peer.HandlerStats `json:"chunks"`
}

// RootStats is one content that chunks are given of, or a reference that cannot be opened.
type RootStats struct {
	ContentRoot *image.Digest         `json:"content_root,omitempty"`
	Replicas    []image.ReplicaStatus `json:"replicas,omitempty"`
	Ref         string                `json:"ref,omitempty"`
	Error       string                `json:"error,omitempty"`
}

// Stats returns what the appliance does.
func (a *Appliance) Stats() Stats {
	s := Stats{Cache: a.cache.Stats(), Chunks: a.handler.Stats(), Roots: []RootStats{}}
	a.mu.Lock()
	defer a.mu.Unlock()
	for content, r := range a.open {
		s.Roots = append(s.Roots, RootStats{ContentRoot: &content, Replicas: r.set.Replicas()})
	}
	for ref, err := range a.failed {
		s.Roots = append(s.Roots, RootStats{Ref: ref, Error: err.Error()})
	}
	return s
}

func (a *Appliance) stats(w http.ResponseWriter) {
	data, err := json.Marshal(a.Stats())
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", jsonType)
	// An error here means that the other side has gone: nobody to tell.
	_, _ = unhurried{w}.Write(append(data, '\n'))
}

// Addr returns where the appliance is.
func (a *Appliance) Addr() net.Addr { return a.server.Addr() }

// Ended gives the error that has ended the service without [Appliance.Close].
func (a *Appliance) Ended() <-chan error { return a.server.Ended() }

// Close lets answers under way end, for a few seconds, and ends the appliance.
func (a *Appliance) Close() error {
	var errs []error
	if a.server != nil {
		errs = append(errs, a.server.Close())
	}
	a.cancel()
	a.work.Wait()
	for _, r := range a.open {
		errs = append(errs, r.close())
	}
	return errors.Join(append(errs, a.cache.Close())...)
}
