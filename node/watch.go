package node

import (
	"errors"
	"fmt"
)

// errSnatched says what became of a device that was served and is not any more.
var errSnatched = errors.New("another program removed the device from the kernel")

// watch waits for a device to be lost: broken, or taken away by somebody else. It ends
// with the service of the device, at the latest when the driver is closed.
func (d *Daemon) watch(v *device, disk Disk) {
	select {
	case <-disk.Done():
	case <-disk.Broken():
		d.broken(v, disk)
		<-disk.Done()
	}
	d.latency.leave(disk, d.quit.Err() != nil)
	if v.enter(StateStopping, StateLive) != nil {
		return // stopped by us
	}
	name := v.record().Device.Name
	err := errors.Join(errSnatched, v.closeBacking())
	v.setFailed(fail(CodeFailed, "its layer is as it was", "%w", err))
	d.log.Error("device lost; the next start of the daemon makes it again", "device", name, "path", disk.Path(), "error", oneLine(err))
}

// broken makes a report of a device that is served only in part: to stop it would take away what
// works, so that is left to the administrator.
func (d *Daemon) broken(v *device, disk Disk) {
	err := fmt.Errorf("part of the device is not served any more: %w", disk.Err())
	d.log.Error("device broken", "device", v.record().Device.Name, "path", disk.Path(), "error", err)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.disk == disk {
		v.err = fail(CodeFailed, "unmount what can be", "%w", err)
	}
}
