package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	"coppice/ublk"
	"coppice/union"
)

// runDir holds what a leaf store's process keeps outside the store, as in daily use.
const runDir = "/run/coppice-bench"

// ours makes Coppice's own devices, served by this process with the settings of the daemon.
type ours struct {
	size     int64
	control  *ublk.Control
	reactors *ublk.Reactors
}

func newOurs(size int64) (*ours, error) {
	if err := os.MkdirAll(runDir, 0o700); err != nil {
		return nil, err
	}
	control, err := ublk.Open("")
	if err != nil {
		return nil, err
	}
	runtime.GOMAXPROCS(2*runtime.NumCPU() + 2) // as the daemon
	reactors, err := ublk.NewReactors(ublk.ReactorConfig{})
	if err != nil {
		return nil, errors.Join(err, control.Close())
	}
	return &ours{size: size, control: control, reactors: reactors}, nil
}

// Close stops the reactors. All devices must have been closed.
func (o *ours) Close() error { return errors.Join(o.reactors.Close(), o.control.Close()) }

// served is what the reactors have done so far, all together.
type served struct{ requests, enters uint64 }

func (o *ours) served() (served, error) {
	var sum served
	stats, err := o.reactors.Stats()
	for _, s := range stats {
		sum.requests += s.Requests
		sum.enters += s.Enters + s.Spins
	}
	return sum, err
}

// perEnter returns how many requests came with one io_uring_enter since before, or 0 where none came.
func (o *ours) perEnter(before served) (float64, error) {
	now, err := o.served()
	if err != nil || now.requests == before.requests {
		return 0, err
	}
	return float64(now.requests-before.requests) / float64(now.enters-before.enters), nil
}

func (o *ours) null(ctx context.Context) (*device, error) {
	return o.serve(ctx, ublk.NewNull(), o.size, nil)
}

func (o *ours) memory(ctx context.Context) (*device, error) {
	m, err := ublk.NewMem(o.size)
	if err != nil {
		return nil, err
	}
	return o.serve(ctx, m, o.size, cleanup{m.Close})
}

// union makes a device over the root's RAM disk, with an empty leaf.
func (o *ours) union(ctx context.Context, verify bool) (*device, error) {
	if _, err := union.Format(leafDisk, union.FormatOptions{Force: true}); err != nil {
		return nil, err
	}
	var clean cleanup
	fail := func(err error) (*device, error) { return nil, errors.Join(err, clean.run()) }
	root, err := union.OpenRaw(rootDisk)
	if err != nil {
		return fail(err)
	}
	clean.add(root.Close)
	store, err := union.OpenStore(leafDisk, union.StoreOptions{RunDir: runDir})
	if err != nil {
		return fail(err)
	}
	clean.add(store.Close)
	layer, err := store.OpenLayer("bench", union.LayerOptions{Create: true, Pin: root.Pin(), SizeBytes: root.Size()})
	if err != nil {
		return fail(err)
	}
	clean.add(func() error { layer.Release(); return nil })
	handler, err := union.NewDevice(layer, root, union.DeviceOptions{NoVerify: !verify})
	if err != nil {
		return fail(err)
	}
	return o.serve(ctx, handler, handler.SizeBytes(), clean)
}

// serve presents a Handler as a block device. What clean holds is closed with the device, or at once
// when there will be none.
func (o *ours) serve(ctx context.Context, h ublk.Handler, size int64, clean cleanup) (*device, error) {
	d, err := o.control.Create(ctx, ublk.Params{
		ID: ublk.AutoID, SizeBytes: size, Discard: true, Recoverable: true,
	}, h, o.reactors)
	if err != nil {
		return nil, errors.Join(err, clean.run())
	}
	return &device{path: d.Path(), close: func() error {
		// The device may have been cut short by an interrupt; stopping it is not.
		if err := d.Stop(context.WithoutCancel(ctx)); err != nil {
			return fmt.Errorf("stop: %w", err)
		}
		return errors.Join(d.Err(), clean.run())
	}}, nil
}

// cleanup is a stack of what to undo.
type cleanup []func() error

func (c *cleanup) add(f func() error) { *c = append(*c, f) }

func (c *cleanup) run() error {
	var errs []error
	for i := len(*c) - 1; i >= 0; i-- {
		errs = append(errs, (*c)[i]())
	}
	*c = nil
	return errors.Join(errs...)
}
