package uring

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Config says what ring to make.
type Config struct {
	// Entries is the size of the submission queue, 1 to 32768; the kernel rounds
	// it up to a power of two. 0 means 128.
	Entries uint32
	// CQEntries is the size of the completion queue, at least Entries and at most
	// 65536. 0 means twice Entries.
	CQEntries uint32
	// SQE128 makes submission entries of 128 bytes, for commands with a payload
	// of up to 80 bytes.
	SQE128 bool
	// CQE32 makes completion entries of 32 bytes.
	CQE32 bool
	// SingleIssuer binds the ring to the calling thread and lets completions be
	// processed only when that thread enters the kernel for them, which is
	// faster. The calling goroutine must be locked to its thread.
	SingleIssuer bool
}

const defaultEntries = 128

// optionalFlags are given up one by one, in this order, when the kernel answers
// EINVAL: TASKRUN_FLAG requires DEFER_TASKRUN, which requires SINGLE_ISSUER.
var optionalFlags = [...]uint32{
	SetupNoSQArray, SetupTaskrunFlag, SetupDeferTaskrun, SetupSingleIssuer, SetupSubmitAll, SetupCQSize,
}

func (c *Config) params() (entries uint32, p params) {
	entries = c.Entries
	if entries == 0 {
		entries = defaultEntries
	}
	p.cqEntries = c.CQEntries
	if p.cqEntries == 0 {
		p.cqEntries = 2 * entries
	}
	p.flags = SetupClamp | SetupCQSize | SetupSubmitAll | SetupNoSQArray
	if c.SingleIssuer {
		p.flags |= SetupSingleIssuer | SetupDeferTaskrun | SetupTaskrunFlag
	}
	if c.SQE128 {
		p.flags |= SetupSQE128
	}
	if c.CQE32 {
		p.flags |= SetupCQE32
	}
	return entries, p
}

// New makes a ring. Flags that the kernel does not know are left out (see
// [Ring.Flags]); SQE128 and CQE32 are not optional. With SingleIssuer the calling
// thread becomes the only one that may use the ring.
//
// It fails with [ErrUnavailable] where io_uring is missing or forbidden, and with
// the kernel's errno otherwise: ENOMEM where RLIMIT_MEMLOCK is too low, EMFILE or
// ENFILE where descriptors run out.
func New(cfg Config) (*Ring, error) {
	entries, p := cfg.params()
	fd, granted, err := setup(sysSetup, entries, p)
	if err != nil {
		return nil, fmt.Errorf("set up io_uring with %d entries: %w", entries, err)
	}
	unix.CloseOnExec(fd)
	r := &Ring{fd: fd, flags: granted.flags, features: granted.features}
	if err := r.mapRings(&granted); err != nil {
		_ = r.Close()
		return nil, fmt.Errorf("map io_uring queues: %w", err)
	}
	r.enterFD = uintptr(fd)
	return r, nil
}

type setupFunc func(entries uint32, p *params) (int, unix.Errno)

func sysSetup(entries uint32, p *params) (int, unix.Errno) {
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(p)), 0)
	return int(fd), errno
}

// setup calls the kernel until it agrees, with one optional flag less each time.
func setup(call setupFunc, entries uint32, want params) (int, params, error) {
	next := 0
	for {
		p := want
		fd, errno := call(entries, &p)
		switch errno {
		case 0:
			return fd, p, nil
		case unix.EINTR:
			continue
		case unix.ENOSYS, unix.EPERM:
			return -1, p, fmt.Errorf("%w: %w", ErrUnavailable, errno)
		}
		for next < len(optionalFlags) && want.flags&optionalFlags[next] == 0 {
			next++
		}
		if errno != unix.EINVAL || next == len(optionalFlags) {
			return -1, p, errno
		}
		want.flags &^= optionalFlags[next]
		if optionalFlags[next] == SetupCQSize {
			want.cqEntries = 0
		}
	}
}

// mapRings maps both queues, the entries, and the scratch page of system call
// arguments, which must not move while the kernel reads them.
func (r *Ring) mapRings(p *params) error {
	if p.features&FeatSingleMmap == 0 || p.features&FeatNoDrop == 0 {
		return fmt.Errorf("kernel older than 5.5: %w", unix.EOPNOTSUPP)
	}
	r.sqeShift, r.cqeShift = 6, 4
	if p.flags&SetupSQE128 != 0 {
		r.sqeShift++
	}
	if p.flags&SetupCQE32 != 0 {
		r.cqeShift++
	}
	sqLen := uintptr(p.sqOff.array) + uintptr(p.sqEntries)*4
	if p.flags&SetupNoSQArray != 0 {
		sqLen = 0
	}
	cqLen := uintptr(p.cqOff.cqes) + uintptr(p.cqEntries)<<r.cqeShift
	if err := r.rings.mapFile(r.fd, offSQRing, max(sqLen, cqLen)); err != nil {
		return err
	}
	if err := r.entries.mapFile(r.fd, offSQEs, uintptr(p.sqEntries)<<r.sqeShift); err != nil {
		return err
	}
	if err := r.scratchMem.mapAnon(unsafe.Sizeof(scratch{})); err != nil {
		return err
	}
	r.scratch = (*scratch)(r.scratchMem.base)
	r.locate(p)
	return nil
}

func (r *Ring) locate(p *params) {
	r.sqHead = r.rings.word(p.sqOff.head)
	r.sqTail = r.rings.word(p.sqOff.tail)
	r.sqFlags = r.rings.word(p.sqOff.flags)
	r.cqHead = r.rings.word(p.cqOff.head)
	r.cqTail = r.rings.word(p.cqOff.tail)
	r.sqEntries, r.sqMask = p.sqEntries, p.sqEntries-1
	r.cqEntries, r.cqMask = p.cqEntries, p.cqEntries-1
	r.sqes = r.entries.base
	r.cqes = unsafe.Add(r.rings.base, p.cqOff.cqes)
	r.tail, r.head = *r.sqTail, *r.cqHead
	if p.flags&SetupNoSQArray != 0 {
		return
	}
	array := unsafe.Slice(r.rings.word(p.sqOff.array), p.sqEntries)
	for i := range array {
		array[i] = uint32(i)
	}
}

// region is one mapping.
type region struct {
	base unsafe.Pointer
	size uintptr
}

func (m *region) mapFile(fd int, off int64, size uintptr) (err error) {
	m.base, err = unix.MmapPtr(fd, off, nil, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	m.size = size
	return err
}

func (m *region) mapAnon(size uintptr) (err error) {
	m.base, err = unix.MmapPtr(-1, 0, nil, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_POPULATE)
	m.size = size
	return err
}

func (m *region) unmap() error {
	if m.base == nil {
		return nil
	}
	base := m.base
	m.base = nil
	return unix.MunmapPtr(base, m.size)
}

func (m *region) word(off uint32) *uint32 {
	return (*uint32)(unsafe.Add(m.base, off))
}
