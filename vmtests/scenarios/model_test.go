//go:build vm

package scenarios

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// region is a part of a device that one goroutine works on, with what it must read.
type region struct {
	dev   *os.File
	off   int64
	block int
	want  []byte
	buf   []byte // for direct I/O: aligned, as long as the longest request
	rng   *rand.Rand
}

const (
	regionBytes = 8 << 20
	longestOp   = 256 << 10
)

// TestRawModel writes, reads, discards and zeroes at random on every kind of device, compares each byte with a model in
// memory, and does so again after the device was made anew. Regions cover plain root, the root's odd end and what is
// beyond it.
func TestRawModel(t *testing.T) {
	startDaemon(t)
	root, leaf := rawRoot(t, rawRootBytes), disk(t, "leaf")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for _, g := range geometries {
		t.Run(fmt.Sprintf("%d-%d", g.block, g.queues), func(t *testing.T) {
			format(t, leaf)
			var models [][]byte
			for round := range uint64(2) {
				dev := rawDevice(t, root, leaf, g.block, g.queues)
				models = workOn(t, dev.Path, g.block, seed+round, models)
				coppice(t, "delete", "raw")
			}
			checkStore(t, leaf)
		})
	}
}

// workOn lets one goroutine per region work on the device. models is what an earlier call returned, nil the first time.
func workOn(t *testing.T, path string, block int, seed uint64, models [][]byte) [][]byte {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	offsets := []int64{0, 104 << 20, rawRootBytes&^4095 - 4<<20, rawDeviceBytes - regionBytes}
	if models == nil {
		models = make([][]byte, len(offsets))
	}
	errs := make([]error, len(offsets))
	var wg sync.WaitGroup
	for i, off := range offsets {
		if models[i] == nil {
			models[i] = rootModel(off)
		}
		buf, err := unix.Mmap(-1, 0, regionBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = unix.Munmap(buf) }()
		r := &region{dev: f, off: off, block: block, want: models[i], buf: buf, rng: rand.New(rand.NewPCG(seed, uint64(i)))}
		wg.Go(func() { errs[i] = r.work() })
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			t.Errorf("region at %d: %v", offsets[i], err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Error(err)
	}
	return models
}

// rootModel is the raw root's content in the region at off; zeros beyond its end.
func rootModel(off int64) []byte {
	p := make([]byte, regionBytes)
	fillRoot(p, off)
	if in := rawRootBytes - off; in < regionBytes {
		clear(p[max(in, 0):])
	}
	return p
}

func (r *region) work() error {
	if err := r.compare(0, regionBytes); err != nil {
		return fmt.Errorf("at first: %w", err)
	}
	for i := range modelSteps {
		if err := r.step(); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	return r.compare(0, regionBytes)
}

// step does one random operation and carries it over to the model.
func (r *region) step() error {
	blocks := 1 + r.rng.IntN(16)
	if r.rng.IntN(4) == 0 {
		blocks = 1 + r.rng.IntN(longestOp/r.block)
	}
	n := blocks * r.block
	at := r.rng.IntN((regionBytes-n)/r.block+1) * r.block
	switch op := r.rng.IntN(10); {
	case op < 5:
		return r.write(at, n)
	case op < 8:
		return r.compare(at, n)
	case op < 9:
		return r.zero(unix.BLKDISCARD, at, n)
	default:
		return r.zero(unix.BLKZEROOUT, at, n)
	}
}

func (r *region) write(at, n int) error {
	p := r.buf[:n]
	for i := 0; i < n; i += 8 {
		*(*uint64)(unsafe.Pointer(&p[i])) = r.rng.Uint64()
	}
	if _, err := r.dev.WriteAt(p, r.off+int64(at)); err != nil {
		return err
	}
	copy(r.want[at:], p)
	return nil
}

// zero discards or zeroes a range. A union device promises zeros after either.
func (r *region) zero(request uintptr, at, n int) error {
	span := [2]uint64{uint64(r.off) + uint64(at), uint64(n)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, r.dev.Fd(), request, uintptr(unsafe.Pointer(&span)))
	if errno != 0 {
		return fmt.Errorf("zero %d bytes at %d (request %#x): %w", n, at, request, errno)
	}
	clear(r.want[at : at+n])
	return nil
}

func (r *region) compare(at, n int) error {
	p := r.buf[:n]
	if _, err := r.dev.ReadAt(p, r.off+int64(at)); err != nil {
		return err
	}
	if bytes.Equal(p, r.want[at:at+n]) {
		return nil
	}
	for i := range p {
		if p[i] != r.want[at+i] {
			return fmt.Errorf("wrong byte at %d of the device (%d of the region): %#x, want %#x", r.off+int64(at+i), at+i, p[i], r.want[at+i])
		}
	}
	return nil
}
