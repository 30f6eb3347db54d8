package ublktest

import (
	"errors"
	"fmt"
	"syscall"

	"coppice/ublk"
)

// DeviceConfig describes a simulated block device. Zero values mean 1 queue and the defaults of
// [ublk.QueueConfig].
type DeviceConfig struct {
	SizeBytes int64
	Queues    int
	Depth     int
	MaxIO     int
}

// A Device is a block device that a [Sim] serves.
type Device struct {
	sim     *Sim
	handler ublk.Handler
	queues  []*ublk.Queue
	tags    [][]*call // by queue and tag; nil: idle
	waiting []*call
}

type call struct {
	desc ublk.Descriptor
	data []byte // of a write
	done func(errno syscall.Errno, data []byte)
}

// NewDevice attaches h to its queues.
func (s *Sim) NewDevice(h ublk.Handler, cfg DeviceConfig) (*Device, error) {
	d := &Device{sim: s, handler: h}
	for i := range max(cfg.Queues, 1) {
		q, err := ublk.NewQueue(ublk.QueueConfig{
			Handler: h, Index: i, Depth: cfg.Depth, MaxIO: cfg.MaxIO, SizeBytes: cfg.SizeBytes,
		}, s)
		if err == nil {
			err = h.Attach(q)
			if err != nil {
				err = errors.Join(fmt.Errorf("attach queue %d: %w", i, err), q.Release())
			}
		}
		if err != nil {
			return nil, errors.Join(err, d.release())
		}
		d.queues = append(d.queues, q)
		d.tags = append(d.tags, make([]*call, q.Depth()))
	}
	s.devices = append(s.devices, d)
	return d, nil
}

// mortal is a Handler that frees, of a queue, what the kernel takes from a process that dies.
type mortal interface{ Died(q *ublk.Queue) }

// Close detaches the handler from its queues. All requests must have been answered, unless
// the simulator is halted: then the Handler, like the process it stands for, is told nothing, but for its method Died if it has one.
func (d *Device) Close() error {
	if n := d.inService(); n > 0 && !d.sim.halted {
		return fmt.Errorf("close device: %d requests are in service", n)
	}
	for i, have := range d.sim.devices {
		if have == d {
			d.sim.devices = append(d.sim.devices[:i], d.sim.devices[i+1:]...)
			break
		}
	}
	return d.release()
}

func (d *Device) release() error {
	var errs []error
	for _, q := range d.queues {
		if !d.sim.halted {
			d.handler.Detach(q)
		} else if h, ok := d.handler.(mortal); ok {
			h.Died(q)
		}
		errs = append(errs, q.Release())
	}
	d.queues, d.tags = nil, nil
	return errors.Join(errs...)
}

// Queue returns one of the device's queues.
func (d *Device) Queue(i int) *ublk.Queue { return d.queues[i] }

// Submit begins a request; Step and Run carry it out. The data of a write is copied when the
// request is served, that of a read is passed to done and valid only there. done may be
// nil, and may submit more. READ and WRITE of more than MaxIO bytes fail with EIO.
func (d *Device) Submit(desc ublk.Descriptor, data []byte, done func(errno syscall.Errno, data []byte)) {
	d.waiting = append(d.waiting, &call{desc: desc, data: data, done: done})
}

func (d *Device) owns(r *ublk.Request) bool {
	q := r.Queue()
	return q.Index() < len(d.queues) && d.queues[q.Index()] == q
}

func (d *Device) inService() int {
	n := len(d.waiting)
	for _, q := range d.queues {
		n += q.InService()
	}
	return n
}

func (d *Device) canStart() bool {
	if len(d.waiting) == 0 {
		return false
	}
	for _, tags := range d.tags {
		for _, c := range tags {
			if c == nil {
				return true
			}
		}
	}
	return false
}

// start serves the request that has waited longest, on an idle tag that the seed picks.
func (d *Device) start() {
	c := d.waiting[0]
	d.waiting = d.waiting[1:]
	qi, tag := d.idleTag()
	q := d.queues[qi]
	buf := q.Buffer(tag)
	switch c.desc.Op {
	case ublk.OpRead:
		poison(buf[:min(c.desc.Len, int64(len(buf)))], byte(d.sim.steps))
	case ublk.OpWrite:
		copy(buf, c.data)
	}
	d.tags[qi][tag] = c
	q.Start(tag, c.desc)
}

func (d *Device) idleTag() (queue, tag int) {
	var idle [][2]int
	for qi, tags := range d.tags {
		for tag, c := range tags {
			if c == nil {
				idle = append(idle, [2]int{qi, tag})
			}
		}
	}
	at := idle[0]
	if !d.sim.cfg.FIFO {
		at = idle[d.sim.rng.IntN(len(idle))]
	}
	return at[0], at[1]
}

// poison fills p with what no test writes, so that a read that is not filled shows.
func poison(p []byte, salt byte) {
	if len(p) == 0 {
		return
	}
	p[0] = 0xd0 ^ salt
	for n := 1; n < len(p); n *= 2 {
		copy(p[n:], p[:n])
	}
}

func (d *Device) commit(r *ublk.Request, result int32) {
	qi, tag := r.Queue().Index(), r.Tag()
	c := d.tags[qi][tag]
	d.tags[qi][tag] = nil
	buf := r.Queue().Buffer(tag)
	var errno syscall.Errno
	if result < 0 {
		errno = syscall.Errno(-result)
	}
	if c.done != nil {
		var data []byte
		if c.desc.Op == ublk.OpRead && errno == 0 {
			data = buf[:result]
		}
		c.done(errno, data)
	}
	if r.Buf != nil {
		poison(r.Buf, ^byte(d.sim.steps))
	}
}

// do submits the parts of a request and runs them to completion, together with all else that is under way.
func (d *Device) do(desc ublk.Descriptor, data []byte) error {
	var first syscall.Errno
	whole := desc
	step := desc.Len
	if desc.Op == ublk.OpRead || desc.Op == ublk.OpWrite {
		step = min(desc.Len, int64(d.queues[0].MaxIO()))
	}
	for at := int64(0); at == 0 || at < whole.Len; at += step {
		desc.Off, desc.Len = whole.Off+at, min(step, whole.Len-at)
		var part []byte
		if data != nil {
			part = data[at : at+desc.Len]
		}
		d.Submit(desc, part, func(errno syscall.Errno, got []byte) {
			copy(part, got)
			if first == 0 {
				first = errno
			}
		})
		if whole.Len == 0 {
			break
		}
	}
	if err := d.sim.Run(); err != nil {
		return err
	}
	if first != 0 {
		return first
	}
	return nil
}

// ReadAt reads len(p) bytes at off, all or none. Like the other blocking helpers it splits what exceeds
// MaxIO and runs the simulator until it is idle; errors are the driver's errno.
func (d *Device) ReadAt(p []byte, off int64) (int, error) {
	err := d.do(ublk.Descriptor{Op: ublk.OpRead, Off: off, Len: int64(len(p))}, p)
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteAt writes p at off.
func (d *Device) WriteAt(p []byte, off int64) (int, error) {
	err := d.do(ublk.Descriptor{Op: ublk.OpWrite, Off: off, Len: int64(len(p))}, p)
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteFUA writes p at off with the force-unit-access bit.
func (d *Device) WriteFUA(p []byte, off int64) error {
	return d.do(ublk.Descriptor{Op: ublk.OpWrite, FUA: true, Off: off, Len: int64(len(p))}, p)
}

// Flush makes durable what has been answered.
func (d *Device) Flush() error { return d.do(ublk.Descriptor{Op: ublk.OpFlush}, nil) }

// Discard tells that n bytes at off are not needed any more.
func (d *Device) Discard(off, n int64) error {
	return d.do(ublk.Descriptor{Op: ublk.OpDiscard, Off: off, Len: n}, nil)
}

// WriteZeroes writes n bytes of zeros at off.
func (d *Device) WriteZeroes(off, n int64, noUnmap bool) error {
	return d.do(ublk.Descriptor{Op: ublk.OpWriteZeroes, NoUnmap: noUnmap, Off: off, Len: n}, nil)
}
