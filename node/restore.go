package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"coppice/ublk"
)

// loadRecords enters every device of an earlier daemon into the table, to be restored. Records
// from before a reboot are dropped: the devices went with the kernel that had
// them, while their layers are still in their stores.
func (d *Daemon) loadRecords() error {
	all, err := d.records.load()
	if err != nil {
		return err
	}
	for _, l := range all {
		if l.err == nil && l.BootID != d.bootID {
			d.log.Warn("device from before the reboot forgotten; create it again to continue on its layer",
				"device", l.name, "root", l.Device.rootNames(), "leaf", l.Device.Store, "layer", l.Device.Layer)
			if err := d.records.remove(l.name); err != nil {
				return err
			}
			continue
		}
		v := &device{state: StateRestoring, rec: l.record}
		if l.err != nil {
			v.state, v.err = StateFailed, l.err
			v.rec.Device.Name, v.rec.Device.ID = l.name, AutoID
			d.log.Error("record of a device cannot be used", "device", l.name, "error", l.err)
		}
		d.devices[l.name] = v
		if id := v.rec.Device.ID; id != AutoID {
			d.ids[id] = l.name
		}
	}
	return d.names.keep(d.ids)
}

// restoreAll takes up every device that the table has from an earlier daemon, until ctx ends; what
// is left then stays for the next one.
func (d *Daemon) restoreAll(ctx context.Context) {
	defer d.roots.raw.share()()
	forEach(d.all(), func(v *device) {
		if ctx.Err() != nil || v.current() != StateRestoring {
			return
		}
		d.restore(ctx, v)
	})
}

func (d *Daemon) restore(ctx context.Context, v *device) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.cfg.operationTime())
	defer cancel()
	rec := v.record()
	log := d.log.With("device", rec.Device.Name, "path", diskPath(rec.Device.ID))
	how, err := d.takeUp(ctx, v, rec)
	switch {
	case err != nil:
		err = fmt.Errorf("restore %s: %w", rec.Device.Name, err)
		v.setFailed(err)
		log.Error("device not restored; its record is kept for the next start",
			"error", oneLine(err), "hint", Explain(err).Hint, "root", rec.Device.rootNames(), "leaf", rec.Device.Store)
	case how == forgotten:
		d.forget(rec.Device.Name)
		log.Info("unfinished operation of an earlier daemon cleaned up", "phase", string(rec.Phase))
	default:
		log.Info("device restored", "how", string(how))
	}
}

// restoreRetry is how often a device is tried again whose root could not be opened.
const restoreRetry = 5 * time.Second

// retryRestores takes up devices whose roots could not be opened when the daemon started, as soon as they can.
func (d *Daemon) retryRestores() {
	for pause(d.quit, restoreRetry); d.quit.Err() == nil; pause(d.quit, restoreRetry) {
		forEach(d.all(), func(v *device) {
			if !v.lacksRoot() || d.begin(d.quit) != nil {
				return
			}
			defer d.ops.Done()
			rec := v.record()
			root, err := wantRoot(rec.Device.roots(), rec.Manifests)
			if err == nil && d.roots.answers(d.quit, root) && v.enter(StateRestoring, StateFailed) == nil {
				d.restore(d.quit, v)
			}
		})
	}
}

// lacksRoot tells whether a device is not served only because its root could not be opened.
func (v *device) lacksRoot() bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.state == StateFailed && v.declared == nil && v.back == nil && CodeOf(v.err) == CodeBadRoot
}

// outcome tells how a record was acted on.
type outcome string

const (
	forgotten outcome = "forgotten"
	recovered outcome = "recovered" // the kernel still had it
	recreated outcome = "recreated"
)

func (d *Daemon) takeUp(ctx context.Context, v *device, rec record) (outcome, error) {
	kernel, inKernel, err := d.kernelDevice(ctx, rec)
	if err != nil {
		return "", err
	}
	if inKernel && kernel.Dead && rec.Phase != phaseCreating {
		if err := d.driver.Remove(ctx, kernel.ID); err != nil {
			return "", err
		}
		inKernel = false
	}
	switch {
	case rec.Phase == phaseCreating:
		return forgotten, d.undoCreation(ctx, rec, inKernel)
	case rec.Phase == phaseDeleting && !inKernel:
		return forgotten, d.records.remove(rec.Device.Name)
	case inKernel:
		return recovered, d.serveAgain(ctx, v, rec, recovered)
	default:
		return recreated, d.serveAgain(ctx, v, rec, recreated)
	}
}

// kernelDevice returns what the kernel has under the number of rec. It is an error
// where that is not ours.
func (d *Daemon) kernelDevice(ctx context.Context, rec record) (KernelDevice, bool, error) {
	if rec.Device.ID < 0 {
		return KernelDevice{}, false, nil
	}
	list, err := d.driver.Kernel(ctx)
	if err != nil {
		return KernelDevice{}, false, err
	}
	i := slices.IndexFunc(list, func(k KernelDevice) bool { return k.ID == rec.Device.ID })
	if i < 0 {
		return KernelDevice{}, false, nil
	}
	k := list[i]
	if k.Token != rec.Token {
		return k, false, fail(CodeIDTaken, "stop that server and restart the daemon",
			"ublk device %d belongs to another server now (pid %d): %w", k.ID, k.PID, ublk.ErrIDTaken)
	}
	return k, true, nil
}

// undoCreation removes what a creation that was never reported has left.
func (d *Daemon) undoCreation(ctx context.Context, rec record, inKernel bool) error {
	if inKernel {
		if err := d.driver.Remove(ctx, rec.Device.ID); err != nil {
			return err
		}
	}
	if rec.NewLayer {
		if err := d.removeNewLayer(ctx, rec); err != nil {
			return err
		}
	}
	return d.records.remove(rec.Device.Name)
}

// removeNewLayer removes the layer of a creation that was never reported, if it is empty.
func (d *Daemon) removeNewLayer(ctx context.Context, rec record) error {
	st, err := d.stores.acquire(ctx, rec.Device.Store, patience)
	if err != nil {
		return err
	}
	for _, l := range st.Info().Layers {
		if l.Name == rec.Device.Layer && !l.Open && l.DataBytes == 0 {
			err = st.RemoveLayer(l.Name)
		}
	}
	return errors.Join(err, d.stores.release(st))
}

// patience is how long a restarted daemon waits for a store that its killed predecessor
// has not let go yet: the kernel finishes writes of a dead process first.
const patience = 30 * time.Second

// serveAgain opens what lies below the device and puts it into service.
func (d *Daemon) serveAgain(ctx context.Context, v *device, rec record, how outcome) error {
	root, err := wantRoot(rec.Device.roots(), rec.Manifests)
	if err != nil {
		return err
	}
	back, err := openBacking(ctx, d.stores, rec.Device, backingOptions{roots: d.roots, root: root, patience: patience, verify: *d.cfg.VerifyLeaf})
	if err != nil {
		return err
	}
	if got := back.device.SizeBytes(); got != rec.Device.SizeBytes {
		return errors.Join(back.close(), fail(CodeOtherRoot, "put the former root and layer back",
			"device had %d bytes, root and layer make %d", rec.Device.SizeBytes, got))
	}
	d.mergeLeftover(back)
	rec.Phase, rec.NewLayer = phaseActive, false
	rec.setReplicas(back)
	if err := d.records.save(rec); err != nil {
		return errors.Join(err, back.close())
	}
	disk, err := d.startDisk(ctx, rec, back, how)
	if err != nil && how == recovered {
		// Queues may be left that the kernel can still give requests to: what they need stays
		// open until the kernel's device is removed or this process ends.
		v.mu.Lock()
		v.back = back
		v.mu.Unlock()
		return err
	}
	if err != nil {
		return errors.Join(err, back.close())
	}
	now := time.Now().UTC().Truncate(time.Millisecond)
	v.mu.Lock()
	v.restored = &now
	v.mu.Unlock()
	v.setLive(disk, back, rec)
	d.latency.enter(rec.Device.Name, disk)
	d.shareRoot(v)
	d.takeLeases(v)
	go d.watch(v, disk)
	return nil
}

func (d *Daemon) startDisk(ctx context.Context, rec record, back *backing, how outcome) (Disk, error) {
	if how == recovered {
		return d.driver.Recover(ctx, rec.Device.ID, back.device)
	}
	return d.driver.Create(ctx, rec.params(), back.device)
}
