package union

import "fmt"

// quotaSlack is by how many blocks metadata may exceed a quota.
func quotaSlack(quota uint64) uint64 { return min(quota/16, 16<<20>>blockShift) }

// holdQuota reserves room for blocks that the layer does not hold yet, and reports whether there is. Overwrites need none, also
// beyond the quota.
func (l *Layer) holdQuota(o *op, fresh int, c class) bool {
	if l.quota.Load() == 0 || fresh == 0 {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.m.dataBlocks()+l.reserved+uint64(fresh) > l.quotaOf(c) {
		return false
	}
	l.reserved += uint64(fresh)
	o.held = uint64(fresh)
	o.owes = true
	return true
}

// quotaOf is how many blocks a class of requests may fill. There is a quota.
func (l *Layer) quotaOf(c class) uint64 {
	q := l.quota.Load()
	if c < classData {
		q += quotaSlack(q)
	}
	return q
}

// quotaVerdict tells how a request stands to the quota.
type quotaVerdict uint8

const (
	quotaFree     quotaVerdict = iota
	quotaReserved              // there is room if others do not use what they reserved
	quotaUsed
)

func (l *Layer) quotaFor(fresh int, c class) quotaVerdict {
	if l.quota.Load() == 0 || fresh == 0 {
		return quotaFree
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch have, q := l.m.dataBlocks()+uint64(fresh), l.quotaOf(c); {
	case have+l.reserved <= q:
		return quotaFree
	case have <= q:
		return quotaReserved
	}
	return quotaUsed
}

// quotaLeft tells how many blocks the quota has left, and how many it is.
func (l *Layer) quotaLeft() (left, quota uint64) {
	quota = l.quota.Load()
	l.mu.Lock()
	defer l.mu.Unlock()
	if used := l.m.dataBlocks(); used < quota {
		left = quota - used
	}
	return left, quota
}

// setQuota makes the catalog's quota the one that requests obey. The caller holds Store.mu, or has the store to itself.
func (l *Layer) setQuota() {
	l.quota.Store(uint64(l.entry.QuotaBytes) >> blockShift)
	sp := &l.store.space
	sp.mu.Lock()
	defer sp.mu.Unlock()
	l.name = l.entry.Name
	if l.entry.QuotaBytes > 0 {
		sp.quotas[l] = struct{}{}
		return
	}
	l.dropQuota()
}

// forgetQuota ends the watch over a layer that is removed.
func (s *Store) forgetQuota(l *Layer) {
	s.space.mu.Lock()
	l.dropQuota()
	s.space.mu.Unlock()
}

// dropQuota ends the watch over a layer's quota. The caller holds space.mu.
func (l *Layer) dropQuota() {
	delete(l.store.space.quotas, l)
	l.pool.level, l.pool.spent = 0, false
}

func validQuota(bytes int64) error {
	if bytes != 0 && bytes < blockSize {
		return fmt.Errorf("a quota of %d bytes: must be at least one block of 4 KiB, or none", bytes)
	}
	return nil
}

// SetQuota bounds the data that the layer itself holds, in bytes, rounded down to whole blocks; 0 removes the bound. It takes a write
// of the catalog. A quota below what the layer holds already lets overwrites and discards through and nothing else. Who
// waits for space goes on where there is some now.
func (l *Layer) SetQuota(bytes int64) (LayerInfo, error) {
	s := l.store
	s.mu.Lock()
	defer s.mu.Unlock()
	fail := func(err error) (LayerInfo, error) {
		return LayerInfo{}, fmt.Errorf("set quota of layer %q in store %s: %w", l.entry.Name, s.path, err)
	}
	switch {
	case s.closed:
		return fail(ErrClosed)
	case s.readOnly:
		return fail(ErrReadOnly)
	case l.entry.Sealed:
		return fail(ErrSealed)
	}
	if err := validQuota(bytes); err != nil {
		return fail(err)
	}
	was := l.entry.QuotaBytes
	l.entry.QuotaBytes = bytes &^ (blockSize - 1)
	if err := s.changeLayers(); err != nil {
		l.entry.QuotaBytes = was
		return fail(err)
	}
	l.setQuota()
	s.spaceFreed()
	return l.infoLocked(), nil
}

// Space describes how full the store is, and how full the layer's quota is (nil where it has none), without waiting for
// anything slow.
func (l *Layer) Space() (store SpaceInfo, quota *SpaceInfo, quotaBytes int64) {
	return l.store.spaceInfo(), l.quotaInfo(), int64(l.quota.Load()) << blockShift
}

// quotaInfo describes how full the quota is; nil where there is none.
func (l *Layer) quotaInfo() *SpaceInfo {
	if l.quota.Load() == 0 {
		return nil
	}
	sp := &l.store.space
	sp.mu.Lock()
	defer sp.mu.Unlock()
	left, quota := l.quotaLeft()
	sp.look(&l.pool, l.name, left, quota)
	info := l.pool.info(left, quota)
	return &info
}
