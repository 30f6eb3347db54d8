package node

import (
	"coppice/cache/disk"
	"coppice/union"
)

// openDisk opens the disk tier in a file or device of its own.
func (c *nodeCache) openDisk() error {
	o := disk.Options{Log: c.log}
	if c.cfg.DiskSize != nil {
		o.SizeBytes = int64(*c.cfg.DiskSize)
	}
	d, err := disk.Open(c.cfg.Disk, o)
	if err != nil {
		return err
	}
	c.useDisk(d)
	return nil
}

// borrow makes the region of a store that has just been opened the disk tier, if it has one and there is no other place. A region that cannot be used is told,
// and done without.
func (c *nodeCache) borrow(s *union.Store, path string) {
	c.changing.Lock()
	defer c.changing.Unlock()
	file, off, length := s.CacheRegion()
	if length == 0 || c.disk.Load() != nil {
		return
	}
	d, err := disk.OpenRegion(disk.Region{Name: path, File: file, Off: off, Length: length}, disk.Options{Log: c.log})
	if err != nil {
		c.log.Warn("region for the cache in a leaf store not used", "store", path, "error", err)
		return
	}
	c.lender = s
	c.useDisk(d)
	c.log.Info("cache uses its region in a leaf store", "store", path, "bytes", length)
}

// giveBack gives the region of a store up, before the store is closed.
func (c *nodeCache) giveBack(s *union.Store) {
	c.changing.Lock()
	defer c.changing.Unlock()
	if c.lender != s {
		return
	}
	c.lender = nil
	if err := c.closeDisk(); err != nil {
		c.log.Warn("region for the cache in a leaf store not closed well: some chunks will be missing in it", "error", err)
	}
}

func (c *nodeCache) useDisk(d *disk.Disk) {
	c.disk.Store(d)
	c.SetDisk(d)
}

// closeDisk gives the disk tier up, if there is one.
func (c *nodeCache) closeDisk() error {
	d := c.disk.Swap(nil)
	if d == nil {
		return nil
	}
	c.SetDisk(nil)
	return d.Close()
}
