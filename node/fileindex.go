package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"coppice/cache"
	"coppice/image"
)

const (
	// indexLook is how long it is not looked whether another index is attached to an image by now, when one is open.
	indexLook = 5 * time.Second
	// maxIndexRead bounds one read of an index.
	maxIndexRead = 1 << 20
)

// IndexInfo tells of the index of the files of a device's root.
type IndexInfo struct {
	Device    string               `json:"device"`
	Image     string               `json:"image"` // reference that it was found beside
	Statement image.IndexStatement `json:"statement"`
	Keys      []string             `json:"keys"`    // that it says it is signed with
	Trusted   bool                 `json:"trusted"` // by one of which that this machine trusts
}

// fileIndex is the index of the files of an image. The daemon reads its bytes for those who understand them: through the cache, from peers and from the image's replicas, each byte verified, and none that is not asked for.
type fileIndex struct {
	looking sync.Mutex // held while it is looked for

	mu   sync.Mutex // guards what follows; taken after looking
	open *openIndex // nil: none was asked for yet
}

// openIndex is an index that is open. It is closed when it is retired and nobody reads it.
type openIndex struct {
	found   *image.FoundIndex
	trusted bool
	looked  time.Time
	set     *image.Set
	cached  *cache.Root // nil where there is no cache
	reader  *cache.Reader

	users   int // guarded by the fileIndex's mu
	retired bool
}

// Index tells which index a device's root has, and opens it. Where the machine takes only images that are signed by a trusted key, it takes no other index.
func (d *Daemon) Index(ctx context.Context, name string) (IndexInfo, error) {
	info := IndexInfo{Device: name, Keys: []string{}}
	err := d.withIndex(ctx, name, true, func(x *openIndex) error {
		info.Image, info.Statement, info.Trusted = x.found.Beside, x.found.Statement, x.trusted
		for _, key := range x.found.Keys {
			info.Keys = append(info.Keys, fmt.Sprintf("%016X", key))
		}
		return nil
	})
	return info, err
}

// ReadIndex fills p with what the index with a content root has from off on, all of it. It fails with [CodeNotFound] where the device's root has another index by now.
func (d *Daemon) ReadIndex(ctx context.Context, name string, index image.Digest, p []byte, off int64) error {
	return d.withIndex(ctx, name, false, func(x *openIndex) error {
		switch {
		case x.found.Statement.Index != index:
			return fail(CodeNotFound, "start again", "the root of device %s has another index by now", name)
		case off < 0 || int64(len(p)) > x.set.Size()-off:
			return fail(CodeBadRequest, "", "%d bytes at %d, of an index of %d", len(p), off, x.set.Size())
		case x.reader != nil:
			return x.reader.Read(ctx, p, off)
		}
		return x.set.Read(ctx, p, off)
	})
}

// withIndex calls do with the index of a device's root. fresh looks whether another one is attached by now.
func (d *Daemon) withIndex(ctx context.Context, name string, fresh bool, do func(*openIndex) error) (err error) {
	if err := d.begin(ctx); err != nil {
		return err
	}
	defer d.ops.Done()
	_, s, err := d.holdRoot(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.roots.leave(s)) }()
	x, err := s.index.use(ctx, d.roots, s, fresh)
	if err != nil {
		return indexError(name, err)
	}
	return errors.Join(do(x), s.index.leave(x))
}

func indexError(name string, err error) error {
	err = fmt.Errorf("index of the root of device %s: %w", name, err)
	switch {
	case errors.Is(err, image.ErrNotAttached):
		return fail(CodeNotFound, "make one: coppice index build IMAGE --push", "%w", err)
	case distrusted(err):
		return fail(CodeUntrusted, "this machine takes only what is signed: have who made the index sign it: coppice index share IMAGE --key FILE", "%w", err)
	case errors.Is(err, image.ErrCorrupt):
		return fail(CodeCorrupt, "the device works without; make the index again: coppice index build IMAGE --push", "%w", err)
	}
	return err
}

// use returns the index, which leave gives back. One that is open is good until it is seen that another one is attached.
func (f *fileIndex) use(ctx context.Context, a *roots, s *rootSet, fresh bool) (*openIndex, error) {
	if x := f.take(fresh); x != nil {
		return x, nil
	}
	f.looking.Lock()
	defer f.looking.Unlock()
	if x := f.take(fresh); x != nil { // somebody else has just looked
		return x, nil
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	keys, err := a.cfg.keys()
	if err != nil {
		return nil, err
	}
	trusted := make(map[image.IndexStatement]bool)
	found, err := s.FindIndex(ctx, s.small(), func(x *image.Index) error {
		err := x.SignedBy(keys)
		switch {
		case err == nil:
			trusted[x.Statement] = true
		case a.cfg.RequireSignature:
			return err
		}
		return nil
	})
	if err != nil {
		x := f.take(false)
		if x != nil && !errors.Is(err, image.ErrNotAttached) && !distrusted(err) {
			a.log.Debug("not looked for another index: the one that is open is read on", "root", s.ContentRoot().String(), "error", oneLine(err))
			return x, nil
		}
		if x != nil {
			err = errors.Join(err, f.leave(x), f.replace(nil))
		}
		return nil, err
	}
	if x := f.again(found); x != nil {
		return x, nil
	}
	x, err := a.openIndex(ctx, found)
	if err != nil {
		return nil, err
	}
	x.trusted = trusted[found.Statement]
	return x, f.replace(x)
}

// openAsked opens the index with a content, if a root that is open here has it: a peer asks this node for a chunk of it.
func (a *roots) openAsked(ctx context.Context, content image.Digest) {
	a.setsMu.Lock()
	sets := slices.Collect(maps.Values(a.sets))
	for _, s := range sets {
		s.users++
	}
	a.setsMu.Unlock()
	for _, s := range sets {
		x, err := s.index.use(ctx, a, s, true)
		if err == nil {
			err = s.index.leave(x)
		}
		if err := errors.Join(err, a.leave(s)); err != nil && !errors.Is(err, image.ErrNotAttached) {
			a.log.Debug("index not opened for a peer", "root", s.ContentRoot(), "content", content, "error", oneLine(err))
		}
	}
}

// take returns the index that is open, unless fresh asks for one that was looked for lately.
func (f *fileIndex) take(fresh bool) *openIndex {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open == nil || fresh && time.Since(f.open.looked) > indexLook {
		return nil
	}
	f.open.users++
	return f.open
}

// again returns the index that is open where that is what was found.
func (f *fileIndex) again(found *image.FoundIndex) *openIndex {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open == nil || f.open.found.Statement != found.Statement {
		return nil
	}
	f.open.looked = time.Now()
	f.open.users++
	return f.open
}

// openIndex opens what was found.
func (a *roots) openIndex(ctx context.Context, found *image.FoundIndex) (*openIndex, error) {
	options, err := a.setOptions()
	if err != nil {
		return nil, err
	}
	options.Known = found.Known
	x := &openIndex{found: found, looked: time.Now()}
	if x.set, err = image.OpenSet(ctx, found.Refs, found.Statement.Index, options); err != nil {
		return nil, err
	}
	if a.cache != nil {
		x.cached = a.cache.Open(x.set)
		x.reader = x.cached.Reader()
	}
	return x, nil
}

func (x *openIndex) close() error {
	if x.cached != nil {
		x.reader.Close()
		x.cached.Close()
	}
	return x.set.Close()
}

// replace makes an index the one that is open, with one user. nil closes the one before.
func (f *fileIndex) replace(x *openIndex) error {
	f.mu.Lock()
	before := f.open
	if f.open = x; x != nil {
		x.users++
	}
	idle := false
	if before != nil {
		before.retired = true
		idle = before.users == 0
	}
	f.mu.Unlock()
	if idle {
		return before.close()
	}
	return nil
}

func (f *fileIndex) leave(x *openIndex) error {
	f.mu.Lock()
	x.users--
	idle := x.retired && x.users == 0
	f.mu.Unlock()
	if idle {
		return x.close()
	}
	return nil
}

func (s *server) index(r *http.Request) (any, error) {
	return s.d.Index(r.Context(), r.PathValue("name"))
}

// readIndex reads bytes of the index that a request names.
func (s *server) readIndex(r *http.Request, p []byte, off int64) error {
	index, err := image.ParseDigest(r.URL.Query().Get("index"))
	if err != nil {
		return fail(CodeBadRequest, "", "index: %w", err)
	}
	return s.d.ReadIndex(r.Context(), r.PathValue("name"), index, p, off)
}
