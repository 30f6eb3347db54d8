package node

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"

	"coppice/cache"
	"coppice/cache/disk"
	cachepeer "coppice/cache/peer"
	"coppice/certs"
	"coppice/union"
)

// nodeCache is what all devices of this node read images through.
type nodeCache struct {
	*cache.Cache
	cfg       CacheConfig
	log       *slog.Logger
	peers     *cachepeer.Client // nil: none
	appliance *cachepeer.Client // nil: none
	server    *cachepeer.Server // nil: others are given nothing
	handler   *cachepeer.Handler

	changing sync.Mutex                // held while the disk tier comes or goes
	disk     atomic.Pointer[disk.Disk] // nil: none just now
	lender   *union.Store              // whose region the disk tier is in
}

func openCache(cfg Config) (*nodeCache, error) {
	c := &nodeCache{cfg: cfg.Cache, log: cfg.Log}
	if err := c.open(cfg); err != nil {
		return nil, errors.Join(fail(CodeBadRequest, "correct the section cache of the configuration", "open cache: %w", err), c.close())
	}
	return c, nil
}

func (c *nodeCache) open(cfg Config) (err error) {
	o := cache.Options{
		MemoryBytes: int64(*c.cfg.Memory), Policy: cache.Policy(c.cfg.Policy), PeersTime: c.cfg.tierTime(), ApplianceTime: c.cfg.tierTime(), Log: cfg.Log,
	}
	var files *certs.Files
	if c.cfg.CA != "" {
		if files, err = certs.Open(c.cfg.CA, c.cfg.TLSCert, c.cfg.TLSKey); err != nil {
			return err
		}
	}
	po := cachepeer.Options{
		TLS: files, Insecure: c.cfg.Insecure, ID: cachepeer.NewID(), Patience: c.cfg.patience(), Silence: c.cfg.silence(), Log: cfg.Log,
	}
	if c.cfg.Peers != "" {
		po.Self = c.cfg.Self
		if c.peers, err = cachepeer.Open(c.cfg.Peers, po); err != nil {
			return err
		}
		o.Peers = c.peers
	}
	if len(c.cfg.Appliances) > 0 {
		ao := po
		ao.Self, ao.All = "", true
		if c.appliance, err = cachepeer.New(c.cfg.Appliances, ao); err != nil {
			return err
		}
		o.Appliance = c.appliance
	}
	if c.Cache, err = cache.New(o); err != nil {
		return err
	}
	if c.cfg.Disk != "" {
		if err := c.openDisk(); err != nil {
			return err
		}
	}
	if c.cfg.Listen == "" {
		return nil
	}
	c.handler = cachepeer.NewHandler(c.Cache, cachepeer.HandlerOptions{ID: po.ID, MaxTime: max(cachepeer.DefaultMaxTime, c.cfg.patience()), Log: cfg.Log})
	if c.cfg.Insecure {
		files = nil
	}
	c.server, err = cachepeer.Listen(c.cfg.Listen, c.handler, cachepeer.ServerOptions{TLS: files, Log: cfg.Log})
	return err
}

// close ends what others take, and gives the memory back, unless an image is open still, which may be read: then the process is about to end.
func (c *nodeCache) close() error {
	errs := []error{c.stopGiving()}
	if c.Cache != nil && c.Stats().Images == 0 {
		errs = append(errs, c.Close())
	}
	for _, p := range []*cachepeer.Client{c.peers, c.appliance} {
		if p != nil {
			errs = append(errs, p.Close())
		}
	}
	return errors.Join(errs...)
}

// stopGiving closes what takes long to close, and what an upgrade closes ahead: what others take, and the disk tier. What is read meanwhile is read without that tier.
func (c *nodeCache) stopGiving() error {
	var err error
	if c.server != nil {
		err = c.server.Close()
		c.server = nil
	}
	c.changing.Lock()
	defer c.changing.Unlock()
	return errors.Join(err, c.closeDisk())
}

// CacheReport is what the cache of a node holds and did.
type CacheReport struct {
	cache.Stats
	// What the tiers themselves tell; nil where there is none.
	DiskTier *disk.Stats             `json:"disk_tier,omitempty"`
	PeerList *cachepeer.Stats        `json:"peer_list,omitempty"`
	Given    *cachepeer.HandlerStats `json:"given,omitempty"` // to peers

	Prefetch PrefetchStats `json:"prefetch"`
	Devices  []DeviceCache `json:"devices"`
}

// DeviceCache is what a device read through the cache.
type DeviceCache struct {
	Name    string `json:"name"`
	Content string `json:"content"` // content root of its image
	cache.ReaderStats
}

// CacheStats reports on the cache.
func (d *Daemon) CacheStats() CacheReport {
	r := CacheReport{Stats: d.cache.Stats(), Prefetch: d.roots.prefetch.stats(), Devices: []DeviceCache{}}
	if tier := d.cache.disk.Load(); tier != nil {
		s := tier.Stats()
		r.DiskTier = &s
	}
	if c := d.cache; c.peers != nil {
		s := c.peers.Stats()
		r.PeerList = &s
	}
	if c := d.cache; c.handler != nil {
		s := c.handler.Stats()
		r.Given = &s
	}
	for _, v := range d.all() {
		root := v.imageRoot()
		if s := root.stats(); s != nil {
			r.Devices = append(r.Devices, DeviceCache{v.record().Device.Name, root.set.ContentRoot().String(), *s})
		}
	}
	return r
}

// imageRoot returns the image that a device stands on while it is served, or nil.
func (v *device) imageRoot() *imageRoot {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.back.image()
}

// CacheDropRequest says what to forget.
type CacheDropRequest struct {
	Disk bool `json:"disk"` // what the disk tier holds, too
}

// DropCache forgets the chunks that are cached on this node.
func (d *Daemon) DropCache(ctx context.Context, r CacheDropRequest) (CacheReport, error) {
	if err := d.begin(ctx); err != nil {
		return CacheReport{}, err
	}
	defer d.ops.Done()
	if err := d.cache.Drop(r.Disk); err != nil {
		return CacheReport{}, err
	}
	d.log.Info("cache dropped", "disk", r.Disk)
	return d.CacheStats(), nil
}

// CacheSetRequest changes the cache while it is in use, until the daemon ends.
type CacheSetRequest struct {
	MemoryBytes int64 `json:"memory_bytes"` // threshold of the memory tier; 0 for what is chosen where the configuration says nothing
}

// SetCache changes the threshold of the memory tier. What is beyond a lower one has been given back when it returns.
func (d *Daemon) SetCache(ctx context.Context, r CacheSetRequest) (CacheReport, error) {
	if err := d.begin(ctx); err != nil {
		return CacheReport{}, err
	}
	defer d.ops.Done()
	if err := d.cache.SetMemory(r.MemoryBytes); err != nil {
		return CacheReport{}, fail(CodeBadRequest, "give another --memory", "%w", err)
	}
	rep := d.CacheStats()
	d.log.Info("memory of the cache changed", "bytes", rep.Memory.ThresholdBytes)
	return rep, nil
}

// pastRoot is an image as it is read by who reads all of it once, such as an export: what the devices read again stays in memory. It takes from memory and the
// disk tier what they have, and leaves nothing there.
type pastRoot struct{ *imageRoot }

// past returns a root as it is read by who reads all of it once. The root stays the caller's.
func past(base union.Base) union.Base {
	if r, ok := base.(*imageRoot); ok {
		return pastRoot{r}
	}
	return base
}

// TryRead returns false: whoever reads all of it can wait.
func (r pastRoot) TryRead([]byte, int64) (union.Origins, bool) { return 0, false }

// ReadAsync reads in a goroutine of its own. Nobody asks it where the bytes come from.
func (r pastRoot) ReadAsync(p []byte, off int64, done func(union.Origins, error)) {
	go func() {
		read := r.set.Read
		if r.reader != nil {
			read = r.reader.ReadPast
		}
		done(0, rootError(read(r.ctx, p, off)))
	}()
}
