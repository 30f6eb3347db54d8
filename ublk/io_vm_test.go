//go:build vm

package ublk

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	blkDiscard = 0x1277 // BLKDISCARD, include/uapi/linux/fs.h
	blkZeroOut = 0x127f // BLKZEROOUT
)

// recorder is a disk in memory that counts what it is asked for.
type recorder struct {
	*Mem
	ops                  [8]atomic.Int64
	fua, unmaps, noUnmap atomic.Int64
}

func (h *recorder) Serve(r *Request) {
	h.ops[r.Op].Add(1)
	switch {
	case r.FUA:
		h.fua.Add(1)
	case r.Op == OpWriteZeroes && r.NoUnmap:
		h.noUnmap.Add(1)
	case r.Op == OpWriteZeroes:
		h.unmaps.Add(1)
	}
	h.Mem.Serve(r)
}

// directFile opens a block device past the page cache.
func directFile(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// pages is memory for direct I/O.
func pages(t testing.TB, n int) []byte {
	t.Helper()
	p, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(p) })
	return p
}

func rangeIoctl(f *os.File, op uint, off, n int64) error {
	arg := [2]uint64{uint64(off), uint64(n)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(op), uintptr(unsafe.Pointer(&arg)))
	if errno != 0 {
		return errno
	}
	return nil
}

// writeDurably writes with RWF_DSYNC, which reaches the device as a FUA write.
func writeDurably(f *os.File, p []byte, off int64) error {
	n, err := unix.Pwritev2(int(f.Fd()), [][]byte{p}, off, unix.RWF_DSYNC)
	if err == nil && n != len(p) {
		err = fmt.Errorf("wrote %d of %d bytes", n, len(p))
	}
	return err
}

// exerciser does random I/O on a part of a device and remembers what must be there.
type exerciser struct {
	f      *os.File
	rnd    *rand.Rand
	block  int64
	base   int64
	shadow []byte
	buf    []byte
}

func newExerciser(t testing.TB, f *os.File, seed uint64, block int, base, size int64) *exerciser {
	return &exerciser{
		f: f, rnd: rand.New(rand.NewPCG(seed, 0)), block: int64(block), base: base,
		shadow: make([]byte, size), buf: pages(t, 1<<20),
	}
}

const discardUnit = 4096 // ranges of whole units are discarded in full

func (x *exerciser) extent(unit int64, most int64) (off, n int64) {
	n = (x.rnd.Int64N(most/unit) + 1) * unit
	off = x.rnd.Int64N((int64(len(x.shadow))-n)/unit+1) * unit
	return off, n
}

func (x *exerciser) step() error {
	off, n := x.extent(x.block, 256<<10)
	switch k := x.rnd.IntN(100); {
	case k < 35:
		return x.write(off, n, func(p []byte, at int64) error { _, err := x.f.WriteAt(p, at); return err })
	case k < 45:
		return x.write(off, n, func(p []byte, at int64) error { return writeDurably(x.f, p, at) })
	case k < 80:
		return x.check(off, n)
	case k < 85:
		return x.zero(off, n, blkZeroOut)
	case k < 95:
		off, n = x.extent(discardUnit, 512<<10)
		return x.zero(off, n, blkDiscard)
	default:
		return x.f.Sync()
	}
}

func (x *exerciser) write(off, n int64, write func([]byte, int64) error) error {
	p := x.buf[:n]
	for i := 0; i < len(p); i += 8 {
		*(*uint64)(unsafe.Pointer(&p[i])) = x.rnd.Uint64()
	}
	if err := write(p, x.base+off); err != nil {
		return err
	}
	copy(x.shadow[off:], p)
	return nil
}

func (x *exerciser) zero(off, n int64, op uint) error {
	if err := rangeIoctl(x.f, op, x.base+off, n); err != nil {
		return fmt.Errorf("zero by ioctl %#x: %w", op, err)
	}
	clear(x.shadow[off : off+n])
	return nil
}

func (x *exerciser) check(off, n int64) error {
	p := x.buf[:n]
	if _, err := x.f.ReadAt(p, x.base+off); err != nil {
		return err
	}
	if !bytes.Equal(p, x.shadow[off:off+n]) {
		return fmt.Errorf("%d bytes at %d differ from what was written", n, x.base+off)
	}
	return nil
}

func (x *exerciser) checkAll() error {
	for off := int64(0); off < int64(len(x.shadow)); off += int64(len(x.buf)) {
		if err := x.check(off, min(int64(len(x.buf)), int64(len(x.shadow))-off)); err != nil {
			return err
		}
	}
	return nil
}

func TestDataIntegrity(t *testing.T) {
	c, rs := openControl(t), vmReactors(t)
	const workers, part = 4, 4 << 20
	for _, block := range []int{512, 4096} {
		for _, queues := range []int{1, 2} {
			t.Run(fmt.Sprintf("%d byte blocks, %d queues", block, queues), func(t *testing.T) {
				h := &recorder{Mem: vmDisk(t, workers*part)}
				d := createDevice(t, c, rs, Params{ID: AutoID, SizeBytes: h.Size(), BlockSize: block, Queues: queues, Discard: true}, h)
				f := directFile(t, d.Path())
				var group errgroup.Group
				var all []*exerciser
				for i := range workers {
					x := newExerciser(t, f, uint64(i+block*queues), block, int64(i)*part, part)
					all = append(all, x)
					group.Go(func() error {
						for range 300 {
							if err := x.step(); err != nil {
								return err
							}
						}
						return x.checkAll()
					})
				}
				if err := group.Wait(); err != nil {
					t.Error(err)
				}
				for _, x := range all {
					if !bytes.Equal(h.slab[x.base:x.base+part], x.shadow) {
						t.Errorf("disk differs in the part at %d", x.base)
					}
				}
				for _, op := range []Op{OpRead, OpWrite, OpFlush, OpDiscard, OpWriteZeroes} {
					if h.ops[op].Load() == 0 {
						t.Errorf("no operation %d arrived", op)
					}
				}
				if h.fua.Load() == 0 {
					t.Error("no FUA write arrived")
				}
				if err := f.Close(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// Each kind of request arrives once for one call: nothing is lost, merged or made up.
func TestEachCallArrivesAsItsRequest(t *testing.T) {
	c, rs := openControl(t), vmReactors(t)
	h := &recorder{Mem: vmDisk(t, 8<<20)}
	d := createDevice(t, c, rs, Params{ID: AutoID, SizeBytes: h.Size(), Discard: true}, h)
	f := directFile(t, d.Path())
	buf := pages(t, 4096)
	for _, s := range []struct {
		name  string
		count *atomic.Int64
		do    func() error
	}{
		{"fsync", &h.ops[OpFlush], f.Sync},
		{"write", &h.ops[OpWrite], func() error { _, err := f.WriteAt(buf, 4096); return err }},
		{"read", &h.ops[OpRead], func() error { _, err := f.ReadAt(buf, 4096); return err }},
		{"durable write", &h.fua, func() error { return writeDurably(f, buf, 8192) }},
		{"discard", &h.ops[OpDiscard], func() error { return rangeIoctl(f, blkDiscard, 0, 4<<20) }},
		{"zeroes that stay allocated", &h.noUnmap, func() error { return rangeIoctl(f, blkZeroOut, 512, 4<<20) }},
		{"zeroes by punching a hole", &h.unmaps, func() error {
			return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 4096, 1<<20)
		}},
	} {
		before := s.count.Load()
		for range 5 {
			if err := s.do(); err != nil {
				t.Errorf("%s: %v", s.name, err)
			}
		}
		if n := s.count.Load() - before; n != 5 {
			t.Errorf("5 calls of %s arrived as %d requests", s.name, n)
		}
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// failing answers every write with one errno.
type failing struct {
	Null
	errno syscall.Errno
}

func (h *failing) Serve(r *Request) {
	if r.Op == OpWrite {
		r.Complete(h.errno)
		return
	}
	h.Null.Serve(r)
}

func TestErrorsReachTheCaller(t *testing.T) {
	c, rs := openControl(t), vmReactors(t)
	buf := pages(t, 4096)
	for errno, want := range map[syscall.Errno]syscall.Errno{
		syscall.EIO: syscall.EIO, syscall.ENOSPC: syscall.ENOSPC, syscall.EOPNOTSUPP: syscall.EOPNOTSUPP,
		syscall.EBUSY: syscall.EIO, syscall.EAGAIN: syscall.EIO, syscall.ENOMEM: syscall.EIO,
	} {
		d := createDevice(t, c, rs, Params{ID: AutoID, SizeBytes: 1 << 20}, &failing{errno: errno})
		f := directFile(t, d.Path())
		if _, err := f.WriteAt(buf, 0); !errors.Is(err, want) {
			t.Errorf("handler's %v reaches the caller as %v", errno, err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestReadOnlyDeviceRefusesWrites(t *testing.T) {
	c, rs := openControl(t), vmReactors(t)
	h := &recorder{Mem: vmDisk(t, 1<<20)}
	d := createDevice(t, c, rs, Params{ID: AutoID, SizeBytes: h.Size(), ReadOnly: true, Discard: true}, h)
	f, err := os.OpenFile(d.Path(), os.O_RDWR, 0)
	if err == nil {
		_, err = f.WriteAt(make([]byte, 512), 0)
		_ = f.Close()
	}
	if err == nil || h.ops[OpWrite].Load() != 0 {
		t.Errorf("write to a read-only device: %v", err)
	}
	if b, err := os.ReadFile(d.Path()); err != nil || int64(len(b)) != h.Size() {
		t.Errorf("read %d bytes, %v", len(b), err)
	}
}

func TestFio(t *testing.T) {
	c, rs := openControl(t), vmReactors(t)
	m := vmDisk(t, 64<<20)
	d := createDevice(t, c, rs, Params{ID: AutoID, SizeBytes: m.Size(), Queues: 2, Discard: true}, m)
	out, err := exec.Command("fio", "--name=verify", "--filename="+d.Path(), "--direct=1", "--ioengine=io_uring",
		"--rw=randrw", "--bsrange=512-128k", "--iodepth=32", "--size=100%", "--io_size=64m",
		"--verify=crc32c", "--verify_backlog=64", "--verify_fatal=1", "--output-format=terse").CombinedOutput()
	if err != nil {
		t.Errorf("fio: %v\n%s", err, out)
	}
}
