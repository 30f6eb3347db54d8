package ublk

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"
)

// recoverPatience is how long Recover waits for a former server to be gone when ctx sets no limit.
const recoverPatience = 60 * time.Second

// Recover takes up a device whose server has detached it or died, and serves it by h on rs. I/O that
// waited for it goes on, requests that the server had not answered among it: those are
// served again from the start. Recover waits until the kernel has seen the former server go, 60 s if ctx
// sets no limit.
//
// It fails with [ErrNoDevice], [ErrNotRecoverable], and [ErrInUse] where the device is still
// served by another process. When it fails before the device is fetched, as with an error of
// [Handler.Attach], the device stays quiesced and Recover may be tried again.
func (c *Control) Recover(ctx context.Context, id int, h Handler, rs *Reactors) (*Device, error) {
	if _, limited := ctx.Deadline(); !limited {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, recoverPatience)
		defer cancel()
	}
	d, err := c.takeUp(ctx, id, h, rs)
	if err != nil {
		return nil, fmt.Errorf("recover ublk device %d: %w", id, err)
	}
	return d, nil
}

func (c *Control) takeUp(ctx context.Context, id int, h Handler, rs *Reactors) (*Device, error) {
	info, err := c.awaitOrphan(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := c.beginRecovery(ctx, id); err != nil {
		return nil, err
	}
	d := &Device{control: c, id: id, flags: info.Flags, gone: make(chan struct{})}
	if err := d.serve(ctx, &info, h, rs); err != nil {
		if d.att == nil {
			d.release()
		}
		return nil, err
	}
	// From here on the queues are fetched, and only the end of their reactors gives them back.
	if err := d.whileServed(ctx, c.EndRecovery); err != nil {
		return nil, err
	}
	// The knobs were set when the device was made. If another program made it they may be
	// different, which costs speed but is no reason to leave its I/O waiting.
	_ = tune(queueDir(sysRoot, id), &d.params)
	return d, nil
}

// awaitOrphan waits until the kernel knows that the device has no server.
func (c *Control) awaitOrphan(ctx context.Context, id int) (Info, error) {
	var info Info
	errServed := errors.New("served")
	err := retry(ctx, recoverPatience, func(err error) bool { return err == errServed }, func() (err error) {
		info, err = c.GetInfo(ctx, id)
		switch {
		case err != nil:
			return err
		case !info.Flags.Has(FeatureRecovery):
			return ErrNotRecoverable
		case info.State == StateQuiesced || info.State == StateFailIO:
			return nil
		case info.State == StateDead:
			return fmt.Errorf("it is %s, not quiesced: delete it", info.State)
		}
		return errServed
	})
	if errors.Is(err, errServed) {
		return info, fmt.Errorf("it is %s, served by process %d: %w", info.State, info.PID, ErrInUse)
	}
	return info, err
}

// beginRecovery sends START_USER_RECOVERY until the former server has let go of ublkc. EINVAL means, for a
// device that is recoverable, that it was sent before and no queue has been fetched since
// (ublk_ctrl_start_recovery, drivers/block/ublk_drv.c, Linux 6.12): there is nothing to prepare.
func (c *Control) beginRecovery(ctx context.Context, id int) error {
	err := retry(ctx, recoverPatience,
		func(err error) bool { return errors.Is(err, syscall.EBUSY) },
		func() error { return c.StartRecovery(ctx, id) })
	switch {
	case errors.Is(err, syscall.EINVAL):
		return nil
	case errors.Is(err, syscall.EBUSY):
		return fmt.Errorf("%w: %w", ErrInUse, err)
	}
	return err
}

// Remove deletes a device that nobody serves: one that was never started or stopped, or a
// quiesced one, whose waiting I/O then fails and whose unwritten page cache is lost. It fails with
// [ErrInUse] where the device is served, or somebody has it in exclusive use.
func (c *Control) Remove(ctx context.Context, id int) error {
	if err := c.removeOrphan(ctx, id); err != nil {
		return fmt.Errorf("remove ublk device %d: %w", id, err)
	}
	return nil
}

func (c *Control) removeOrphan(ctx context.Context, id int) error {
	info, err := c.GetInfo(ctx, id)
	if err != nil {
		return err
	}
	if info.State == StateLive {
		return fmt.Errorf("it is served by process %d: %w", info.PID, ErrInUse)
	}
	f, err := openExclusive(BlockPath(id))
	if err != nil && !vanished(err) {
		return err
	}
	err = c.StopDevice(ctx, id)
	if f != nil {
		err = errors.Join(err, f.Close())
	}
	if err != nil && !errors.Is(err, ErrNoDevice) {
		return err
	}
	return c.remove(ctx, id)
}
