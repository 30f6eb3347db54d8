package ublktest

import (
	"fmt"
	"hash/crc32"
	"syscall"
	"unsafe"

	"coppice/ublk"
)

type simIO struct {
	r        *ublk.Request
	cookie   uint16
	ev       Event
	executed bool
	sum      uint32       // of a write's data when it was begun
	began    uint64       // of a flush, on its disk's clock
	record   *WriteRecord // of an executed write
}

func checksum(p []byte) uint32 { return crc32.ChecksumIEEE(p) }

func (s *Sim) execute(io *simIO) {
	e := &io.ev
	s.counts[e.Kind]++
	e.N = s.counts[e.Kind]
	if e.Kind == Write && checksum(e.Data) != io.sum {
		panic(fmt.Sprintf("ublktest: write %d at %d of disk %s changed its data while in flight", e.N, e.Off, e.Disk.name))
	}
	if s.Hook != nil {
		s.Hook(*e)
	}
	if s.halted {
		return
	}
	var fault Fault
	if s.Inject != nil {
		fault = s.Inject(*e)
	}
	e.Res = io.apply(fault)
	io.executed = true
	if s.Hook != nil {
		e.After = true
		s.Hook(*e)
	}
}

// apply moves the data and returns the result as the kernel would give it.
func (io *simIO) apply(fault Fault) int32 {
	e := &io.ev
	n, errno := e.extent()
	switch {
	case errno != 0:
		return -int32(errno)
	case fault.Short:
		n = min(n, fault.Bytes)
	case fault.Errno != 0:
		n = 0
	}
	switch {
	case e.Kind == Read:
		e.Disk.mu.Lock()
		copy(e.Data[:n], e.Disk.content[min(e.Off, e.Disk.Size()):])
		e.Disk.mu.Unlock()
	case e.Kind == Write && n > 0:
		io.record = e.Disk.write(e.Data[:n], e.Off)
		if e.DSync && fault.Errno == 0 {
			e.Disk.persistWrite(io.record)
		}
	case e.Kind == Flush && fault.Errno != 0:
		e.Disk.Doom()
	case e.Kind == Flush:
		e.Disk.flush(io.began)
	}
	if fault.Errno != 0 {
		return -int32(fault.Errno)
	}
	return int32(n)
}

// extent returns how many bytes of the I/O lie on the disk.
func (e *Event) extent() (int, syscall.Errno) {
	if e.Kind == Flush {
		return 0, 0
	}
	if a := e.Disk.align; a > 1 && len(e.Data) > 0 {
		at := int64(uintptr(unsafe.Pointer(&e.Data[0])))
		if e.Off%a != 0 || int64(len(e.Data))%a != 0 || at%a != 0 {
			return 0, syscall.EINVAL
		}
	}
	if e.Off < 0 {
		return 0, syscall.EINVAL
	}
	left := max(e.Disk.Size()-e.Off, 0)
	if e.Kind == Write && left == 0 && len(e.Data) > 0 {
		return 0, syscall.ENOSPC
	}
	return int(min(left, int64(len(e.Data)))), 0
}
