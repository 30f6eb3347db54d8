package disk

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

// breaker keeps writes away for a while after one that failed. The while doubles with each further one.
type breaker struct {
	mu    sync.Mutex // guards what follows
	off   bool
	why   string
	next  time.Time // when one may be tried
	pause time.Duration
}

// isOff reports whether nothing is to be tried now.
func (b *breaker) isOff() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.off && time.Now().Before(b.next)
}

// reason tells why writes fail, or nothing where they do not.
func (b *breaker) reason() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.why
}

// note takes up how a write went, and reports whether that is news.
func (b *breaker) note(err error, first time.Duration) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	was := b.off
	if b.off = err != nil; !b.off {
		b.why, b.pause = "", 0
		return was
	}
	b.pause = min(max(first, 2*b.pause), lastRetry)
	b.next = time.Now().Add(b.pause)
	b.why = err.Error()
	return !was
}

// noteWrite takes up how a write went.
func (d *Disk) noteWrite(err error) {
	if !d.writing.note(err, d.o.retry) {
		return
	}
	if err != nil {
		d.o.Log.Warn("disk cache takes no new chunks for now: a write failed", "cache", d.name, "error", err)
		return
	}
	d.o.Log.Info("disk cache takes new chunks again", "cache", d.name)
}

// turnOff makes every Get a miss until a probe succeeds.
func (d *Disk) turnOff(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed.Load() || d.off.Swap(true) {
		return
	}
	d.why = err.Error()
	d.count.trips.Add(1)
	d.o.Log.Warn("disk cache is off until its disk works again: what it holds is fetched from elsewhere", "cache", d.name, "error", err)
	if !d.o.inline {
		d.workers.Go(d.probe)
	}
}

// probe waits until the disk works.
func (d *Disk) probe() {
	for pause := d.o.retry; ; pause = min(2*pause, lastRetry) {
		t := time.NewTimer(pause)
		select {
		case <-d.stop:
			t.Stop()
			return
		case <-t.C:
		}
		if d.turnOn() {
			return
		}
	}
}

// turnOn ends being off where the header can be read, through the file that is open or one that is opened anew.
func (d *Disk) turnOn() bool {
	err := d.tryHeader()
	if err != nil && d.path != "" {
		err = d.reopen()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		d.why = err.Error()
		return false
	}
	d.why = ""
	d.badReads.Store(0)
	d.off.Store(false)
	d.o.Log.Info("disk cache works again", "cache", d.name)
	return true
}

// tryHeader reads the header.
func (d *Disk) tryHeader() error {
	done := make(chan error, 1)
	h := d.dev.Load()
	go func() { done <- d.sameHeader(h) }()
	t := time.NewTimer(d.o.ReadTimeout)
	defer t.Stop()
	select {
	case err := <-done:
		return err
	case <-t.C:
		return errTimeout
	}
}

// sameHeader fails unless the header of this cache lies on a device.
func (d *Disk) sameHeader(dev device) error {
	p := alignedBuffer(blockSize)
	var errs error
	for _, block := range headerBlocks {
		var g geometry
		_, err := dev.ReadAt(p, block<<blockShift)
		if err == nil {
			err = g.decode(p)
		}
		if err == nil && g != d.g {
			err = &formatError{"header", fmt.Sprintf("of another cache, %s", g.UUID)}
		}
		if err == nil {
			return nil
		}
		errs = errors.Join(errs, err)
	}
	return errs
}

// reopen opens the file or device by its path, and goes on with it if it is this cache.
func (d *Disk) reopen() error {
	f, err := openFile(d.path, 0)
	if err != nil {
		return fmt.Errorf("open again: %w", err)
	}
	if err = d.sameHeader(f); err == nil && f.size < int64(d.g.Blocks)<<blockShift {
		err = fmt.Errorf("%d bytes, there were %d: %w", f.size, d.g.Blocks<<blockShift, ErrTooSmall)
	}
	if err != nil {
		f.Close()
		return fmt.Errorf("open again: %w", err)
	}
	if err := d.dev.Swap(&holder{f}).Close(); err != nil {
		d.o.Log.Warn("disk cache: close of the file that went away", "cache", d.name, "error", err)
	}
	return nil
}
