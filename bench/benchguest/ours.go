package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	"coppice/ublk"
)

// runDir holds what daemons keep outside the stores, on a tmpfs as in daily use.
const runDir = "/run/coppice-bench"

// ours makes devices without any storage, served by this process with the settings of the daemon.
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

// serve presents a Handler as a block device. What clean holds is closed with the device, or at once
// when there will be none.
func (o *ours) serve(ctx context.Context, h ublk.Handler, size int64, clean cleanup) (*device, error) {
	d, err := o.control.Create(ctx, ublk.Params{
		ID: ublk.AutoID, SizeBytes: size, Discard: true, Recoverable: true,
	}, h, o.reactors)
	if err != nil {
		return nil, errors.Join(err, clean.run())
	}
	return &device{path: d.Path(), pid: os.Getpid(), allocs: allocated, close: func() error {
		// The device may have been cut short by an interrupt; stopping it is not.
		if err := d.Stop(context.WithoutCancel(ctx)); err != nil {
			return fmt.Errorf("stop: %w", err)
		}
		return errors.Join(d.Err(), clean.run())
	}}, nil
}

// allocated is how many objects this process has allocated.
func allocated() (uint64, error) {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.Mallocs, nil
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
