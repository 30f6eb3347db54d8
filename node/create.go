package node

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"coppice/ublk"
)

// Create makes a device and reports it. Where it fails, nothing of it is left: no
// kernel device, no new layer, no record. It goes on when ctx is cancelled, for at most
// the configured time of an operation.
func (d *Daemon) Create(ctx context.Context, r CreateRequest) (Device, error) {
	began := time.Now()
	if err := d.begin(ctx); err != nil {
		return Device{}, err
	}
	defer d.ops.Done()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.cfg.operationTime())
	defer cancel()

	r, err := d.cfg.Device.resolve(r)
	if err != nil {
		return Device{}, err
	}
	v, err := d.reserve(r)
	if err != nil {
		return Device{}, err
	}
	if err := d.build(ctx, v, began); err != nil {
		d.forget(r.Name)
		d.log.Warn("create failed", "device", r.Name, "error", oneLine(err))
		return Device{}, err
	}
	rep := v.report(true)
	d.log.Info("device created", "device", rep.Name, "path", rep.Path, "root", rep.Root.Path,
		"leaf", rep.Leaf.Store, "layer", rep.Leaf.Layer, "size_bytes", rep.SizeBytes, "ms", rep.CreateMS)
	return rep, nil
}

// reserve puts the device into the table, so that the name is taken from now on.
func (d *Daemon) reserve(r CreateRequest) (*device, error) {
	v := &device{state: StateCreating, rec: record{
		Version: recordVersion, Phase: phaseCreating, BootID: d.bootID, Token: rand.Uint64(),
		Device: r, Created: time.Now().UTC().Truncate(time.Millisecond),
	}}
	if err := d.refuseOwn(r.Root, r.Store); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if old, ok := d.devices[r.Name]; ok {
		return nil, fail(CodeNameTaken, "choose another name, or delete that one first: coppice delete "+r.Name,
			"there is a device of that name already (%s)", old.record().Device.Root)
	}
	d.devices[r.Name] = v
	return v, nil
}

// refuseOwn refuses paths that lead to a device of this daemon.
func (d *Daemon) refuseOwn(paths ...string) error {
	for _, path := range paths {
		id, ok := diskID(path)
		if !ok {
			continue
		}
		for _, v := range d.all() {
			if rec := v.record(); rec.Device.ID == id {
				return fail(CodeBadRequest, "give a path that does not lead to a device of this daemon",
					"%s lies on %s, which is device %s: a daemon that serves a device from one of its own waits for itself",
					path, diskPath(id), rec.Device.Name)
			}
		}
	}
	return nil
}

func (d *Daemon) forget(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.devices, name)
}

// build opens what lies below the device, makes the kernel device and puts the
// device into service, or undoes all of it.
func (d *Daemon) build(ctx context.Context, v *device, began time.Time) error {
	rec := v.record()
	back, err := openBacking(ctx, d.stores, rec.Device, backingOptions{create: true, verify: *d.cfg.VerifyLeaf})
	if err != nil {
		return err
	}
	rec.NewLayer = back.newLayer != ""
	rec.Device.SizeBytes = back.device.SizeBytes()
	disk, err := d.makeDisk(ctx, v, &rec, back)
	if err != nil {
		return errors.Join(err, back.undo(), d.records.remove(rec.Device.Name))
	}
	rec.Phase, rec.NewLayer = phaseActive, false
	rec.CreateMS = float64(time.Since(began).Microseconds()) / 1000
	if err := d.records.save(rec); err != nil {
		return errors.Join(err, disk.Stop(ctx), back.undo(), d.records.remove(rec.Device.Name))
	}
	v.setLive(disk, back, rec)
	go d.watch(v, disk)
	return nil
}

// makeDisk makes the kernel device under the number asked for, or the lowest free
// one. The record is saved first, so that a crash leaves no device that nobody knows.
func (d *Daemon) makeDisk(ctx context.Context, v *device, rec *record, back *backing) (Disk, error) {
	wanted := rec.Device.ID
	kernel, err := d.driver.Kernel(ctx)
	if err != nil {
		return nil, err
	}
	taken := make(map[int]bool)
	for _, k := range kernel {
		taken[k.ID] = true
	}
	for {
		id, err := d.claimID(v, wanted, taken)
		if err != nil {
			return nil, err
		}
		rec.Device.ID = id
		if err := d.records.save(*rec); err != nil {
			return nil, err
		}
		disk, err := d.driver.Create(ctx, rec.params(), back.device)
		if !errors.Is(err, ublk.ErrIDTaken) || wanted != AutoID {
			return disk, err
		}
		taken[id] = true
	}
}

// claimID picks a number that neither the kernel nor another device of this
// daemon has, served or not, and enters it for v.
func (d *Daemon) claimID(v *device, wanted int, taken map[int]bool) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	owner := make(map[int]string)
	for name, o := range d.devices {
		if o != v {
			owner[o.record().Device.ID] = name
		}
	}
	free := func(id int) bool { return !taken[id] && owner[id] == "" }
	id := wanted
	if wanted == AutoID {
		for id = 0; !free(id); id++ {
			continue
		}
	}
	switch {
	case id > maxID:
		return 0, fail(CodeIDTaken, "delete devices that nobody needs", "no free device number")
	case owner[id] != "":
		return 0, fail(CodeIDTaken, "choose another --id, or leave it out", "number %d belongs to device %s", id, owner[id])
	case taken[id]:
		return 0, fail(CodeIDTaken, "choose another --id, or leave it out", "the kernel has a ublk device %d already: %w", id, ublk.ErrIDTaken)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.rec.Device.ID = id
	return id, nil
}

// params is what the driver is asked for.
func (rec record) params() ublk.Params {
	r := rec.Device
	return ublk.Params{
		SizeBytes: r.SizeBytes, BlockSize: r.BlockSize, Queues: r.Queues, Depth: r.Depth,
		ID: r.ID, ReadOnly: r.ReadOnly, Recoverable: true, Discard: true,
		ServerData: rec.Token,
	}
}
