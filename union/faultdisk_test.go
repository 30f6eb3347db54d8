package union

import (
	"errors"
	"syscall"

	"coppice/ublk/ublktest"
)

// faultDisk stops the blocking I/O of a store (opening, checkpoints, layers) at a chosen call: that call and all
// later ones fail, and nothing reaches the disk any more.
type faultDisk struct {
	*ublktest.Disk
	left   int                  // writes and syncs that still work; negative: all
	garble bool                 // the write that fails leaves garbage
	stop   func(off int64) bool // a write there is the first call that fails, if not nil
	during func()               // called before each write and sync, for what goes on meanwhile
}

func (d *faultDisk) spend() error {
	if d.during != nil {
		d.during()
	}
	if d.left == 0 {
		return syscall.EIO
	}
	d.left--
	return nil
}

func (d *faultDisk) WriteAt(p []byte, off int64) (int, error) {
	if d.stop != nil && d.stop(off) {
		d.left = 0
	}
	if err := d.spend(); err != nil {
		if d.garble {
			d.garble = false
			return 0, errors.Join(err, d.scribble(len(p), off))
		}
		return 0, err
	}
	return d.Disk.WriteAt(p, off)
}

// scribble writes what a disk may leave that loses power while it writes: neither old nor new.
func (d *faultDisk) scribble(n int, off int64) error {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7 + 1)
	}
	_, err := d.Disk.WriteAt(p, off)
	return err
}

func (d *faultDisk) Sync() error {
	if err := d.spend(); err != nil {
		return err
	}
	return d.Disk.Sync()
}

// Close leaves the disk for the next life of the store.
func (*faultDisk) Close() error { return nil }
