package uring

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// RegisterFilesSparse gives the ring an empty file table of n slots, at most
// RLIMIT_NOFILE. EBUSY says that it has one already.
func (r *Ring) RegisterFilesSparse(n uint32) error {
	return r.registerSparse("register file table", regFiles2, n)
}

// UpdateFile puts fd into a slot of the file table; -1 empties it. The table holds
// its own reference, so fd may be closed afterwards. The file that was there is
// released once the requests that use it have ended.
func (r *Ring) UpdateFile(slot uint32, fd int) error {
	if r.fd < 0 {
		return ErrClosed
	}
	r.scratch.fd = int32(fd)
	r.scratch.update = rsrcUpdate{offset: slot, data: address(&r.scratch.fd)}
	if _, err := r.register(regFilesUpdate, unsafe.Pointer(&r.scratch.update), 1); err != nil {
		return fmt.Errorf("update file slot %d: %w", slot, err)
	}
	return nil
}

// UnregisterFiles removes the file table.
func (r *Ring) UnregisterFiles() error {
	if _, err := r.register(regUnregisterFiles, nil, 0); err != nil {
		return fmt.Errorf("unregister file table: %w", err)
	}
	return nil
}

// RegisterBuffersSparse gives the ring an empty buffer table of n slots, at most 16384.
func (r *Ring) RegisterBuffersSparse(n uint32) error {
	return r.registerSparse("register buffer table", regBuffers2, n)
}

// UpdateBuffer pins the n bytes at addr as a slot of the buffer table, for
// PrepReadFixed and PrepWriteFixed; n = 0 empties the slot. At most 1 GiB; it counts
// against RLIMIT_MEMLOCK without CAP_IPC_LOCK.
func (r *Ring) UpdateBuffer(slot uint32, addr uintptr, n uint64) error {
	if r.fd < 0 {
		return ErrClosed
	}
	s := r.scratch
	s.iov, s.tag = iovec{base: uint64(addr), len: n}, 0
	s.update2 = rsrcUpdate2{offset: slot, data: address(&s.iov), tags: address(&s.tag), nr: 1}
	if _, err := r.register(regBuffersUpdate, unsafe.Pointer(&s.update2), unsafe.Sizeof(s.update2)); err != nil {
		return fmt.Errorf("update buffer slot %d: %w", slot, err)
	}
	return nil
}

// UnregisterBuffers removes the buffer table.
func (r *Ring) UnregisterBuffers() error {
	if _, err := r.register(regUnregisterBuffers, nil, 0); err != nil {
		return fmt.Errorf("unregister buffer table: %w", err)
	}
	return nil
}

// RegisterRingFD lets the calling thread enter the ring without a descriptor
// look-up. Only that thread may submit and wait afterwards, so it is for
// thread-bound rings. Linux 5.18.
func (r *Ring) RegisterRingFD() error {
	if r.fd < 0 {
		return ErrClosed
	}
	if r.enterFlags&enterRegisteredRing != 0 {
		return nil
	}
	r.scratch.update = rsrcUpdate{offset: anyRingSlot, data: uint64(r.fd)}
	if _, err := r.register(regRingFDs, unsafe.Pointer(&r.scratch.update), 1); err != nil {
		return fmt.Errorf("register ring descriptor: %w", err)
	}
	r.enterFD = uintptr(r.scratch.update.offset)
	r.enterFlags |= enterRegisteredRing
	r.thread = unix.Gettid()
	return nil
}

// unregisterRingFD undoes RegisterRingFD on the thread that did it. Another one can only close the ring after the
// end of that thread, which has taken the registration with it.
func (r *Ring) unregisterRingFD() error {
	if r.enterFlags&enterRegisteredRing == 0 || r.thread != unix.Gettid() {
		return nil
	}
	r.scratch.update = rsrcUpdate{offset: uint32(r.enterFD)}
	_, err := r.register(regUnregisterRingFDs, unsafe.Pointer(&r.scratch.update), 1)
	r.enterFD, r.enterFlags = uintptr(r.fd), r.enterFlags&^enterRegisteredRing
	return err
}

// RegisterIOWQMaxWorkers limits the kernel's worker threads for this ring's
// thread: bounded ones for files and block devices, unbounded ones for the
// rest. 0 leaves a limit as it is. Linux 5.15.
func (r *Ring) RegisterIOWQMaxWorkers(bounded, unbounded uint32) error {
	if r.fd < 0 {
		return ErrClosed
	}
	r.scratch.workers = [2]uint32{bounded, unbounded}
	if _, err := r.register(regIOWQMaxWorkers, unsafe.Pointer(&r.scratch.workers), 2); err != nil {
		return fmt.Errorf("limit io_uring workers: %w", err)
	}
	return nil
}

// OpSet is a set of opcodes.
type OpSet [probeOps]bool

// Probe tells which opcodes the kernel knows.
func (r *Ring) Probe() (OpSet, error) {
	var set OpSet
	p := new(probe)
	if _, err := r.register(regProbe, unsafe.Pointer(p), probeOps); err != nil {
		return set, fmt.Errorf("probe opcodes: %w", err)
	}
	for _, op := range p.ops[:p.opsLen] {
		set[op.op] = op.flags&opSupported != 0
	}
	return set, nil
}

func (r *Ring) registerSparse(what string, op uintptr, n uint32) error {
	arg := &rsrcRegister{nr: n, flags: rsrcRegisterSparse}
	if _, err := r.register(op, unsafe.Pointer(arg), unsafe.Sizeof(*arg)); err != nil {
		return fmt.Errorf("%s of %d slots: %w", what, n, err)
	}
	return nil
}

func (r *Ring) register(op uintptr, arg unsafe.Pointer, n uintptr) (int, error) {
	if r.fd < 0 {
		return 0, ErrClosed
	}
	for {
		res, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), op, uintptr(arg), n, 0, 0)
		switch errno {
		case 0:
			return int(res), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// address is where a value in the scratch page lies, as the kernel wants it
// inside its structures.
func address[T any](p *T) uint64 { return uint64(uintptr(unsafe.Pointer(p))) }
