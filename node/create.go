package node

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
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

	asked := r
	r, err := d.cfg.Device.resolve(r)
	if err != nil {
		return Device{}, err
	}
	v, err := d.reserve(r)
	if err != nil {
		return Device{}, err
	}
	if err := d.buildSaved(ctx, v, asked, began); err != nil {
		d.forget(r.Name)
		d.log.Warn("create failed", "device", r.Name, "error", oneLine(err))
		return Device{}, err
	}
	rep := v.inspect(readUsage())
	rep.Declared = d.declared(r.Name)
	d.log.Info("device created", "device", rep.Name, "path", rep.Path, "root", rep.Root.Path,
		"leaf", rep.Leaf.Store, "layer", rep.Leaf.Layer, "size_bytes", rep.SizeBytes, "ms", rep.CreateMS)
	return rep, nil
}

// buildSaved is build, with a declaration of the device where that is asked for.
func (d *Daemon) buildSaved(ctx context.Context, v *device, asked CreateRequest, began time.Time) error {
	if !asked.Save {
		return d.build(ctx, v, began)
	}
	if err := d.declare(asked); err != nil {
		return err
	}
	err := d.build(ctx, v, began)
	if err != nil {
		err = errors.Join(err, os.Remove(d.declarationPath(asked.Name)))
	}
	return err
}

// newRecord is the record of a device that is to be made.
func newRecord(r CreateRequest, boot string) record {
	r.Save = false
	return record{
		Version: recordVersion, Phase: phaseCreating, BootID: boot, Token: rand.Uint64(),
		Device: r, Created: time.Now().UTC().Truncate(time.Millisecond),
	}
}

// reserve puts the device into the table, so that the name is taken from now on.
func (d *Daemon) reserve(r CreateRequest) (*device, error) {
	v := &device{state: StateCreating, rec: newRecord(r, d.bootID)}
	if err := d.refuseOwn(append(rootPaths(r.roots()), r.Store)...); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.devices[r.Name]; ok {
		return nil, fail(CodeNameTaken, "choose another name, or delete that one first: coppice delete "+r.Name,
			"there is a device of that name already")
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
		d.mu.Lock()
		name, ours := d.ids[id]
		d.mu.Unlock()
		if ours {
			return fail(CodeBadRequest, "give a path that does not lead to a device of this daemon",
				"%s lies on %s, which is device %s: a daemon that serves a device from one of its own waits for itself",
				path, diskPath(id), name)
		}
	}
	return nil
}

func (d *Daemon) forget(name string) {
	d.mu.Lock()
	delete(d.devices, name)
	d.mu.Unlock()
	d.dropIDs(name)
}

// dropIDs gives back the numbers of a device that the kernel does not have any more.
func (d *Daemon) dropIDs(name string) {
	d.mu.Lock()
	var ids []int
	for id, of := range d.ids {
		if of == name {
			ids = append(ids, id)
		}
	}
	d.mu.Unlock()
	for _, id := range ids {
		d.dropID(id)
	}
}

// build opens what lies below the device, makes the kernel device and puts the
// device into service, or undoes all of it.
func (d *Daemon) build(ctx context.Context, v *device, began time.Time) error {
	rec := v.record()
	root, err := wantRoot(rec.Device.roots(), nil)
	if err != nil {
		return err
	}
	back, err := openBacking(ctx, d.stores, rec.Device, backingOptions{roots: d.roots, root: root, create: true, verify: *d.cfg.VerifyLeaf})
	if err != nil {
		return err
	}
	rec.setReplicas(back)
	d.mergeLeftover(back)
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
	marked := back.marked(rec.Device.Root)
	v.setLive(disk, back, rec)
	d.latency.enter(rec.Device.Name, disk)
	d.shareRoot(v)
	d.prefetchRoot(back)
	d.startDetaches(marked)
	d.takeLeases(v)
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
		id, err := d.claimID(rec.Device.Name, wanted, taken)
		if err != nil {
			return nil, err
		}
		rec.Device.ID = id
		v.setID(id)
		if err := errors.Join(d.records.save(*rec), d.names.set(id, rec.Device.Name)); err != nil {
			return nil, err
		}
		disk, err := d.driver.Create(ctx, rec.params(), back.device)
		if !errors.Is(err, ublk.ErrIDTaken) || wanted != AutoID {
			return disk, err
		}
		d.dropID(id)
		taken[id] = true
	}
}

// claimID picks a number that neither the kernel nor another device of this
// daemon has, served or not, and enters it for the device of that name.
func (d *Daemon) claimID(name string, wanted int, taken map[int]bool) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	id := wanted
	if wanted == AutoID {
		for id = 0; taken[id] || d.ids[id] != ""; id++ {
			continue
		}
	}
	const hint = "choose another --id, or leave it out"
	switch {
	case id > maxID:
		return 0, fail(CodeIDTaken, "delete devices that nobody needs", "no free device number")
	case d.ids[id] != "":
		return 0, fail(CodeIDTaken, hint, "number %d belongs to device %s", id, d.ids[id])
	case taken[id]:
		return 0, fail(CodeIDTaken, hint, "the kernel has a ublk device %d already: %w", id, ublk.ErrIDTaken)
	}
	d.ids[id] = name
	return id, nil
}

// dropID gives a number back that the kernel turned out to have.
func (d *Daemon) dropID(id int) {
	if err := d.names.clear(id); err != nil {
		d.log.Warn("name of a device not taken back from udev", "id", id, "error", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.ids, id)
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
