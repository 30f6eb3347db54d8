package ublk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"coppice/ublk/uapi"
)

// ControlPath is where the driver is reached.
const ControlPath = "/dev/ublk-control"

// Control gives commands to the driver. Its methods may be called from any goroutine, also at
// the same time: a command that waits for one device does not hold up another.
type Control struct {
	fd       int
	features Features
	legacy   bool // the driver takes bare command numbers only

	mu     sync.Mutex // guards what follows
	idle   []*ctrlRing
	number uint64 // of the last command
	closed bool
}

const maxIdleRings = 4

// Open reaches the driver at path, [ControlPath] if empty, and finds out what it offers. It fails
// with [ErrNoDriver], [ErrPermission], or uring.ErrUnavailable.
func Open(path string) (*Control, error) {
	if path == "" {
		path = ControlPath
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, openErr(err))
	}
	c := &Control{fd: fd}
	if err := c.probe(context.Background()); err != nil {
		return nil, errors.Join(fmt.Errorf("probe ublk driver at %s: %w", path, err), c.Close())
	}
	return c, nil
}

// Features is what the driver offers. Drivers from before Linux 6.5 cannot be asked; what all of
// them have is assumed.
func (c *Control) Features() Features { return c.features }

// Close takes no more commands; those that run come to their end. Devices go on being served, but
// cannot be stopped by this Control any more. Closing twice is harmless.
func (c *Control) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	errs := []error{unix.Close(c.fd)}
	for _, cr := range c.idle {
		errs = append(errs, cr.close())
	}
	c.idle = nil
	return errors.Join(errs...)
}

func (c *Control) take() (*ctrlRing, uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, 0, ErrClosed
	}
	c.number++
	if n := len(c.idle); n > 0 {
		cr := c.idle[n-1]
		c.idle = c.idle[:n-1]
		cr.number = c.number
		return cr, c.number, nil
	}
	cr, err := newCtrlRing()
	if err != nil {
		return nil, 0, err
	}
	cr.number = c.number
	return cr, c.number, nil
}

func (c *Control) give(cr *ctrlRing, sound bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if sound && !c.closed && len(c.idle) < maxIdleRings {
		c.idle = append(c.idle, cr)
		return
	}
	_ = cr.close()
}

// op is a control command with the name that errors call it by.
type op struct {
	encoded uint32
	name    string
}

var (
	opAdd           = op{uapi.CmdAddDev, "add"}
	opDel           = op{uapi.CmdDelDev, "delete"}
	opDelAsync      = op{uapi.CmdDelDevAsync, "delete"}
	opStart         = op{uapi.CmdStartDev, "start"}
	opStop          = op{uapi.CmdStopDev, "stop"}
	opSetParams     = op{uapi.CmdSetParams, "set parameters of"}
	opGetParams     = op{uapi.CmdGetParams, "get parameters of"}
	opGetInfo       = op{uapi.CmdGetDevInfo, "get info of"}
	opAffinity      = op{uapi.CmdGetQueueAffinity, "get queue affinity of"}
	opStartRecovery = op{uapi.CmdStartUserRecovery, "start recovery of"}
	opEndRecovery   = op{uapi.CmdEndUserRecovery, "end recovery of"}
	opQuiesce       = op{uapi.CmdQuiesceDev, "quiesce"}
)

// device executes a command about the device of that id.
func (c *Control) device(ctx context.Context, o op, id int, inline uint64, mem []byte) error {
	if id < 0 {
		return fmt.Errorf("%s ublk device %d: %w", o.name, id, ErrNoDevice)
	}
	cmd := command{op: c.encode(o), dev: uint32(id), queue: uapi.NoQueue, inline: inline, mem: mem}
	if err := c.do(ctx, &cmd); err != nil {
		return fmt.Errorf("%s ublk device %d: %w", o.name, id, err)
	}
	return nil
}

func (c *Control) encode(o op) uint32 {
	if c.legacy {
		return uapi.Legacy(o.encoded)
	}
	return o.encoded
}

// probe finds out features and command encoding. Where GET_FEATURES is not known (before
// Linux 6.5), a device is added for a moment with an encoded command; a driver that does not know it (before
// 6.4) takes bare numbers.
func (c *Control) probe(ctx context.Context) error {
	mem := make([]byte, uapi.FeaturesLen)
	cmd := command{op: uapi.CmdGetFeatures, queue: uapi.NoQueue, mem: mem}
	err := c.do(ctx, &cmd)
	if err == nil {
		c.features = Features(*(*uint64)(unsafe.Pointer(unsafe.SliceData(mem))))
		return nil
	}
	if !unknownCommand(err) {
		return err
	}
	c.features = featuresBeforeProbe | FeatureEncoded
	info, err := c.Add(ctx, uapi.DevInfo{NrHWQueues: 1, QueueDepth: 1, MaxIOBufBytes: 1 << 16, DevID: uapi.AutoDevID})
	if err == nil {
		return c.Delete(ctx, info.ID)
	}
	if !unknownCommand(err) {
		return err
	}
	c.features &^= FeatureEncoded
	c.legacy = true
	return nil
}

// unknownCommand tells whether a driver did not know a command. Linux 6.1 answers ENODEV to those.
func unknownCommand(err error) bool {
	return errors.Is(err, ErrUnsupported) || errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.EINVAL)
}

// Add makes a device that is neither configured nor started, and returns what the kernel made of the
// request: it leaves out flags that it does not know, has no more queues than CPUs and rounds the largest I/O
// down to pages. It fails with [ErrIDTaken].
func (c *Control) Add(ctx context.Context, want uapi.DevInfo) (Info, error) {
	mem := make([]byte, unsafe.Sizeof(want))
	*(*uapi.DevInfo)(unsafe.Pointer(unsafe.SliceData(mem))) = want
	cmd := command{op: c.encode(opAdd), dev: want.DevID, queue: uapi.NoQueue, mem: mem}
	if err := c.do(ctx, &cmd); err != nil {
		return Info{}, fmt.Errorf("add ublk device%s: %w", idSuffix(want.DevID), err)
	}
	return decodeInfo(mem), nil
}

func idSuffix(id uint32) string {
	if id == uapi.AutoDevID {
		return ""
	}
	return fmt.Sprintf(" %d", id)
}

// SetParams configures a device that was never started.
func (c *Control) SetParams(ctx context.Context, id int, p uapi.Params) error {
	p.Len = uint32(unsafe.Sizeof(p))
	return c.device(ctx, opSetParams, id, 0, paramBytes(&p))
}

// GetParams returns a device's configuration.
func (c *Control) GetParams(ctx context.Context, id int) (uapi.Params, error) {
	p := uapi.Params{Len: uint32(unsafe.Sizeof(uapi.Params{}))}
	err := c.device(ctx, opGetParams, id, 0, paramBytes(&p))
	return p, err
}

func paramBytes(p *uapi.Params) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(p)), unsafe.Sizeof(*p))
}

// Start brings up the block device. It waits until every tag of every queue has been fetched, and
// then for the I/O of the partition scan.
func (c *Control) Start(ctx context.Context, id int) error {
	return c.device(ctx, opStart, id, uint64(os.Getpid()), nil)
}

// StopDevice takes the block device away: at once, and with the loss of what the page cache
// has not written if the device is recoverable (ublk_stop_dev, drivers/block/ublk_drv.c, Linux 6.12). It waits
// for requests in service. [Device.Stop] does it in order.
func (c *Control) StopDevice(ctx context.Context, id int) error {
	return c.device(ctx, opStop, id, 0, nil)
}

// Delete removes a device, stopping it if need be. It waits until nobody has /dev/ublkcN or
// /dev/ublkbN open any more; the id is free when it returns.
func (c *Control) Delete(ctx context.Context, id int) error {
	return c.device(ctx, opDel, id, 0, nil)
}

// DeleteAsync is Delete that does not wait for the last opener. Linux 6.7; ErrUnsupported before.
func (c *Control) DeleteAsync(ctx context.Context, id int) error {
	return c.device(ctx, opDelAsync, id, 0, nil)
}

// StartRecovery prepares a quiesced device for a new server. EBUSY: the old one is not
// quite gone; EINVAL: the preparation has been made already, or the device is not recoverable.
func (c *Control) StartRecovery(ctx context.Context, id int) error {
	return c.device(ctx, opStartRecovery, id, 0, nil)
}

// EndRecovery waits until every tag has been fetched, and lets I/O go on.
func (c *Control) EndRecovery(ctx context.Context, id int) error {
	return c.device(ctx, opEndRecovery, id, uint64(os.Getpid()), nil)
}

// Quiesce ends the service of a recoverable device by this process, waiting up to milliseconds
// (0: without end) for an idle tag in each queue. Linux 6.16.
func (c *Control) Quiesce(ctx context.Context, id int, milliseconds uint64) error {
	return c.device(ctx, opQuiesce, id, milliseconds, nil)
}
