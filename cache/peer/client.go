package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"coppice/cache"
	"coppice/certs"
	"coppice/image"
)

const (
	// owners is how many peers are asked for a chunk before the origin is.
	owners = 2
	// lookTime is how often the file of a list is looked at.
	lookTime = time.Second
	// remembered is of how many chunks it is known who gave them.
	remembered = 4096

	defaultSilence  = 250 * time.Millisecond
	defaultPatience = 600 * time.Millisecond
)

// Options say how peers are asked. The zero value is complete, but for TLS.
type Options struct {
	// TLS has the authorities whose certificates peers have to show, beside no others, and the certificate to show to them.
	TLS *certs.Files
	// Insecure takes peers at http URLs too.
	Insecure bool
	// Self is the URL of this node in the list: see [ParseURL]. It is "" for one that is not a peer itself.
	Self string
	// ID is a [NewID] that the handler of this node has too, so that one in whose list this node has another name finds out.
	ID string
	// All asks any of the list for a fetch, one after the other: they are appliances, and this node is none.
	All bool
	// Silence is how long a peer may say nothing while it is asked. 0 means 250 ms.
	Silence time.Duration
	// Patience is how long a Get may take. 0 means 600 ms.
	Patience time.Duration
	// Log is told when peers go and come. nil means [slog.Default].
	Log *slog.Logger

	look, liar time.Duration // instead of lookTime and minLiar, for tests
}

func (o Options) withDefaults() Options {
	if o.Silence == 0 {
		o.Silence = defaultSilence
	}
	if o.Patience == 0 {
		o.Patience = defaultPatience
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.look == 0 {
		o.look = lookTime
	}
	if o.liar == 0 {
		o.liar = minLiar
	}
	return o
}

// Client takes chunks from peers or appliances. It is a [cache.Tier], and safe for concurrent use.
type Client struct {
	o    Options
	web  *web
	path string // of the list; "" where it does not change

	ctx    context.Context // ends when the client is closed
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu      sync.Mutex // guards what follows, and what each peer says it guards; nothing is waited for under it
	list    []*remote
	listErr error  // what is wrong with the file of the list
	selfURL string // o.Self in the one way to write it, or what was found out since
	given   *simplelru.LRU[cache.Key, giver]
}

// giver is who gave a chunk.
type giver struct {
	r    *remote
	held bool
}

var (
	_ cache.Tier   = (*Client)(nil)
	_ cache.Holder = (*Client)(nil)
	_ cache.Hearer = (*Client)(nil)
	_ cache.Hearer = (*cache.Cache)(nil)
)

// New returns a client of peers that do not change.
func New(urls []string, o Options) (*Client, error) {
	canonical := make([]string, 0, len(urls))
	for i, text := range urls {
		u, err := ParseURL(text, o.Insecure)
		if err != nil {
			return nil, fmt.Errorf("peer %d: %w", i+1, err)
		}
		if slices.Contains(canonical, u) {
			return nil, fmt.Errorf("peer %s is named twice: %w", u, ErrBadList)
		}
		canonical = append(canonical, u)
	}
	c, err := newClient(o)
	if err != nil {
		return nil, err
	}
	c.take(canonical)
	return c, nil
}

// Open returns a client of the peers in a file: see [ParseList]. The file is looked at every second. What has not changed for a second is taken. What cannot be read is told in the log, and the
// list from before stays; before there was any it is empty, since being without peers is no error.
func Open(path string, o Options) (*Client, error) {
	c, err := newClient(o)
	if err != nil {
		return nil, err
	}
	c.path = path
	first := look(path)
	c.consider(first)
	c.work.Go(func() { c.watch(first) })
	return c, nil
}

func newClient(o Options) (*Client, error) {
	c := &Client{o: o.withDefaults()}
	if o.Self != "" {
		var err error
		if c.selfURL, err = ParseURL(o.Self, o.Insecure); err != nil {
			return nil, fmt.Errorf("this node's own name: %w", err)
		}
	}
	if o.TLS != nil {
		if content, _ := o.TLS.Current(); content.CA == nil || content.Pair == nil {
			return nil, errors.New("peers: certificates of an authority, and one of this node with its key, are needed")
		}
	} else if !o.Insecure {
		return nil, errors.New("peers: certificates are needed")
	}
	c.web = newWeb(o.TLS, c.o.Patience)
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.given, _ = simplelru.NewLRU[cache.Key, giver](remembered, nil) // fails for sizes below 1
	return c, nil
}

// Close ends what is under way and waits until it has ended.
func (c *Client) Close() error {
	c.mu.Lock()
	c.cancel() // nobody is put aside from now on
	c.mu.Unlock()
	c.work.Wait()
	c.web.close()
	return nil
}

// sight is what the file of a list was like.
type sight struct {
	text []byte
	err  error
}

func (s sight) same(other sight) bool {
	if s.err != nil || other.err != nil {
		return s.err != nil && other.err != nil && s.err.Error() == other.err.Error()
	}
	return bytes.Equal(s.text, other.text)
}

func look(path string) (s sight) {
	s.text, s.err = readList(path)
	return s
}

// watch takes lists that have stayed the same for one look: others may be written just now.
func (c *Client) watch(taken sight) {
	t := time.NewTicker(c.o.look)
	defer t.Stop()
	before := taken
	for {
		select {
		case <-t.C:
		case <-c.ctx.Done():
			return
		}
		now := look(c.path)
		if now.same(before) && !now.same(taken) {
			c.consider(now)
			taken = now
		}
		before = now
	}
}

// consider takes the list that the file has, or tells what is wrong with it.
func (c *Client) consider(s sight) {
	err := s.err
	var urls []string
	if err == nil {
		urls, err = ParseList(s.text, c.o.Insecure)
	}
	if err != nil {
		err = fmt.Errorf("list of peers %s: %w", c.path, err)
		c.o.Log.Error("list of peers cannot be used; the one from before is", "error", err)
	} else {
		c.take(urls)
		c.o.Log.Info("list of peers read", "path", c.path, "peers", len(urls))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.listErr = err
}

// take makes a list of URLs as [ParseURL] returns them the one that counts. Peers that were in the one before stay as they are.
func (c *Client) take(urls []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	known := map[string]*remote{}
	for _, r := range c.list {
		known[r.url] = r
	}
	c.list = make([]*remote, 0, len(urls))
	for _, url := range urls {
		r := known[url]
		if delete(known, url); r == nil {
			r = c.newRemote(url)
		}
		c.list = append(c.list, r)
	}
	for _, r := range known {
		r.removed()
	}
	if own := c.selfURL; own != "" && !c.hasSelf() {
		c.o.Log.Info("this node is not in the list of peers: others do not ask it", "self", own)
	}
}

// self returns the seed of this node, and whether it is in the list. mu is held.
func (c *Client) self() (uint64, bool) {
	if !c.hasSelf() {
		return 0, false
	}
	return seedOf(c.selfURL), true
}

func (c *Client) hasSelf() bool {
	for _, r := range c.list {
		if r.url == c.selfURL {
			return true
		}
	}
	return false
}

// Get asks the peers that should have a chunk, or fetch it. It ends within [Options.Patience].
func (c *Client) Get(ctx context.Context, chunk cache.Chunk, p []byte) error {
	return c.ask(ctx, chunk, p, c.fetchers, false)
}

// Held asks the peer that is the most likely to have a chunk already, which does not fetch it. It is for one who is about to go to the origin for all.
func (c *Client) Held(ctx context.Context, chunk cache.Chunk, p []byte) error {
	return c.ask(ctx, chunk, p, c.holders, true)
}

func (c *Client) ask(ctx context.Context, chunk cache.Chunk, p []byte, whom func(cache.Chunk) []turn, held bool) error {
	patience, cancel := context.WithTimeoutCause(ctx, c.o.Patience, ErrSlow)
	defer cancel()
	for {
		err := c.askAll(patience, chunk, p, whom, held)
		if err == nil || held || !c.o.All || !c.waitForBusy(patience) {
			return err
		}
	}
}

// waitForBusy waits until an appliance may be asked again that has too much to do, and reports whether there is one and patience for it. If all who find it busy went to the origin, that would have to do what the
// appliance is there for.
func (c *Client) waitForBusy(patience context.Context) bool {
	wait := time.Duration(-1)
	c.mu.Lock()
	for _, r := range c.list {
		if d := time.Until(r.busy); r.state == StateReady && d > 0 && (wait < 0 || d < wait) {
			wait = d
		}
	}
	c.mu.Unlock()
	if wait < 0 {
		return false
	}
	timer := time.NewTimer(wait + rand.N(busyTime)) // not all at once
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-patience.Done():
		return false
	}
}

// askAll asks one after the other.
func (c *Client) askAll(patience context.Context, chunk cache.Chunk, p []byte, whom func(cache.Chunk) []turn, held bool) error {
	c.mu.Lock()
	turns := whom(chunk)
	c.mu.Unlock()
	var errs []error
	for _, t := range turns {
		err := t.r.ask(patience, chunk, p, held)
		switch {
		case err == nil:
			return nil
		case !isMiss(err):
			errs = append(errs, fmt.Errorf("peer %s: %w", t.r.url, err))
		}
		if patience.Err() != nil {
			break
		}
	}
	if len(errs) == 0 {
		return cache.ErrMiss
	}
	return errors.Join(errs...)
}

// Heard takes down that a peer has an image open. That it says so itself makes no difference but to who is asked for what.
func (c *Client) Heard(url string, root image.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.list {
		if r.url == url {
			r.roots.learn(root, true)
		}
	}
}

// Put does nothing: peers take what they want.
func (c *Client) Put(cache.Chunk, []byte) {}

// Reject puts the peer aside that gave a chunk.
func (c *Client) Reject(chunk cache.Chunk) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if g, ok := c.given.Get(chunk.Key); ok {
		c.given.Remove(chunk.Key)
		g.r.lied(suspect{chunk, g.held})
	}
}
