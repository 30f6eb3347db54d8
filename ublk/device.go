package ublk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Device is a block device that this process serves. Its methods may be called from any goroutine
// except a Handler's.
type Device struct {
	control *Control
	id      int
	params  Params
	flags   Features
	char    *os.File
	areas   [][]byte
	att     *Attachment
	gone    chan struct{} // closed when nothing of the device is held any more

	mu      sync.Mutex // held by Stop, Abort and Detach; guards what follows
	stopped bool
}

const (
	// undoPatience bounds what is done to leave nothing behind after a failure.
	undoPatience = 20 * time.Second

	// deletePatience is how long Stop waits for the id to become free.
	deletePatience = 5 * time.Second
)

// Create makes a device, serves it by h on rs, and starts it: when Create returns, its block device
// answers and its partitions have been found. The largest I/O and the number of queues may
// come out smaller than asked for; see [Device.Params].
//
// When it fails, or ctx ends first, nothing is left of the device, in the kernel or on rs. Errors to expect:
// [ErrIDTaken], [ErrPermission], [ErrUnsupported] for a recoverable device on a kernel without
// recovery, and whatever [Handler.Attach] returned.
func (c *Control) Create(ctx context.Context, p Params, h Handler, rs *Reactors) (*Device, error) {
	if err := p.setDefaults(); err != nil {
		return nil, fmt.Errorf("create ublk device: %w", err)
	}
	if p.Recoverable && !c.features.Has(FeatureRecovery|FeatureReissue) {
		return nil, fmt.Errorf("create recoverable ublk device: %w", ErrUnsupported)
	}
	info, err := c.Add(ctx, p.devInfo(c.features))
	if err != nil {
		return nil, err
	}
	d := &Device{control: c, id: info.ID, flags: info.Flags, gone: make(chan struct{})}
	if err := d.bringUp(ctx, &p, &info, h, rs); err != nil {
		return nil, errors.Join(fmt.Errorf("create ublk device %d: %w", d.id, err), d.undo(ctx))
	}
	return d, nil
}

func (d *Device) bringUp(ctx context.Context, p *Params, info *Info, h Handler, rs *Reactors) error {
	if err := d.control.SetParams(ctx, d.id, p.driverParams()); err != nil {
		return err
	}
	if err := d.serve(ctx, info, h, rs); err != nil {
		return err
	}
	if err := d.whileServed(ctx, d.control.Start); err != nil {
		return err
	}
	return tune(queueDir(sysRoot, d.id), &d.params)
}

// serve opens the device and has its requests fetched. What it has set up when it fails is left to undo.
func (d *Device) serve(ctx context.Context, info *Info, h Handler, rs *Reactors) error {
	u, err := d.control.GetParams(ctx, d.id)
	if err != nil {
		return err
	}
	d.params = paramsFrom(info, &u)
	if d.char, err = openChar(ctx, d.id); err != nil {
		return err
	}
	sources, err := d.sources(ctx, h)
	if err != nil {
		return err
	}
	att, err := rs.Attach(sources)
	if err != nil {
		return err
	}
	d.att = att
	go d.watch()
	return att.Fetch()
}

func (d *Device) sources(ctx context.Context, h Handler) ([]QueueSource, error) {
	all := make([]QueueSource, d.params.Queues)
	for i := range all {
		area, err := mapDescriptors(d.char, i, d.params.Depth)
		if err != nil {
			return nil, err
		}
		d.areas = append(d.areas, area)
		cpu, err := d.cpuFor(ctx, i)
		if err != nil {
			return nil, err
		}
		all[i] = QueueSource{
			QueueConfig: QueueConfig{
				Handler: h, Index: i, Depth: d.params.Depth, MaxIO: d.params.MaxIOBytes, SizeBytes: d.params.SizeBytes,
			},
			CPU: cpu, Descriptors: area, Char: d.char, LegacyCommands: d.control.legacy,
		}
	}
	return all, nil
}

// cpuFor chooses who serves a queue: one of the CPUs that its I/O comes from. For a device with
// one queue that is any CPU, and the least loaded reactor takes it.
func (d *Device) cpuFor(ctx context.Context, queue int) (int, error) {
	if d.params.Queues == 1 {
		return -1, nil
	}
	cpus, err := d.control.QueueAffinity(ctx, d.id, queue)
	if err != nil || len(cpus) == 0 {
		return -1, err
	}
	return cpus[0], nil
}

// watch gives up what the queues used when they have ended, whoever ended them.
func (d *Device) watch() {
	<-d.att.Ended()
	d.release()
}

func (d *Device) release() {
	var errs []error
	for _, area := range d.areas {
		errs = append(errs, unix.Munmap(area))
	}
	d.areas = nil
	if d.char != nil {
		errs = append(errs, d.char.Close())
	}
	if err := errors.Join(errs...); err != nil && d.att != nil {
		d.att.fail(fmt.Errorf("release ublk device %d: %w", d.id, err))
	}
	close(d.gone)
}

// whileServed executes a command that waits for the queues, and gives up when they cannot help it.
func (d *Device) whileServed(ctx context.Context, command func(context.Context, int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	finished := make(chan struct{})
	defer close(finished)
	go func() {
		select {
		case <-d.att.Broken():
			cancel(ErrBroken)
		case <-d.att.Ended():
			cancel(ErrBroken)
		case <-finished:
		}
	}()
	err := command(ctx, d.id)
	if err != nil && context.Cause(ctx) == ErrBroken {
		return errors.Join(fmt.Errorf("%w: %w", ErrBroken, err), d.att.Err())
	}
	return err
}

// undo removes a device that could not be brought up. It goes on when ctx has ended, with
// a time limit of its own. A Handler that does not answer the partition scan holds the driver up for
// longer; the device is then removed when it has answered.
func (d *Device) undo(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoPatience)
	defer cancel()
	if d.att == nil {
		d.release()
	}
	err := d.takeDown(ctx)
	if errors.Is(err, ErrStuck) {
		go func() {
			<-d.gone
			_ = d.control.remove(context.Background(), d.id)
		}()
	}
	return err
}

// takeDown stops the device, lets its queues end and deletes it. While it stops the queues
// still serve, because the kernel may write back through them.
func (d *Device) takeDown(ctx context.Context) error {
	if err := d.control.StopDevice(ctx, d.id); err != nil && !errors.Is(err, ErrNoDevice) {
		return err
	}
	select {
	case <-d.gone:
	case <-ctx.Done():
		return fmt.Errorf("wait for the queues of ublk device %d to end: %w", d.id, ctx.Err())
	}
	return d.control.remove(ctx, d.id)
}

// remove deletes a stopped device, and waits for the id to become free unless somebody still has the
// block device open: it is then free when they close it.
func (c *Control) remove(ctx context.Context, id int) error {
	err := c.DeleteAsync(ctx, id)
	if errors.Is(err, ErrUnsupported) {
		err = c.Delete(ctx, id)
	}
	if errors.Is(err, ErrNoDevice) {
		return nil
	}
	if err != nil {
		return err
	}
	errTaken := fmt.Errorf("id %d is taken", id)
	err = retry(ctx, deletePatience, func(err error) bool { return err == errTaken }, func() error {
		_, err := c.GetInfo(ctx, id)
		if err == nil {
			return errTaken
		}
		return err
	})
	if errors.Is(err, ErrNoDevice) || errors.Is(err, errTaken) {
		return nil
	}
	return err
}

// ID returns N of /dev/ublkbN.
func (d *Device) ID() int { return d.id }

// Path returns /dev/ublkbN.
func (d *Device) Path() string { return BlockPath(d.id) }

// Params returns the device as the kernel made it.
func (d *Device) Params() Params { return d.params }

// Done is closed when this process has nothing of the device any more: after Stop, when somebody else
// removed it, or after Detach when the reactors are closed.
func (d *Device) Done() <-chan struct{} { return d.gone }

// Broken is closed when the device is no longer served completely; Err tells why. It should be
// stopped, or the process ended for a successor.
func (d *Device) Broken() <-chan struct{} { return d.att.Broken() }

// Err returns what went wrong with the device's queues.
func (d *Device) Err() error { return d.att.Err() }

// InService returns how many requests the Handler has, or -1 when nobody can tell any more.
func (d *Device) InService() int { return d.att.InService() }

// Requests returns what the Handler has, beginning with what it has had for longest. It waits for the threads of the queues until ctx ends.
func (d *Device) Requests(ctx context.Context) ([]RequestInfo, error) { return d.att.Requests(ctx) }

// Oldest returns the request that the Handler has had for longest; ok is false when there is none.
func (d *Device) Oldest() (oldest RequestInfo, ok bool, err error) { return d.att.Oldest() }

// SetMarks has what the Handler says of requests of a queue written to shared memory; see [Attachment.SetMarks].
func (d *Device) SetMarks(queue int, m []uint64) error { return d.att.SetMarks(queue, m) }

// Stop removes the device in order: it makes sure that nobody has it in exclusive use, writes back
// what the page cache holds, takes the block device away and deletes it. It fails with [ErrInUse],
// or with the error of the write-back, and then nothing has changed and the device goes on.
//
// A process that merely has the block device open gets errors from then on, and /dev/ublkbN's id becomes
// free when it closes it. Stop waits for requests in service; when ctx ends the device may be half
// stopped, and Stop can be called again. A stopped device is stopped at once.
func (d *Device) Stop(ctx context.Context) error { return d.stop(ctx, syncExclusive) }

// Drop is Stop for a device that takes no writes any more: what the page cache holds is lost.
func (d *Device) Drop(ctx context.Context) error {
	return d.stop(ctx, func(context.Context, *os.File) error { return nil })
}

// stop removes the device. writeBack closes the file where it fails.
func (d *Device) stop(ctx context.Context, writeBack func(context.Context, *os.File) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stopped {
		return nil
	}
	f, err := openExclusive(d.Path())
	switch {
	case vanished(err):
		return d.end(ctx)
	case err != nil:
		return fmt.Errorf("stop ublk device %d: %w", d.id, err)
	}
	if err := writeBack(ctx, f); err != nil {
		return fmt.Errorf("stop ublk device %d: %w", d.id, err)
	}
	// The open file keeps others from mounting it between sync and stop.
	err = d.control.StopDevice(ctx, d.id)
	if err := errors.Join(err, f.Close()); err != nil && !errors.Is(err, ErrNoDevice) {
		return err
	}
	return d.end(ctx)
}

// vanished tells whether a block device could not be opened because it is gone already.
func vanished(err error) bool {
	return errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENXIO) || errors.Is(err, syscall.ENODEV)
}

func (d *Device) end(ctx context.Context) error {
	if err := d.takeDown(ctx); err != nil {
		return err
	}
	d.stopped = true
	return nil
}

// Abort removes the device at once, whoever uses it and whatever the page cache
// holds. It still waits for requests in service.
func (d *Device) Abort(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stopped {
		return nil
	}
	return d.end(ctx)
}

// Detach ends the service of a recoverable device and leaves it to a successor, in this process or
// another: requests in service end, those that come later wait in the kernel. It fails with
// [ErrNotRecoverable].
//
// With FeatureQuiesce (Linux 6.16) the device is quiesced when Detach returns. Kernels before cannot
// take one device from a thread: there it is quiesced, and [Control.Recover] can begin, when the [Reactors] are
// closed or the process ends. Detach all of their devices first. When ctx ends first the error names the requests still in service.
func (d *Device) Detach(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.params.Recoverable {
		return fmt.Errorf("detach ublk device %d: %w", d.id, ErrNotRecoverable)
	}
	if d.stopped {
		return nil
	}
	if err := d.detach(ctx); err != nil {
		return fmt.Errorf("detach ublk device %d: %w", d.id, err)
	}
	d.stopped = true
	return nil
}

func (d *Device) detach(ctx context.Context) error {
	if err := d.att.Drain(ctx); err != nil || !d.flags.Has(FeatureQuiesce) {
		return err
	}
	return d.control.Quiesce(ctx, d.id, millisecondsUntil(ctx))
}

func millisecondsUntil(ctx context.Context) uint64 {
	deadline, ok := ctx.Deadline()
	if !ok {
		return 0
	}
	return uint64(max(1, time.Until(deadline).Milliseconds()))
}
