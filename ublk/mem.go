package ublk

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Mem is a disk in memory. It answers every request at once, on the reactor's thread; discarded and
// zeroed ranges read as zeros, and whole pages of them are given back to the system.
type Mem struct {
	slab []byte
	page int64
}

// NewMem makes a disk of sizeBytes, of which only what is written takes memory. Close frees it.
func NewMem(sizeBytes int64) (*Mem, error) {
	slab, err := unix.Mmap(-1, 0, int(sizeBytes), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map memory disk of %d bytes: %w", sizeBytes, err)
	}
	return &Mem{slab: slab, page: int64(os.Getpagesize())}, nil
}

// Size returns the size in bytes.
func (m *Mem) Size() int64 { return int64(len(m.slab)) }

// Close frees the content. No device may be serving it any more.
func (m *Mem) Close() error {
	if m.slab == nil {
		return nil
	}
	slab := m.slab
	m.slab = nil
	if err := unix.Munmap(slab); err != nil {
		return fmt.Errorf("unmap memory disk: %w", err)
	}
	return nil
}

// Attach implements [Handler].
func (m *Mem) Attach(*Queue) error {
	if m.slab == nil {
		return errors.New("memory disk is closed")
	}
	return nil
}

// Detach implements [Handler].
func (m *Mem) Detach(*Queue) {}

// Serve implements [Handler].
func (m *Mem) Serve(r *Request) {
	r.Complete(m.serve(r))
}

func (m *Mem) serve(r *Request) syscall.Errno {
	if r.Op == OpFlush {
		return 0
	}
	if r.Off > m.Size() || r.Len > m.Size()-r.Off {
		return syscall.EIO
	}
	p := m.slab[r.Off : r.Off+r.Len]
	switch r.Op {
	case OpRead:
		copy(r.Buf, p)
	case OpWrite:
		copy(p, r.Buf)
	case OpWriteZeroes, OpDiscard:
		if r.NoUnmap {
			clear(p)
			return 0
		}
		return m.drop(r.Off, r.Off+r.Len)
	}
	return 0
}

// drop zeroes a range, whole pages of it by giving them back.
func (m *Mem) drop(from, to int64) syscall.Errno {
	first := (from + m.page - 1) / m.page * m.page
	last := to / m.page * m.page
	if first >= last {
		clear(m.slab[from:to])
		return 0
	}
	clear(m.slab[from:first])
	clear(m.slab[last:to])
	if err := unix.Madvise(m.slab[first:last], unix.MADV_DONTNEED); err != nil {
		return syscall.EIO
	}
	return 0
}

// Resume implements [Handler]; nothing of Mem ends there.
func (m *Mem) Resume(*Request, uint16, int32) {}

var _ Handler = (*Mem)(nil)
