package node

import (
	"context"

	"coppice/ebpf"
	"coppice/ublk"
)

// A Driver makes kernel block devices. The daemon's is [OpenUblk]'s; a test's keeps them in
// memory. All methods may be called from any goroutine.
type Driver interface {
	// Create makes the device with number p.ID, which is never negative, and starts to
	// serve it from h. It leaves nothing behind where it fails. The error wraps
	// [ublk.ErrIDTaken] where the kernel has a device of that number.
	Create(ctx context.Context, p ublk.Params, h ublk.Handler) (Disk, error)

	// Recover starts to serve the quiesced device with number id from h,
	// waiting where its former server is not quite gone.
	Recover(ctx context.Context, id int, h ublk.Handler) (Disk, error)

	// Kernel returns all devices that the kernel has, whoever serves them.
	Kernel(ctx context.Context) ([]KernelDevice, error)

	// Remove takes the device with number id, which nobody serves, out of the
	// kernel. It fails with [ublk.ErrInUse] where somebody has it in use.
	Remove(ctx context.Context, id int) error

	// Close ends the threads that serve devices. What was detached is then quiesced, if it is
	// not already, and nothing that a Handler uses is needed any more.
	Close() error
}

// Disk is a kernel device that is being served.
type Disk interface {
	ID() int
	Path() string        // of the block device
	Params() ublk.Params // as the kernel has them

	// Identity tells the disk from all others since the machine was started.
	Identity() (ebpf.DiskID, error)

	// InService returns how many requests are being served, -1 where nobody serves any more, and
	// Oldest the one that has been for longest; ok is false when there is none.
	InService() int
	Oldest() (oldest ublk.RequestInfo, ok bool, err error)

	// Requests returns those being served, beginning with the oldest. It waits for the threads that serve until ctx ends.
	Requests(ctx context.Context) ([]ublk.RequestInfo, error)

	// SetMarks has what the Handler says of requests of a queue written to shared memory, or to nothing where m is nil. When it returns, what was given before is in
	// use no more, also where it fails.
	SetMarks(queue int, m []uint64) error

	// Done is closed when the kernel has taken the device from this process: after Stop, or
	// when another program removed it, or some time after Detach.
	Done() <-chan struct{}

	// Broken is closed when the device is no longer served completely; Err tells why.
	Broken() <-chan struct{}
	Err() error

	// Stop writes back what is dirty and removes the device. It fails with
	// [ublk.ErrInUse], and changes nothing, where somebody has it in use.
	Stop(ctx context.Context) error

	// Drop is Stop for a device that takes no writes any more: what is dirty is lost.
	Drop(ctx context.Context) error

	// Abort removes the device at once, whoever uses it and whatever is dirty.
	Abort(ctx context.Context) error

	// Detach ends the service and leaves the device quiesced in the kernel for
	// [Driver.Recover]. It fails where the kernel cannot do that, and where requests are being served still when ctx ends.
	Detach(ctx context.Context) error
}

// KernelDevice is a device as the kernel knows it.
type KernelDevice struct {
	ID    int
	Token uint64 // [ublk.Params].ServerData that it was made with
	PID   int    // of its server, living or dead
	Dead  bool   // it was never started, or its disk is gone
}
