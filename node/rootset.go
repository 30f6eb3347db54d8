package node

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"coppice/cache"
	"coppice/image"
	"coppice/union"
)

// rootSet is an image that is open, with its replicas, for all that stands on its content: one cache, one measure of each source.
type rootSet struct {
	*image.Set
	cached     *cache.Root   // nil where it is not read through the cache
	background *cache.Reader // of what nobody has asked for yet; nil with cached
	guests     guests
	users      int // guarded by roots.setsMu

	hydrate hydration
	replay  replay
	index   fileIndex
}

// guests tells who copies in the background whether somebody reads.
type guests struct {
	reading atomic.Int64
	last    atomic.Int64 // when a read ended, Unix nanoseconds
}

func (g *guests) enter() { g.reading.Add(1) }

func (g *guests) leave() {
	g.last.Store(time.Now().UnixNano())
	g.reading.Add(-1)
}

// share adds a user to the set of a root, which is opened where it is not.
func (a *roots) share(ctx context.Context, w rootWanted) (*rootSet, error) {
	if s := a.join(w); s != nil {
		return s, nil
	}
	options, err := a.setOptions()
	if err != nil {
		return nil, err
	}
	demand := w.content()
	if w.alone { // the layer compares, and says what it stands on
		demand = image.Digest{}
	}
	set, err := image.OpenSet(ctx, w.refs, demand, options)
	if err != nil {
		return nil, err
	}
	if err := refusedOf(set, w); err != nil {
		return nil, errors.Join(err, set.Close())
	}
	if w.alone {
		return &rootSet{Set: set, users: 1}, nil
	}
	s := a.enter(a.newSet(set))
	if s.Set == set {
		return s, nil
	}
	// Somebody else stands on the same content: what was opened here has shown that.
	if err := errors.Join(set.Close(), s.takeAll(w.refs)); err != nil {
		return nil, errors.Join(err, a.leave(s))
	}
	return s, nil
}

// answers tells whether a root can be opened, whatever it holds.
func (a *roots) answers(ctx context.Context, w rootWanted) bool {
	if len(w.refs) == 1 && w.refs[0].Kind == image.KindFile {
		raw, err := union.OpenRaw(w.refs[0].Place)
		return err == nil && raw.Close() == nil
	}
	options, err := a.setOptions()
	if err != nil {
		return false
	}
	options.Log = slog.New(slog.DiscardHandler) // it has been said that they do not
	ctx, cancel := context.WithTimeout(ctx, openRootTime)
	defer cancel()
	set, err := image.OpenSet(ctx, w.refs, image.Digest{}, options)
	return err == nil && set.Close() == nil
}

// refusedOf fails where a reference that somebody gives just now has other content than the rest. Of a root that was taken before, that is the set's
// business.
func refusedOf(set *image.Set, w rootWanted) error {
	if w.content() != (image.Digest{}) {
		return nil
	}
	for _, r := range set.Replicas() {
		if r.State == image.StateRefused {
			return fail(CodeOtherRoot, otherContentHint, "%s", r.Error)
		}
	}
	return nil
}

func (a *roots) setOptions() (image.SetOptions, error) {
	source, err := a.cfg.source()
	a.setsMu.Lock()
	o := image.SetOptions{Source: source, Log: a.log, Patience: a.cfg.patience(), Known: a.known}
	a.setsMu.Unlock()
	if a.cache == nil {
		o.CacheBytes = rootCacheBytes
	}
	return o, err
}

// learn has images opened without asking for metadata that is known, until it is called with nil.
func (a *roots) learn(known map[image.Digest][]byte) {
	a.setsMu.Lock()
	defer a.setsMu.Unlock()
	a.known = known
}

// metadata returns what opening the images that are open has read.
func (a *roots) metadata() map[image.Digest][]byte {
	a.setsMu.Lock()
	sets := slices.Collect(maps.Values(a.sets))
	a.setsMu.Unlock()
	all := make(map[image.Digest][]byte)
	for _, s := range sets {
		maps.Copy(all, s.Metadata())
	}
	return all
}

// join adds a user to an open set of the content that is wanted. References that it does not have are looked at in the background.
func (a *roots) join(w rootWanted) *rootSet {
	a.setsMu.Lock()
	s := a.sets[w.content()]
	if s == nil || w.alone && !s.hasAll(w.refs) {
		a.setsMu.Unlock()
		return nil
	}
	s.users++
	a.setsMu.Unlock()
	if err := s.takeAll(w.refs); err != nil {
		a.log.Warn("replica not taken", "error", oneLine(err))
	}
	return s
}

// newSet returns an open image for all that will stand on it.
func (a *roots) newSet(set *image.Set) *rootSet {
	s := &rootSet{Set: set}
	if a.cache != nil {
		s.cached = a.cache.Open(set)
		s.background = s.cached.Reader()
	}
	return s
}

// uncache takes the image off the cache, and waits for what is read.
func (s *rootSet) uncache() {
	if s.cached != nil {
		s.background.Close()
		s.cached.Close()
	}
}

// enter returns the set for the content of a new one: that, unless there is one. Otherwise the new one is taken off the cache.
func (a *roots) enter(fresh *rootSet) *rootSet {
	a.setsMu.Lock()
	if a.sets == nil {
		a.sets = make(map[image.Digest]*rootSet)
	}
	s := a.sets[fresh.ContentRoot()]
	if s == nil {
		s = fresh
		a.sets[s.ContentRoot()] = s
	}
	s.users++
	a.setsMu.Unlock()
	if s != fresh {
		fresh.uncache()
	}
	return s
}

// keep adds a user to a set that has one.
func (a *roots) keep(s *rootSet) {
	a.setsMu.Lock()
	defer a.setsMu.Unlock()
	s.users++
}

// leave takes a user off, and closes the set after the last.
func (a *roots) leave(s *rootSet) error {
	a.setsMu.Lock()
	s.users--
	last := s.users == 0
	if last && a.sets[s.ContentRoot()] == s {
		delete(a.sets, s.ContentRoot())
	}
	a.setsMu.Unlock()
	if !last {
		return nil
	}
	s.hydrate.stop()
	s.replay.stop()
	err := s.index.replace(nil)
	s.uncache()
	return errors.Join(err, s.Close())
}

// small reads what is kept beside the image through the cache; nil where there is none.
func (s *rootSet) small() image.Small {
	if s.cached == nil {
		return nil
	}
	return s.cached.ReadSmall
}

func (s *rootSet) hasAll(refs []image.Ref) bool {
	have := s.known()
	for _, r := range refs {
		if !have[r.String()] {
			return false
		}
	}
	return true
}

func (s *rootSet) known() map[string]bool {
	have := make(map[string]bool)
	for _, r := range s.Replicas() {
		have[r.Ref] = true
	}
	return have
}

// takeAll adds references that are believed to be replicas, to be looked at before they are read.
func (s *rootSet) takeAll(refs []image.Ref) error {
	have := s.known()
	var errs []error
	for _, r := range refs {
		if !have[r.String()] {
			if err := s.AddLater(r); err != nil && !errors.Is(err, image.ErrExists) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// one returns an image of the set, of a replica that answers if there is one. It stays the set's.
func (s *rootSet) one() (*image.Image, error) {
	all := s.Images()
	if len(all) == 0 {
		return nil, image.ErrNoReplica
	}
	return all[0], nil
}

// list returns the references, and the digests of the manifests that they are open by.
func (s *rootSet) list() (texts []string, manifests map[string]image.Digest) {
	manifests = make(map[string]image.Digest)
	for _, r := range s.Replicas() {
		texts = append(texts, r.Ref)
		if r.Manifest != (image.Digest{}) {
			manifests[r.Ref] = r.Manifest
		}
	}
	return texts, manifests
}
