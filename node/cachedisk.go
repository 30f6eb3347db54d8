package node

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"

	"coppice/cache"
	"coppice/cache/disk"
	"coppice/union"
)

// diskTier is the disk tier of the cache: a file or device of its own, or the region that an open leaf store has for it. A store's comes and goes with the
// store; while there is none, every chunk is a miss.
type diskTier struct {
	log  *slog.Logger
	disk atomic.Pointer[disk.Disk] // nil: none

	mu   sync.Mutex   // held while disk is changed
	own  bool         // it has a place of its own
	lent *union.Store // whose region is in use
}

// openOwn gives the tier a place of its own.
func (t *diskTier) openOwn(path string, o disk.Options) error {
	d, err := disk.Open(path, o)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.own = true
	t.disk.Store(d)
	return nil
}

// borrow takes the region of a store that has just been opened, if it has one and there is no other place. A region that cannot be used is told, and done
// without.
func (t *diskTier) borrow(s *union.Store, path string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	file, off, length := s.CacheRegion()
	if length == 0 || t.own || t.lent != nil {
		return
	}
	d, err := disk.OpenRegion(disk.Region{Name: path, File: file, Off: off, Length: length}, disk.Options{Log: t.log})
	if err != nil {
		t.log.Warn("region for the cache in a leaf store not used", "store", path, "error", err)
		return
	}
	t.lent = s
	t.disk.Store(d)
	t.log.Info("cache uses its region in a leaf store", "store", path, "bytes", length)
}

// giveBack gives the region of a store up, before the store is closed.
func (t *diskTier) giveBack(s *union.Store) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lent != s {
		return
	}
	t.lent = nil
	if err := t.disk.Swap(nil).Close(); err != nil {
		t.log.Warn("region for the cache in a leaf store not closed well: some chunks will be missing in it", "error", err)
	}
}

// close gives up whatever place the tier has. It is not used any more.
func (t *diskTier) close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lent, t.own = nil, true
	if d := t.disk.Swap(nil); d != nil {
		return d.Close()
	}
	return nil
}

// Get is [disk.Disk.Get].
func (t *diskTier) Get(ctx context.Context, c cache.Chunk, p []byte) error {
	if d := t.disk.Load(); d != nil {
		return d.Get(ctx, c, p)
	}
	return cache.ErrMiss
}

// Put is [disk.Disk.Put].
func (t *diskTier) Put(c cache.Chunk, content []byte) {
	if d := t.disk.Load(); d != nil {
		d.Put(c, content)
	}
}

// Reject is [disk.Disk.Reject].
func (t *diskTier) Reject(c cache.Chunk) {
	if d := t.disk.Load(); d != nil {
		d.Reject(c)
	}
}

// Drop forgets all chunks, for [cache.Cache.Drop].
func (t *diskTier) Drop() {
	if d := t.disk.Load(); d != nil {
		d.Drop()
	}
}

// stats returns nil where there is no place just now.
func (t *diskTier) stats() *disk.Stats {
	d := t.disk.Load()
	if d == nil {
		return nil
	}
	s := d.Stats()
	return &s
}
