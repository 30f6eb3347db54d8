package node

import (
	"context"

	"coppice/cache"
	"coppice/union"
)

// nodeCache is what all devices of this node read images through.
type nodeCache struct {
	*cache.Cache
	cfg CacheConfig
}

func openCache(cfg Config) (*nodeCache, error) {
	c, err := cache.New(cache.Options{
		MemoryBytes: int64(*cfg.Cache.Memory), Policy: cache.Policy(cfg.Cache.Policy), Log: cfg.Log,
	})
	if err != nil {
		return nil, fail(CodeBadRequest, "correct the section cache of the configuration", "%w", err)
	}
	return &nodeCache{Cache: c, cfg: cfg.Cache}, nil
}

// close gives the memory back, unless an image is open still, which may be read: then the process is about to end.
func (c *nodeCache) close() error {
	if c.Stats().Images > 0 {
		return nil
	}
	return c.Close()
}

// CacheReport is what the cache of a node holds and did.
type CacheReport struct {
	cache.Stats
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
	for _, v := range d.all() {
		if root := v.imageRoot(); root != nil && root.reader != nil {
			r.Devices = append(r.Devices, DeviceCache{v.record().Device.Name, root.set.ContentRoot().String(), root.reader.Stats()})
		}
	}
	return r
}

// imageRoot returns the image that a device stands on while it is served, or nil.
func (v *device) imageRoot() *imageRoot {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.back == nil {
		return nil
	}
	root, _ := v.back.base.(*imageRoot)
	return root
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
func (r pastRoot) TryRead([]byte, int64) bool { return false }

// ReadAsync reads in a goroutine of its own.
func (r pastRoot) ReadAsync(p []byte, off int64, done func(error)) {
	go func() {
		read := r.set.Read
		if r.reader != nil {
			read = r.reader.ReadPast
		}
		done(rootError(read(r.ctx, p, off)))
	}()
}
