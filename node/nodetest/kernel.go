// Package nodetest stands in for the kernel under a node daemon: devices in shared memory, served by
// the real data plane, that outlive the daemon which made them as kernel devices do.
package nodetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"coppice/ebpf"
	"coppice/node"
	"coppice/ublk"
	"coppice/ublk/ublktest"
)

// Kernel is what survives a daemon. Its methods may be called from any goroutine.
type Kernel struct {
	mu      sync.Mutex // guards what follows
	seq     uint64     // of the last disk
	disks   map[int]*kernelDisk
	failing error // what Create and Recover fail with
}

type kernelDisk struct {
	seq    uint64
	fake   *ublktest.Fake
	params ublk.Params
	served bool
	held   bool
	dead   bool
	stuck  error // what Detach fails with
	stalls bool  // Detach waits as long as it may, and has ended nothing then
	server *servedDisk
}

// NewKernel returns a kernel without devices.
func NewKernel() *Kernel { return &Kernel{disks: make(map[int]*kernelDisk)} }

// Disk returns the client's side of the device with number id, or nil.
func (k *Kernel) Disk(id int) *ublktest.Fake {
	k.mu.Lock()
	defer k.mu.Unlock()
	if d := k.disks[id]; d != nil {
		return d.fake
	}
	return nil
}

// Params returns what the device with number id was made with.
func (k *Kernel) Params(id int) ublk.Params {
	k.mu.Lock()
	defer k.mu.Unlock()
	if d := k.disks[id]; d != nil {
		return d.params
	}
	return ublk.Params{}
}

// IDs returns the numbers of the devices there are, in order.
func (k *Kernel) IDs() []int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Sorted(maps.Keys(k.disks))
}

// Snatch removes the device with number id under its server, as another program can.
func (k *Kernel) Snatch(id int) {
	k.Disk(id).Stop()
	k.remove(id)
}

// Hold puts the device with number id in use, as a mount does, or ends that.
func (k *Kernel) Hold(id int, held bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.disks[id].held = held
}

// FailStart makes the creation and recovery of devices fail with err, or work again where it is nil.
func (k *Kernel) FailStart(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.failing = err
}

// FailDetach makes the device with number id one that cannot be left, or can again where err is nil.
func (k *Kernel) FailDetach(id int, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.disks[id].stuck = err
}

// StallDetach makes the device with number id one whose requests do not end when it is to be left.
func (k *Kernel) StallDetach(id int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.disks[id].stalls = true
}

// EndStalled ends the threads of a daemon that could not leave the device with number id, as the end of its process does.
func (k *Kernel) EndStalled(id int) error {
	k.mu.Lock()
	s := k.disks[id].server
	k.mu.Unlock()
	return errors.Join(s.a.Drain(context.Background()), s.d.Close())
}

// Plant adds a device that nobody serves, made with token; a dead one was never started.
func (k *Kernel) Plant(id int, token uint64, dead bool) error {
	fake, err := ublktest.NewFake(ublktest.FakeConfig{})
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.disks[id] = &kernelDisk{fake: fake, params: ublk.Params{ID: id, ServerData: token}, dead: dead}
	return nil
}

// Driver is how one daemon sees a Kernel. It implements [node.Driver].
type Driver struct {
	k        *Kernel
	reactors *ublk.Reactors

	mu       sync.Mutex
	detached []*kernelDisk
}

var _ node.Driver = (*Driver)(nil)

// NewDriver returns a driver with reactors of its own.
func (k *Kernel) NewDriver() (*Driver, error) {
	rs, err := ublk.NewReactors(ublk.ReactorConfig{Entries: 256, Files: 64})
	if err != nil {
		return nil, err
	}
	return &Driver{k: k, reactors: rs}, nil
}

// Close ends the daemon's side, as the end of its process does: detached devices become
// quiesced.
func (d *Driver) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, disk := range d.detached {
		disk.fake.Quiesce()
	}
	d.detached = nil
	return d.reactors.Close()
}

// Create makes a device.
func (d *Driver) Create(_ context.Context, p ublk.Params, h ublk.Handler) (node.Disk, error) {
	d.k.mu.Lock()
	taken, failing := d.k.disks[p.ID] != nil, d.k.failing
	d.k.mu.Unlock()
	if taken {
		return nil, fmt.Errorf("add device %d: %w", p.ID, ublk.ErrIDTaken)
	}
	if failing != nil {
		return nil, fmt.Errorf("add device %d: %w", p.ID, failing)
	}
	fake, err := ublktest.NewFake(ublktest.FakeConfig{SizeBytes: p.SizeBytes, Queues: p.Queues, Depth: p.Depth})
	if err != nil {
		return nil, err
	}
	disk := &kernelDisk{fake: fake, params: p}
	d.k.mu.Lock()
	d.k.seq++
	disk.seq = d.k.seq
	d.k.disks[p.ID] = disk
	d.k.mu.Unlock()
	served, err := d.serve(p.ID, disk, h)
	if err != nil {
		d.k.remove(p.ID)
	}
	return served, err
}

// Recover serves a device that was left.
func (d *Driver) Recover(_ context.Context, id int, h ublk.Handler) (node.Disk, error) {
	d.k.mu.Lock()
	disk := d.k.disks[id]
	d.k.mu.Unlock()
	d.k.mu.Lock()
	failing := d.k.failing
	d.k.mu.Unlock()
	if failing != nil {
		return nil, fmt.Errorf("recover device %d: %w", id, failing)
	}
	if disk == nil || disk.served {
		return nil, fmt.Errorf("recover device %d: not quiesced", id)
	}
	return d.serve(id, disk, h)
}

func (d *Driver) serve(id int, disk *kernelDisk, h ublk.Handler) (node.Disk, error) {
	a, err := disk.fake.Start(d.reactors, h)
	if err != nil {
		return nil, err
	}
	d.k.mu.Lock()
	defer d.k.mu.Unlock()
	disk.served, disk.server = true, &servedDisk{d: d, id: id, disk: disk, a: a}
	return disk.server, nil
}

// Kernel lists the devices.
func (d *Driver) Kernel(context.Context) ([]node.KernelDevice, error) {
	var list []node.KernelDevice
	d.k.mu.Lock()
	defer d.k.mu.Unlock()
	for id, disk := range d.k.disks {
		list = append(list, node.KernelDevice{ID: id, Token: disk.params.ServerData, Dead: disk.dead})
	}
	return list, nil
}

// Remove removes a device that nobody serves.
func (d *Driver) Remove(_ context.Context, id int) error {
	d.k.mu.Lock()
	disk := d.k.disks[id]
	d.k.mu.Unlock()
	switch {
	case disk == nil:
		return fmt.Errorf("remove device %d: none", id)
	case disk.served:
		return fmt.Errorf("remove device %d: served", id)
	case disk.held:
		return fmt.Errorf("remove device %d: %w", id, ublk.ErrInUse)
	}
	d.k.remove(id)
	return nil
}

func (k *Kernel) remove(id int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.disks, id)
}

// servedDisk is a device while a daemon serves it.
type servedDisk struct {
	d    *Driver
	id   int
	disk *kernelDisk
	a    *ublk.Attachment
}

// ID returns the device's number.
func (s *servedDisk) ID() int { return s.id }

// Path returns what the block device would be called; there is none.
func (s *servedDisk) Path() string { return fmt.Sprintf("/dev/ublkb%d", s.id) }

// Params returns what the device was made with.
func (s *servedDisk) Params() ublk.Params { return s.d.k.Params(s.id) }

// Identity has the device's number for a minor number, which is free for any.
func (s *servedDisk) Identity() (ebpf.DiskID, error) {
	return ebpf.DiskID{Minor: s.id, Seq: s.disk.seq}, nil
}

// Done is closed when the queues have ended.
func (s *servedDisk) Done() <-chan struct{} { return s.a.Ended() }

// Broken is closed when a queue has failed.
func (s *servedDisk) Broken() <-chan struct{} { return s.a.Broken() }

// Err returns what failed.
func (s *servedDisk) Err() error { return s.a.Err() }

// Stop removes a device that is not held, after a flush.
func (s *servedDisk) Stop(ctx context.Context) error { return s.stop(ctx, s.disk.fake.Flush) }

// Drop removes a device that is not held.
func (s *servedDisk) Drop(ctx context.Context) error { return s.stop(ctx, func() error { return nil }) }

// Abort removes a device, whoever holds it.
func (s *servedDisk) Abort(ctx context.Context) error {
	s.d.k.mu.Lock()
	s.disk.held = false
	s.d.k.mu.Unlock()
	return s.Drop(ctx)
}

func (s *servedDisk) stop(ctx context.Context, flush func() error) error {
	s.d.k.mu.Lock()
	held := s.disk.held
	s.d.k.mu.Unlock()
	if held {
		return fmt.Errorf("stop device %d: %w", s.id, ublk.ErrInUse)
	}
	if err := flush(); err != nil {
		return fmt.Errorf("flush device %d: %w", s.id, err)
	}
	s.disk.fake.Stop()
	select {
	case <-s.a.Ended():
	case <-ctx.Done():
		return ctx.Err()
	}
	s.d.k.remove(s.id)
	return errors.Join(s.a.Err(), s.disk.fake.Err(), s.disk.fake.Close())
}

// InService counts the requests that are being served.
func (s *servedDisk) InService() int { return s.a.InService() }

// Oldest returns the request that has been in service for longest.
func (s *servedDisk) Oldest() (ublk.RequestInfo, bool, error) { return s.a.Oldest() }

// Requests returns what is being served.
func (s *servedDisk) Requests(ctx context.Context) ([]ublk.RequestInfo, error) {
	return s.a.Requests(ctx)
}

// SetMarks has what is said of requests written to m.
func (s *servedDisk) SetMarks(queue int, m []uint64) error { return s.a.SetMarks(queue, m) }

// Detach leaves the device to a successor.
func (s *servedDisk) Detach(ctx context.Context) error {
	s.d.k.mu.Lock()
	stuck, stalls := s.disk.stuck, s.disk.stalls
	s.d.k.mu.Unlock()
	if stuck != nil {
		return fmt.Errorf("detach device %d: %w", s.id, stuck)
	}
	if stalls {
		<-ctx.Done()
		list, err := s.a.Requests(context.WithoutCancel(ctx))
		return errors.Join(fmt.Errorf("detach device %d: %w: %d in service: %s", s.id, ctx.Err(), len(list), ublk.DescribeRequests(list, 1)), err)
	}
	if err := s.a.Drain(ctx); err != nil {
		return err
	}
	s.d.k.mu.Lock()
	s.disk.served = false
	s.d.k.mu.Unlock()
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	s.d.detached = append(s.d.detached, s.disk)
	return nil
}
