package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"coppice/internal/flight"
)

const (
	defaultPatience = 60 * time.Second
	// loadBytes is how much of neighbouring chunks one replica is asked for at a time.
	loadBytes = 512 << 10
	// setStall is how long a server may send nothing, unless something else is asked for: there are others, and probes.
	setStall = 5 * time.Second
	// settleTime is how long the other replicas have to answer when one has, before it is decided which content a set has.
	settleTime = 2 * time.Second
)

// SetOptions says how a [Set] reads. The zero value is complete.
type SetOptions struct {
	Source SourceOptions
	// CacheBytes is about how much the set keeps of verified chunks.
	CacheBytes int64
	// Log is told when replicas go and come. nil means [slog.Default].
	Log *slog.Logger
	// Known are manifests and configs by their digests, such as [Set.Metadata] of a set that was open a moment ago. [OpenSet] does not ask for them again: a replica with a known manifest
	// is taken to be there until something else is read from it. Whatever opens a replica later asks.
	Known map[Digest][]byte
	// Patience is how long a read waits while no replica answers, before it fails. 0 means 60 s.
	Patience time.Duration

	source func(Ref, SourceOptions) (Source, error) // for tests; nil means Ref.Source
}

func (o SetOptions) withDefaults() SetOptions {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Patience == 0 {
		o.Patience = defaultPatience
	}
	if o.Source.Stall == 0 {
		o.Source.Stall = setStall
	}
	if o.source == nil {
		o.source = Ref.Source
	}
	return o
}

// Set is one content that is read from any number of replicas: images with one content root, which may be of all kinds and packed in any way.
// Every byte is verified, whichever replica it came from. It is safe for concurrent use.
type Set struct {
	o       SetOptions
	config  *Config
	g       geometry
	chunks  *lru.Cache[int64, []byte] // by index; nil is zeros
	flights flight.Group[int64, []byte]

	ctx    context.Context // ends when the set is closed
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu       sync.Mutex // guards what follows, and what each replica says it guards; nothing is waited for under it
	free     *sync.Cond // a replica can take one more request, or a waiting caller has given up
	replicas []*replica
	root     Digest  // zero until it is decided
	errands  int     // that replicas are asked for now
	begun    int64   // errands ever
	latency  samples // of requests to all replicas
	hedges   float64 // that may be made now
}

// OpenSet opens references as replicas of one content, and fails where none of them answers. want, where it is not zero, is the content root
// that is asked for. Otherwise it is that of the first reference that answered in a time that is short once any has. A replica
// with another content is refused, and looked at again from time to time, and one that cannot be reached joins when it can: [Set.Replicas] tells.
func OpenSet(ctx context.Context, refs []Ref, want Digest, o SetOptions) (*Set, error) {
	s := &Set{o: o.withDefaults(), root: want, hedges: hedgeBurst}
	s.free = sync.NewCond(&s.mu)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	for _, ref := range refs {
		if s.find(ref.String()) != nil {
			return nil, fmt.Errorf("open image: replica %s is named twice: %w", ref, ErrExists)
		}
		s.replicas = append(s.replicas, s.newReplica(ref))
	}
	if err := s.decide(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	perChunk := int64(s.g.chunkSize)
	s.chunks, _ = lru.New[int64, []byte](int(max(1, s.o.CacheBytes/perChunk))) // fails for sizes below 1
	return s, nil
}

// decide waits until it is known what the content is.
func (s *Set) decide(ctx context.Context) error {
	opened, decided := make(chan struct{}, len(s.replicas)), make(chan struct{})
	defer close(decided)
	for _, r := range s.replicas {
		s.work.Go(func() {
			s.openKnowing(r, s.o.Known)
			opened <- struct{}{}
			<-decided
			s.tend(r)
		})
	}
	var settled <-chan time.Time
	for range s.replicas {
		select {
		case <-opened:
		case <-settled:
			return s.settle()
		case <-ctx.Done():
			return fmt.Errorf("open image: %w", ctx.Err())
		}
		switch found, final := s.candidate(); {
		case final:
			return s.settle()
		case found && settled == nil:
			settled = time.After(settleTime)
		}
	}
	return s.settle()
}

// candidate reports whether a replica has answered, and whether it is one with the content that was asked for.
func (s *Set) candidate() (found, final bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	found = slices.ContainsFunc(s.replicas, func(r *replica) bool { return r.member != nil })
	return found, found && s.root != Digest{}
}

// settle takes the content of the first replica that has answered for that of the set.
func (s *Set) settle() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, r := range s.replicas {
		if m := r.member; m != nil {
			s.config, s.g = m.im.Config(), m.im.g
			s.root = m.im.ContentRoot()
			break
		}
		errs = append(errs, r.err)
	}
	switch {
	case s.config == nil && len(errs) == 1:
		return errs[0]
	case s.config == nil:
		return fmt.Errorf("open image: none of %d replicas can be used: %w", len(errs), errors.Join(errs...))
	}
	for _, r := range s.replicas {
		if m := r.member; m != nil && r.state != StateReady {
			r.member = nil
			s.join(r, m)
		}
	}
	return nil
}

// Config returns what the config of one of the replicas says. It is not to be changed.
func (s *Set) Config() *Config { return s.config }

// Size returns the length of the content in bytes.
func (s *Set) Size() int64 { return s.g.size }

// ChunkSize returns the size of a chunk in bytes. The last one may be shorter.
func (s *Set) ChunkSize() int { return s.g.chunkSize }

// Chunks returns how many chunks there are.
func (s *Set) Chunks() int64 { return s.g.chunks() }

// ContentRoot returns what identifies the content.
func (s *Set) ContentRoot() Digest { return s.config.ContentRoot }

// Read fills p from byte off on. The range lies within the content. Every byte is verified. It waits for replicas as long as the patience lasts for
// each chunk, and fails with [ErrNoReplica] then. After an error, p holds anything.
func (s *Set) Read(ctx context.Context, p []byte, off int64) error {
	return s.g.read(p, off, func(p []byte, off int64) error { return s.readWindow(ctx, p, off) })
}

func (s *Set) readWindow(ctx context.Context, p []byte, off int64) error {
	wants := s.missing(p, off)
	mine := claimAll(s.ctx, &s.flights, wants)
	defer leaveAll(&s.flights, wants)
	for _, some := range s.loads(mine) {
		s.work.Go(func() { s.load(some) })
	}
	for _, w := range wants {
		content, err := s.await(ctx, w)
		if err != nil {
			return err
		}
		w.fill(content)
	}
	return nil
}

// missing returns the chunks that fill p, but for those in the cache, which it copies.
func (s *Set) missing(p []byte, off int64) []want {
	return slices.DeleteFunc(s.g.wants(p, off), func(w want) bool {
		content, ok := s.chunks.Get(w.index)
		if ok {
			w.fill(content)
		}
		return ok
	})
}

// fill takes what is wanted from a chunk's content; nil is zeros.
func (w want) fill(content []byte) {
	if content == nil {
		clear(w.dst)
		return
	}
	copy(w.dst, content[w.skip:])
}

// loads cuts chunks into neighbours that one replica is asked for.
func (s *Set) loads(wants []want) [][]want {
	var out [][]want
	most := max(1, loadBytes/s.g.chunkSize)
	for i, w := range wants {
		if last := len(out) - 1; i > 0 && w.index == wants[i-1].index+1 && len(out[last]) < most {
			out[last] = append(out[last], w)
			continue
		}
		out = append(out, wants[i:i+1:i+1])
	}
	return out
}

// load lands neighbouring chunks. It goes on until a replica gave them, or nobody waits for them.
func (s *Set) load(wants []want) {
	ctx, cancel := together(s.ctx, wants)
	defer cancel()
	about := span{wants[0].index, wants[0].index + int64(len(wants))}
	contents, err := ask(ctx, s, about, func(ctx context.Context, im *Image) ([][]byte, error) { return im.load(ctx, about) })
	for i, w := range wants {
		if err != nil {
			s.flights.Land(w.index, w.fl, nil, ErrClosed)
			continue
		}
		s.chunks.Add(w.index, contents[i])
		s.flights.Land(w.index, w.fl, contents[i], nil)
	}
}

// await returns a chunk's content, or fails when the patience is over.
func (s *Set) await(ctx context.Context, w want) ([]byte, error) {
	if w.fl.Landed() {
		return w.fl.Wait(ctx)
	}
	patience, cancel := context.WithTimeout(ctx, s.o.Patience)
	defer cancel()
	content, err := w.fl.Wait(patience)
	return content, s.explain(ctx, patience, err)
}

// explain says why replicas were of no use where an error means that the patience is over.
func (s *Set) explain(ctx, patience context.Context, err error) error {
	switch {
	case err != nil && s.ctx.Err() != nil:
		return ErrClosed
	case err == nil || patience.Err() == nil || ctx.Err() != nil:
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	errs := []error{fmt.Errorf("waited %s: %w", s.o.Patience, ErrNoReplica)}
	for _, r := range s.replicas {
		if r.err != nil {
			errs = append(errs, r.err)
		}
	}
	return errors.Join(errs...)
}

// answer is what ask returns, with the patience of the set.
func answer[T any](ctx context.Context, s *Set, chunk int64, do func(context.Context, *Image) (T, error)) (T, error) {
	patience, cancel := context.WithTimeout(ctx, s.o.Patience)
	defer cancel()
	v, err := ask(patience, s, span{chunk, chunk + 1}, do)
	return v, s.explain(ctx, patience, err)
}

// NextData returns what [Image.NextData] does.
func (s *Set) NextData(ctx context.Context, off int64) (int64, error) {
	chunk := min(max(off, 0)/int64(s.g.chunkSize), s.g.chunks()-1)
	return answer(ctx, s, chunk, func(ctx context.Context, im *Image) (int64, error) { return im.NextData(ctx, off) })
}

// Chunk returns what [Image.Chunk] does.
func (s *Set) Chunk(ctx context.Context, index int64) (d Digest, zeros bool, err error) {
	type chunk struct {
		digest Digest
		zeros  bool
	}
	if index < 0 || index >= s.g.chunks() {
		return d, false, fmt.Errorf("chunk %d: the image has %d", index, s.g.chunks())
	}
	c, err := answer(ctx, s, index, func(ctx context.Context, im *Image) (c chunk, err error) {
		c.digest, c.zeros, err = im.Chunk(ctx, index)
		return c, err
	})
	return c.digest, c.zeros, err
}

// Digests fills d with the digests of the chunks from index first on. That of a chunk of zeros is the zero Digest. It waits for replicas as Read does.
func (s *Set) Digests(ctx context.Context, first int64, d []Digest) error {
	if first < 0 || int64(len(d)) > s.g.chunks()-first {
		return fmt.Errorf("chunks %d to %d: the image has %d", first, first+int64(len(d))-1, s.g.chunks())
	}
	got, err := answer(ctx, s, first, func(ctx context.Context, im *Image) ([]Digest, error) { return im.digests(ctx, first, len(d)) })
	copy(d, got)
	return err
}

// Close ends what is under way, with [ErrClosed] for those who wait for it, and waits until it has ended. No call may begin afterwards.
func (s *Set) Close() error {
	s.cancel()
	s.work.Wait()
	var errs []error
	for _, r := range s.replicas {
		if r.member != nil {
			errs = append(errs, r.member.close())
		}
	}
	s.replicas = nil
	return errors.Join(errs...)
}
