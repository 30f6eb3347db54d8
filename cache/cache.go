package cache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"coppice/image"
)

// How long a tier may take for one chunk, unless the options say otherwise. Together they leave time for the origin, where a read shall take no more than two
// seconds though all of them hang.
const (
	defaultDiskTime      = 300 * time.Millisecond
	defaultPeersTime     = 700 * time.Millisecond
	defaultApplianceTime = 700 * time.Millisecond
)

// What fetches have in hand is on the Go heap, until it is collected. The threshold sets aside so much for it, and not more than one part in fetchShare.
const (
	fetchBytes = 16 << 20
	fetchShare = 8
)

// Options says how a [Cache] works. The zero value is complete: memory only.
type Options struct {
	// MemoryBytes is the threshold of the memory tier: chunks, what is known of them, and what fetches have in hand. 0 means an eighth of the machine's memory, at most 2 GiB.
	MemoryBytes int64
	// Policy decides which chunk goes when memory is full. "" means S3FIFO.
	Policy Policy

	// Tiers between memory and origin; nil where there is none. They stay the caller's, and are closed after the cache. See [Cache.SetDisk].
	Disk, Peers, Appliance Tier
	// How long each may take for one chunk, before the next one is asked. 0 means 300 ms for the disk and 700 ms for others.
	DiskTime, PeersTime, ApplianceTime time.Duration

	// Log is told of tiers that lie or do not answer. nil means [slog.Default].
	Log *slog.Logger

	heap    int64 // for tests: bytes of a slab on the Go heap
	noCurve bool  // for tests: nothing is sampled
}

func (o Options) withDefaults() (Options, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Policy == "" {
		o.Policy = S3FIFO
	}
	for limit, def := range map[*time.Duration]time.Duration{
		&o.DiskTime: defaultDiskTime, &o.PeersTime: defaultPeersTime, &o.ApplianceTime: defaultApplianceTime,
	} {
		if *limit < 0 {
			return o, fmt.Errorf("a time of %s for a tier: give one above 0", *limit)
		}
		if *limit == 0 {
			*limit = def
		}
	}
	return o, o.Policy.validate()
}

// Cache keeps chunks of images in memory, and asks the tiers behind it. It is safe for concurrent use.
type Cache struct {
	o                Options
	memory           *memory
	curve            *curve                // nil: none
	disk             atomic.Pointer[guard] // changes while the cache is used
	peers, appliance *guard
	near, far        stage
	digests          digestPages

	scanLimit atomic.Int64 // bytes of a stream that is a scan

	disks  tierCounts // what was asked of all disk tiers that there were
	fetch  histogram
	origin originCounts
	served servedCounts
	asked  asked

	notSmall failures // small blobs that could not be read

	limiting sync.Mutex // is held from where a limit is computed until memory keeps it

	mu        sync.Mutex // guards what follows; taken after limiting
	threshold int64
	roots     map[image.Digest][]*Root // by content
	digesting int64                    // bytes of digests, and of places for them, of all open images
	gone      ReaderStats              // of readers that were closed
}

// New makes a cache. Nothing is read before it is asked for.
func New(o Options) (*Cache, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("make cache: %w", err)
	}
	c := &Cache{
		o:         o,
		peers:     newGuard("peers", o.Peers, o.PeersTime, &tierCounts{}, o.Log),
		appliance: newGuard("appliance", o.Appliance, o.ApplianceTime, &tierCounts{}, o.Log),
		roots:     map[image.Digest][]*Root{},
	}
	c.SetDisk(o.Disk)
	c.near, c.far = stage{c: c, run: c.fetchNear}, stage{c: c, run: c.fetchFar}
	c.digests.charge = c.charge
	if c.memory, err = newMemory(o.Policy, o.heap, o.Log); err != nil {
		return nil, fmt.Errorf("make cache: %w", err)
	}
	if !o.noCurve {
		c.curve = newCurve(o.Policy, c.memory.machine, c.requestTotals)
		c.memory.curve = c.curve
	}
	if err := c.SetMemory(o.MemoryBytes); err != nil {
		return nil, errors.Join(fmt.Errorf("make cache: %w", err), c.memory.close())
	}
	return c, nil
}

// SetDisk replaces the disk tier; nil means that there is none. It does not wait for calls of the one before that are under way, or about to begin: that has to
// bear being closed meanwhile, as a disk cache does.
func (c *Cache) SetDisk(t Tier) { c.disk.Store(newGuard("disk", t, c.o.DiskTime, &c.disks, c.o.Log)) }

// SetMemory changes the threshold of the memory tier, in bytes. 0 means what it means in [Options]. What is beyond a lower threshold is given back to the
// system before it returns.
func (c *Cache) SetMemory(bytes int64) error {
	machine := c.memory.machine
	if bytes == 0 {
		bytes = max(MinMemory, min(machine/defaultShare, defaultMemory))
	}
	if bytes < MinMemory || bytes > machine {
		return fmt.Errorf("a memory cache of %d bytes: give between %d and %d, which the machine has", bytes, MinMemory, machine)
	}
	c.digests.setMost(pageBudget(bytes))
	c.limiting.Lock()
	defer c.limiting.Unlock()
	c.mu.Lock()
	c.threshold = bytes
	limit := c.chunkBytes()
	c.mu.Unlock()
	c.scanLimit.Store(scanLimit(bytes))
	if c.curve != nil {
		c.curve.setThreshold(bytes)
	}
	return c.memory.setLimit(limit)
}

// isScan reports whether a stream of so many bytes is one that reads more than memory should keep of it.
func (c *Cache) isScan(bytes int64) bool { return bytes > c.scanLimit.Load() }

// chunkBytes is what the threshold leaves for chunks in memory. It is called with mu held.
func (c *Cache) chunkBytes() int64 { return chunkBytes(c.threshold, c.digesting) }

// chunkBytes is what a threshold leaves for chunks where digests take so many bytes.
func chunkBytes(threshold, digests int64) int64 {
	return threshold - digests - min(threshold/fetchShare, fetchBytes) - curveBytes(threshold)
}

// charge takes bytes for digests from what chunks may have.
func (c *Cache) charge(bytes int64) {
	c.limiting.Lock()
	defer c.limiting.Unlock()
	c.mu.Lock()
	c.digesting += bytes
	if c.curve != nil {
		c.curve.digests.Store(c.digesting)
	}
	limit := c.chunkBytes()
	c.mu.Unlock()
	if err := c.memory.setLimit(limit); err != nil {
		c.o.Log.Warn("cache is above its threshold", "error", err)
	}
}

// Dropper is a tier that can forget all that it holds.
type Dropper interface {
	Drop()
}

// Drop forgets the chunks in memory, and, where disk says so, those in the disk tier.
func (c *Cache) Drop(disk bool) error {
	c.memory.drop()
	if c.curve != nil {
		c.curve.drop()
	}
	g := c.disk.Load()
	if !disk || g == nil {
		return nil
	}
	d, ok := g.tier.(Dropper)
	if !ok {
		return errors.New("drop cache: the disk tier cannot forget what it holds")
	}
	d.Drop()
	return nil
}

// Close gives the memory back. All images are closed, and no call is under way or begins afterwards.
func (c *Cache) Close() error { return c.memory.close() }

// have fills p from byte skip of a chunk on if that needs no tier but memory, and returns where it was.
func (c *Cache) have(key *Key, p []byte, skip int) Source {
	if *key == (Key{}) {
		clear(p)
		return FromZeros
	}
	if c.memory.read(key, p, skip, true) {
		return FromMemory
	}
	return fromNowhere
}

// Heard lets the tier of peers know that one of them has an image open.
func (c *Cache) Heard(url string, root image.Digest) {
	if h, ok := c.o.Peers.(Hearer); ok {
		h.Heard(url, root)
	}
}

// Serve fills p with a chunk for somebody else: from memory, the disk, or, where an image with the chunk's root is open that has it at its index, from the
// appliance or the origin; from peers only what they have, since they would ask each other in circles. It fails with [ErrMiss] where it cannot.
func (c *Cache) Serve(ctx context.Context, chunk Chunk, p []byte) error {
	err := c.serve(ctx, chunk, p)
	if err != nil {
		c.served.misses.Add(1)
		return err
	}
	c.served.hits.Add(1)
	c.served.bytes.Add(uint64(len(p)))
	return nil
}

func (c *Cache) serve(ctx context.Context, chunk Chunk, p []byte) error {
	if len(p) != chunk.Len || chunk.Len < 1 || chunk.Len > segmentBytes {
		return fmt.Errorf("serve chunk %s: a length of %d bytes, and room for %d", chunk.Key, chunk.Len, len(p))
	}
	if c.memory.read(&chunk.Key, p, 0, true) {
		return nil
	}
	if content := c.disk.Load().get(ctx, chunk); content != nil {
		c.curve.request(&chunk.Key, accessMiss, int64(chunk.Len), 0)
		c.memory.insert(&chunk.Key, content, false)
		copy(p, content)
		return nil
	}
	r := c.rootWith(ctx, chunk)
	if r == nil {
		c.curve.request(&chunk.Key, accessPast, int64(chunk.Len), 0)
		return ErrMiss
	}
	c.curve.request(&chunk.Key, accessMiss, max(int64(chunk.Len), r.chunkBytes()), 0)
	got, err := c.far.one(ctx, r, chunk)
	if err != nil {
		return fmt.Errorf("serve chunk %s: %w", chunk.Key, err)
	}
	copy(p, got.content)
	return nil
}

// rootsOf returns the open images with a content.
func (c *Cache) rootsOf(content image.Digest) []*Root {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.roots[content])
}

// rootWith returns an open image in which a chunk is where it says, or nil.
func (c *Cache) rootWith(ctx context.Context, chunk Chunk) *Root {
	roots := c.rootsOf(chunk.Root)
	if len(roots) == 0 && !chunk.isSmall() { // what is kept beside an image is asked of those who have that open
		c.openAsked(ctx, chunk.Root)
		roots = c.rootsOf(chunk.Root)
	}
	for _, r := range roots {
		if r.hasSmall(chunk) || r.hasTablePart(ctx, chunk) {
			return r
		}
		if chunk.Index < 0 || chunk.Index >= r.chunks || r.chunkLen(chunk.Index) != chunk.Len {
			continue
		}
		if d, err := r.digestOf(ctx, chunk.Index); err == nil && d == chunk.Key {
			return r
		}
	}
	return nil
}
