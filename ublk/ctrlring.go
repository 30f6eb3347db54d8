package ublk

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"coppice/ublk/uapi"
	"coppice/ublk/uring"
)

// command is one control command. Its memory is copied to and from the ring's own.
type command struct {
	op     uint32
	dev    uint32
	queue  uint16
	inline uint64
	mem    []byte
}

// A ctrlRing carries one control command at a time. Commands block in the kernel, some until
// I/O has been served, so each in flight has a ring and a goroutine of its own.
type ctrlRing struct {
	ring   *uring.Ring
	stop   int    // eventfd that cancels the command
	page   []byte // what commands point to: the kernel may write there for as long as they run
	armed  bool   // the ring polls stop
	number uint64 // of the command in flight
	cancel atomic.Uint64
}

const (
	ctrlPageBytes = 4096

	// cancelGrace is how long a command that was told to end may go on.
	cancelGrace = 2 * time.Second

	kindCtrlCommand = 1
	kindCtrlStop    = 2
	kindCtrlCancel  = 3
	ctrlKindBits    = 2
)

func newCtrlRing() (*ctrlRing, error) {
	ring, err := uring.New(uring.Config{Entries: 4, SQE128: true})
	if err != nil {
		return nil, err
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make eventfd: %w", err), ring.Close())
	}
	page, err := unix.Mmap(-1, 0, ctrlPageBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map command memory: %w", err), unix.Close(stop), ring.Close())
	}
	return &ctrlRing{ring: ring, stop: stop, page: page}, nil
}

func (cr *ctrlRing) close() error {
	return errors.Join(cr.ring.Close(), unix.Close(cr.stop), unix.Munmap(cr.page))
}

// run executes a command on the ublk-control descriptor fd and returns its result.
func (cr *ctrlRing) run(fd int, c *command) (int32, error) {
	// The kernel's worker threads belong to the thread that submitted.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	copy(cr.page, c.mem)
	if !cr.armed {
		cr.armed = true
		s := cr.ring.SQE()
		s.PrepPollAdd(int32(cr.stop), unix.POLLIN)
		s.SetUserData(kindCtrlStop)
	}
	s := cr.ring.SQE()
	s.PrepURingCmd(int32(fd), c.op)
	s.SetUserData(cr.number<<ctrlKindBits | kindCtrlCommand)
	*(*uapi.CtrlCmd)(unsafe.Pointer(s.Cmd80())) = cr.payload(c)
	for {
		if _, err := cr.ring.SubmitAndWait(1, -1); err != nil {
			return 0, err
		}
		if res, done := cr.drain(); done {
			copy(c.mem, cr.page)
			return res, nil
		}
	}
}

func (cr *ctrlRing) payload(c *command) uapi.CtrlCmd {
	p := uapi.CtrlCmd{DevID: c.dev, QueueID: c.queue, Data: c.inline, Len: uint16(len(c.mem))}
	if len(c.mem) > 0 {
		p.Addr = uint64(addressOf(cr.page))
	}
	return p
}

// drain takes in all completions and tells whether the command's was among them.
func (cr *ctrlRing) drain() (res int32, done bool) {
	n := cr.ring.Ready()
	for i := range n {
		cqe := cr.ring.CQE(i)
		switch cqe.UserData & (1<<ctrlKindBits - 1) {
		case kindCtrlCommand:
			res, done = cqe.Res, true
		case kindCtrlStop:
			cr.stopped()
		}
	}
	cr.ring.Advance(n)
	return res, done
}

// stopped cancels the command in flight, if it is the one that is meant.
func (cr *ctrlRing) stopped() {
	cr.armed = false
	var count [8]byte
	_, _ = unix.Read(cr.stop, count[:])
	if cr.cancel.Load() != cr.number {
		return
	}
	s := cr.ring.SQE()
	s.PrepCancel(cr.number<<ctrlKindBits|kindCtrlCommand, 0)
	s.SetUserData(kindCtrlCancel)
}

// interrupt tells the command of that number to end, from any goroutine.
func (cr *ctrlRing) interrupt(number uint64) {
	cr.cancel.Store(number)
	_, _ = unix.Write(cr.stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
}

type ctrlResult struct {
	res int32
	err error
}

// do executes a command. When ctx ends, the command is told to end, too; if it does not, it
// is left to itself with ErrStuck.
func (c *Control) do(ctx context.Context, cmd *command) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	cr, number, err := c.take()
	if err != nil {
		return err
	}
	done := make(chan ctrlResult, 1)
	go func() {
		var r ctrlResult
		r.res, r.err = cr.run(c.fd, cmd)
		c.give(cr, r.err == nil)
		done <- r
	}()
	select {
	case r := <-done:
		return r.verdict(cmd.op)
	case <-ctx.Done():
	}
	cr.interrupt(number)
	grace := time.NewTimer(cancelGrace)
	defer grace.Stop()
	select {
	case r := <-done:
		if err := r.verdict(cmd.op); err != nil {
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
		return nil
	case <-grace.C:
		return fmt.Errorf("%w: %w", ErrStuck, ctx.Err())
	}
}

func (r *ctrlResult) verdict(op uint32) error {
	switch {
	case r.err != nil:
		return r.err
	case r.res < 0:
		return controlErr(op, syscall.Errno(-r.res))
	}
	return nil
}
