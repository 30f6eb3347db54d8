package union

import (
	"syscall"

	"coppice/ublk/ublktest"
)

// faultDisk stops the blocking I/O of a store (opening, checkpoints, layers) at a chosen call: that call and all
// later ones fail, and nothing reaches the disk any more.
type faultDisk struct {
	*ublktest.Disk
	left   int // writes and syncs that still work; negative: all
	writes int // that worked
	syncs  int
}

func (d *faultDisk) spend() error {
	if d.left == 0 {
		return syscall.EIO
	}
	d.left--
	return nil
}

func (d *faultDisk) WriteAt(p []byte, off int64) (int, error) {
	if err := d.spend(); err != nil {
		return 0, err
	}
	d.writes++
	return d.Disk.WriteAt(p, off)
}

func (d *faultDisk) Sync() error {
	if err := d.spend(); err != nil {
		return err
	}
	d.syncs++
	return d.Disk.Sync()
}

// Close leaves the disk for the next life of the store.
func (*faultDisk) Close() error { return nil }
