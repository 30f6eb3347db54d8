package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"coppice/ublk"
)

// stopAll ends the service of every device without losing anything, and closes the driver: it
// returns only when the kernel holds nothing that needs this process. Operations under way end
// first.
func (d *Daemon) stopAll() error {
	d.mu.Lock()
	d.stopping = true
	d.mu.Unlock()
	d.stopWork()
	d.ops.Wait()

	forEach(d.all(), d.stopDevice)
	errs := d.closeLeaves(d.allOf(StateStopping))
	// Only now is nothing served any more that a failed recovery may have left.
	errs = append(errs, d.driver.Close())
	return errors.Join(append(errs, d.closeLeaves(d.allOf(StateFailed))...)...)
}

func (d *Daemon) allOf(s State) []*device {
	return slices.DeleteFunc(d.all(), func(v *device) bool { return v.current() != s })
}

// closeLeaves closes what lies below devices that nobody serves any more.
func (d *Daemon) closeLeaves(list []*device) (errs []error) {
	var mu sync.Mutex // of errs
	forEach(list, func(v *device) {
		if err := v.closeBacking(); err != nil {
			name := v.record().Device.Name
			d.log.Error("leaf did not close well", "device", name, "error", oneLine(err))
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, fmt.Errorf("close leaf of %s: %w", name, err))
		}
	})
	return errs
}

// retryPause is how often a device that can neither be stopped nor left is tried again.
const retryPause = time.Second

// stopDevice stops the device where it is idle, else leaves it quiesced. Its record stays as
// it is. What lies below stays open: other devices may share it.
func (d *Daemon) stopDevice(v *device) {
	if v.enter(StateStopping, StateLive) != nil {
		return
	}
	log := d.log.With("device", v.record().Device.Name, "path", v.disk.Path())
	quiet := noticeSlow(slowToStop, func(waited time.Duration) {
		log.Warn("still stopping device; waiting for its data to be written", "seconds", int(waited.Seconds()))
	})
	defer quiet()
	for first, until := true, time.Now().Add(d.cfg.LastWait); ; first = false {
		last := d.ending()
		stopped, detached := d.tryStop(v.disk, last)
		switch {
		case stopped == nil:
			if err := d.names.clear(v.record().Device.ID); err != nil {
				log.Warn("name of the device not taken back from udev", "error", err)
			}
			log.Info("device stopped; it comes back with the next start of the daemon")
			return
		case detached == nil:
			log.Warn("DEVICE IN USE IS LEFT QUIESCED: its I/O waits until the daemon is started again",
				"reason", oneLine(stopped), "users", users(v.disk.Path()))
			return
		case last && first:
			log.Warn("the machine goes down, and the device is in use: it is served until it is released", "reason", oneLine(stopped), "users", users(v.disk.Path()))
		case last && time.Now().After(until):
			d.dropInUse(v, log)
			return
		case last:
		case first:
			log.Error("DEVICE CAN NEITHER BE STOPPED NOR LEFT: the daemon goes on serving it until it is released; unmount it",
				"reason", oneLine(stopped), "detach", oneLine(detached), "users", users(v.disk.Path()))
		}
		time.Sleep(retryPause)
	}
}

// tryStop returns how the stop ended and, where it failed, how the detachment did, which is not tried if there will be no next daemon. A device that a process has
// open is not stopped: that process would get errors, and its next daemon comes soon.
func (d *Daemon) tryStop(disk Disk, last bool) (stopped, detached error) {
	ctx := context.Background() // never cut short: data would be lost
	if who := lastingOpeners(disk.Path()); len(who) > 0 {
		stopped = fmt.Errorf("%s: %w", strings.Join(who, ", "), ublk.ErrInUse)
	} else if stopped = disk.Stop(ctx); stopped == nil {
		return nil, nil
	}
	if !errors.Is(stopped, ublk.ErrInUse) {
		stopped = fmt.Errorf("stop: %w", stopped)
	}
	if last {
		return stopped, errEnding
	}
	return stopped, disk.Detach(ctx)
}

// users are all who have the device at path in use in some way.
func users(path string) []string {
	u := readUsage()
	return append(u.holders(path), u.openers(path)...)
}

// slowToStop is how often it is told that a device is being stopped still.
const slowToStop = 10 * time.Second

// noticeSlow calls say again and again until the returned function is called.
func noticeSlow(every time.Duration, say func(waited time.Duration)) (done func()) {
	began := time.Now()
	stop := make(chan struct{})
	ticker := time.NewTicker(every)
	go func() {
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				say(time.Since(began))
			case <-stop:
				return
			}
		}
	}()
	return func() { close(stop) }
}
