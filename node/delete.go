package node

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"coppice/ublk"
)

// Delete writes back what is dirty and takes the device out of the kernel. It refuses one that
// is in use. The layer stays in its store: creating a device on it again
// continues where this one ended. It returns what the device was.
func (d *Daemon) Delete(ctx context.Context, name string) (Device, error) {
	if err := d.begin(ctx); err != nil {
		return Device{}, err
	}
	defer d.ops.Done()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.cfg.operationTime())
	defer cancel()

	v, err := d.find(name)
	if err != nil {
		return Device{}, err
	}
	was := v.report(readUsage())
	was.Declared = d.declared(name)
	if err := d.delete(ctx, v); err != nil {
		d.log.Warn("delete failed", "device", name, "error", oneLine(err))
		return Device{}, err
	}
	d.log.Info("device deleted", "device", name)
	return was, nil
}

func (d *Daemon) delete(ctx context.Context, v *device) error {
	if err := v.enter(StateDeleting, StateLive); err == nil {
		return d.deleteLive(ctx, v)
	}
	if err := v.enter(StateDeleting, StateFailed); err != nil {
		return err
	}
	return d.deleteFailed(ctx, v)
}

func (d *Daemon) deleteLive(ctx context.Context, v *device) error {
	rec := v.record()
	if err := d.mark(rec, phaseDeleting); err != nil {
		v.setState(StateLive)
		return err
	}
	lost, err := d.stopOrDrop(ctx, v)
	if err != nil {
		err = errors.Join(inUse(err, v.disk.Path()), d.mark(v.record(), phaseActive))
		v.setState(StateLive)
		return err
	}
	err = v.closeBacking()
	if lost != nil {
		d.log.Warn("device of a failed store deleted; what was not written yet is lost", "device", rec.Device.Name, "error", oneLine(errors.Join(lost, err)))
		err = nil
	}
	if rm := d.records.remove(rec.Device.Name); rm != nil {
		err = errors.Join(err, rm)
	}
	d.dropLeases(rec, rec.Device.roots(), nil)
	d.forget(rec.Device.Name)
	if err != nil {
		return fmt.Errorf("the device is gone, but its leaf did not close well: %w", err)
	}
	return nil
}

// stopOrDrop stops a device. One whose store has failed cannot be written back, and is dropped as it is: lost tells why.
func (d *Daemon) stopOrDrop(ctx context.Context, v *device) (lost, err error) {
	stopped := v.disk.Stop(ctx)
	if stopped == nil || errors.Is(stopped, ublk.ErrInUse) || !v.back.store.Info().Failed {
		return nil, stopped
	}
	return stopped, v.disk.Drop(ctx)
}

// deleteFailed forgets a device that is not served. What the kernel has of it goes only if
// nobody has it in use, and after that what a failed recovery kept open.
func (d *Daemon) deleteFailed(ctx context.Context, v *device) error {
	rec := v.record()
	err := d.removeKernelDevice(ctx, rec)
	if err == nil {
		err = errors.Join(v.closeBacking(), d.records.remove(rec.Device.Name))
	}
	if err != nil {
		v.setState(StateFailed)
		return inUse(err, diskPath(rec.Device.ID))
	}
	d.dropLeases(rec, rec.Device.roots(), nil)
	d.forget(rec.Device.Name)
	return nil
}

// removeKernelDevice takes out of the kernel what an earlier daemon left there for rec.
func (d *Daemon) removeKernelDevice(ctx context.Context, rec record) error {
	k, ok, err := d.kernelDevice(ctx, rec)
	if err != nil || !ok {
		return err
	}
	return d.driver.Remove(ctx, k.ID)
}

func (d *Daemon) mark(rec record, p phase) error {
	rec.Phase = p
	return d.records.save(rec)
}

// inUse adds to a refusal who has the device, where that can be found out.
func inUse(err error, path string) error {
	if !errors.Is(err, ublk.ErrInUse) {
		return err
	}
	e := &Error{
		Code: CodeInUse, Message: path + " is in use",
		Hint: "close what has it open (fuser -v " + path + " shows it), then try again", cause: err,
	}
	if who := readUsage().holders(path); len(who) > 0 {
		e.Message += ": " + strings.Join(who, ", ")
		e.Hint = "unmount it, or take it out of what is on top, then try again"
	}
	return e
}
