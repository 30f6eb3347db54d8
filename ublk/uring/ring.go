package uring

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Ring is one io_uring. See the package comment for who may use it.
type Ring struct {
	// Words shared with the kernel. We alone write sqTail and cqHead.
	sqHead, sqTail, sqFlags *uint32
	cqHead, cqTail          *uint32
	sqes, cqes              unsafe.Pointer
	sqEntries, sqMask       uint32
	cqEntries, cqMask       uint32
	sqeShift, cqeShift      uint8

	tail uint32 // end of the prepared entries, published when submitting
	head uint32 // end of the released completions

	fd         int // -1 when closed
	enterFD    uintptr
	enterFlags uintptr
	thread     int // that registered the ring's descriptor
	flags      uint32
	features   uint32
	scratch    *scratch

	rings, entries, scratchMem region
}

// scratch holds what system calls point to.
type scratch struct {
	arg     geteventsArg
	ts      timespec
	update  rsrcUpdate
	update2 rsrcUpdate2
	iov     iovec
	tag     uint64
	fd      int32
	workers [2]uint32
}

// Flags is what was granted of the Setup* flags.
func (r *Ring) Flags() uint32 { return r.flags }

// Features is what the kernel offers of the Feat* features.
func (r *Ring) Features() uint32 { return r.features }

// Entries is the number of submission entries.
func (r *Ring) Entries() uint32 { return r.sqEntries }

// CQEntries is the number of completion entries.
func (r *Ring) CQEntries() uint32 { return r.cqEntries }

// FD is the ring's descriptor, or -1 when the ring is closed.
func (r *Ring) FD() int { return r.fd }

// Space is the number of entries that SQE can still give before a submission.
func (r *Ring) Space() uint32 {
	return r.sqEntries - (r.tail - atomic.LoadUint32(r.sqHead))
}

// SQE is the next free submission entry, zeroed; nil when the queue is full and
// [Ring.Submit] must come first. The entry is the caller's until it is submitted.
func (r *Ring) SQE() *SQE {
	if r.Space() == 0 {
		return nil
	}
	p := unsafe.Add(r.sqes, uintptr(r.tail&r.sqMask)<<r.sqeShift)
	s := (*SQE)(p)
	*s = SQE{}
	if r.flags&SetupSQE128 != 0 {
		*(*SQE)(unsafe.Add(p, sqeSize)) = SQE{}
	}
	r.tail++
	return s
}

// Submit hands all prepared entries to the kernel and does not wait. See
// [Ring.SubmitAndWait] for the result.
func (r *Ring) Submit() (int, error) { return r.SubmitAndWait(0, -1) }

// SubmitAndWait hands all prepared entries to the kernel and waits for n
// completions, or until the timeout is over; a timeout below 0 is none. That is one
// system call, unless a signal interrupts it. It counts the entries the kernel took. A
// time-out is no error: look at [Ring.Ready].
//
// Entries that were not taken stay prepared for the next call, also when it
// fails. EAGAIN and EBUSY say that the kernel lacks memory or that completions
// must be released first; [ErrDropped] that a completion is lost.
func (r *Ring) SubmitAndWait(n uint32, timeout time.Duration) (int, error) {
	if r.fd < 0 {
		return 0, ErrClosed
	}
	n = min(n, r.cqEntries)
	atomic.StoreUint32(r.sqTail, r.tail)
	var deadline time.Time
	if n > 0 && timeout > 0 {
		deadline = time.Now().Add(timeout)
	}
	total := 0
	for {
		pending := r.tail - atomic.LoadUint32(r.sqHead)
		if !r.mustEnter(pending, n) {
			return total, nil
		}
		taken, errno := r.enter(pending, n, timeout)
		total += taken
		if stop, err := r.verdict(pending, uint32(taken), n, timeout, errno); stop {
			return total, err
		}
		if !deadline.IsZero() {
			timeout = max(0, time.Until(deadline))
		}
	}
}

// mustEnter tells whether there is anything that only the kernel can do.
func (r *Ring) mustEnter(pending, n uint32) bool {
	if pending > 0 || r.overflown() {
		return true
	}
	if n == 0 {
		return r.Deferred()
	}
	return r.Ready() < n
}

// Deferred tells whether the kernel may have completions that it delivers only when it is entered. It is a look at memory, and exact where
// [SetupTaskrunFlag] was granted; else a ring with [SetupDeferTaskrun] always may. Source: io_req_local_work_add in io_uring/io_uring.c, Linux 6.12.
func (r *Ring) Deferred() bool {
	const both = SetupDeferTaskrun | SetupTaskrunFlag
	return atomic.LoadUint32(r.sqFlags)&(sqCQOverflow|sqTaskrun) != 0 || r.flags&both == SetupDeferTaskrun
}

// verdict tells whether a call has ended, and how. A wait that ended early after
// entries were taken is reported by the kernel as their count alone.
func (r *Ring) verdict(pending, taken, n uint32, timeout time.Duration, errno unix.Errno) (bool, error) {
	switch errno {
	case 0:
		if taken < pending {
			return taken == 0, r.refused(taken)
		}
		return n == 0 || timeout == 0 || r.Ready() >= n, nil
	case unix.EINTR:
		return false, nil
	case unix.ETIME:
		return true, nil
	case unix.EBADR:
		return true, fmt.Errorf("enter io_uring: %w", ErrDropped)
	}
	return true, fmt.Errorf("enter io_uring: %w", errno)
}

func (r *Ring) refused(taken uint32) error {
	if taken > 0 {
		return nil
	}
	return fmt.Errorf("enter io_uring: no entry was taken: %w", unix.EAGAIN)
}

func (r *Ring) enter(submit, n uint32, timeout time.Duration) (int, unix.Errno) {
	flags := r.enterFlags
	if n > 0 || r.flags&SetupDeferTaskrun != 0 || r.overflown() {
		flags |= enterGetEvents
	}
	var arg, argSize uintptr
	if n > 0 && timeout >= 0 {
		flags |= enterExtArg
		r.scratch.ts = timespec{sec: int64(timeout / time.Second), nsec: int64(timeout % time.Second)}
		r.scratch.arg = geteventsArg{ts: uint64(uintptr(unsafe.Pointer(&r.scratch.ts)))}
		arg, argSize = uintptr(unsafe.Pointer(&r.scratch.arg)), unsafe.Sizeof(r.scratch.arg)
	}
	// Never RawSyscall6: a thread that waits in it would keep its scheduler slot
	// and hold up every stop of the world.
	taken, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, r.enterFD, uintptr(submit), uintptr(n), flags, arg, argSize)
	if errno != 0 {
		return 0, errno
	}
	return int(taken), 0
}

// overflown tells whether the kernel keeps completions that had no room; it
// delivers them when it is entered for events.
func (r *Ring) overflown() bool {
	return atomic.LoadUint32(r.sqFlags)&sqCQOverflow != 0
}

// Ready is the number of completions that [Ring.CQE] can give. It makes
// their contents visible to the caller.
func (r *Ring) Ready() uint32 {
	return atomic.LoadUint32(r.cqTail) - r.head
}

// CQE is the i-th completion that is not yet released, i below a result of [Ring.Ready].
// It is valid until [Ring.Advance] releases it.
func (r *Ring) CQE(i uint32) *CQE {
	return (*CQE)(unsafe.Add(r.cqes, uintptr((r.head+i)&r.cqMask)<<r.cqeShift))
}

// Advance releases the first n completions to the kernel, n at most a result of [Ring.Ready].
func (r *Ring) Advance(n uint32) {
	r.head += n
	atomic.StoreUint32(r.cqHead, r.head)
}

// Close gives everything back. What is still in flight is cancelled by the kernel
// in its own time, so memory that such requests use must not be unmapped unless
// the caller has seen them complete. The ring of a thread that has ended can be closed by any other. Closing
// twice is harmless.
func (r *Ring) Close() error {
	if r.fd < 0 {
		return nil
	}
	err := errors.Join(r.unregisterRingFD(), unix.Close(r.fd), r.rings.unmap(), r.entries.unmap(), r.scratchMem.unmap())
	r.fd = -1
	if err != nil {
		return fmt.Errorf("close io_uring: %w", err)
	}
	return nil
}
