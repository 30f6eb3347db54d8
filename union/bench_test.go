package union

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"coppice/internal/directio"
	"coppice/ublk"
	"coppice/ublk/ublktest"
)

const (
	benchDepth  = 32
	benchDevice = 1 << 30
	benchRoot   = 64 << 20
)

// benchDir is on tmpfs where there is one, so that the cost is the software's.
func benchDir(b *testing.B) string {
	var st unix.Statfs_t
	if unix.Statfs("/dev/shm", &st) != nil || st.Type != unix.TMPFS_MAGIC {
		return b.TempDir()
	}
	dir, err := os.MkdirTemp("/dev/shm", "coppice-bench-")
	if err != nil {
		return b.TempDir()
	}
	b.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			b.Error(err)
		}
	})
	return dir
}

// benchStore is the size of the store's file.
const benchStore = 3 << 30

// benchRig serves a union device by a real reactor and ring, over the fake driver.
func benchRig(b *testing.B, verify bool) *ublktest.Fake { return benchRigIn(b, benchDir(b), verify) }

// writtenRig is benchRig on a store all of whose file is in memory already, so that no write pays for new pages of tmpfs.
func writtenRig(b *testing.B) *ublktest.Fake {
	dir := benchDir(b)
	writeFile(b, filepath.Join(dir, "leaf"), benchStore)
	return benchRigIn(b, dir, true)
}

// writeFile makes a file of zeros that are there, and no hole.
func writeFile(b *testing.B, path string, size int64) {
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	zeros := make([]byte, 1<<20)
	for off := int64(0); off < size; off += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros, off); err != nil {
			b.Fatal(err)
		}
	}
}

func benchRigIn(b *testing.B, dir string, verify bool) *ublktest.Fake {
	rootPath := filepath.Join(dir, "root")
	if err := os.WriteFile(rootPath, make([]byte, benchRoot), 0o600); err != nil {
		b.Fatal(err)
	}
	root, err := OpenRaw(rootPath)
	if err != nil {
		b.Fatal(err)
	}
	return benchOver(b, dir, root, verify)
}

// benchOver serves a device over a root, which it closes.
func benchOver(b *testing.B, dir string, root Base, verify bool) *ublktest.Fake {
	storePath := filepath.Join(dir, "leaf")
	if _, err := Format(storePath, FormatOptions{SizeBytes: benchStore, Force: true}); err != nil {
		b.Fatal(err)
	}
	store, err := OpenStore(storePath, StoreOptions{RunDir: dir})
	if err != nil {
		b.Fatal(err)
	}
	layer, err := store.OpenLayer("bench", LayerOptions{Create: true, Pin: root.Pin(), SizeBytes: benchDevice})
	if err != nil {
		b.Fatal(err)
	}
	dev, err := NewDevice(layer, root, DeviceOptions{NoVerify: !verify})
	if err != nil {
		b.Fatal(err)
	}
	return benchServe(b, dev, func() error {
		layer.Release()
		return errors.Join(store.Close(), root.Close())
	})
}

// plain is what a device costs that does no more than io_uring: requests go to a file as they are.
type plain struct{ f *os.File }

func (p plain) Attach(q *ublk.Queue) error {
	file, err := q.RegisterFile(p.f)
	q.SetLocal(file)
	return err
}

func (plain) Detach(*ublk.Queue) {}

func (plain) Serve(r *ublk.Request) {
	file := r.Queue().Local().(ublk.File)
	if r.Op == ublk.OpRead {
		r.Read(file, r.Buf, r.Off, 0)
		return
	}
	r.Write(file, r.Buf, r.Off, false, 0)
}

func (plain) Resume(r *ublk.Request, _ uint16, res int32) {
	if res < 0 {
		r.Complete(syscall.Errno(-res))
		return
	}
	r.Complete(0)
}

// plainRig serves a file like the one that a store is in, opened as a store is; written says whether it is all there already.
func plainRig(b *testing.B, written bool) *ublktest.Fake {
	path := filepath.Join(benchDir(b), "plain")
	size := int64(0)
	if written {
		size = benchDevice
	}
	writeFile(b, path, size)
	f, err := directio.Open(path, os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	if err := f.Truncate(benchDevice); err != nil {
		b.Fatal(err)
	}
	return benchServe(b, plain{f}, f.Close)
}

// benchServe serves a Handler over the fake driver; release is called when that has ended.
func benchServe(b *testing.B, h ublk.Handler, release func() error) *ublktest.Fake {
	rs, err := ublk.NewReactors(ublk.ReactorConfig{})
	if err != nil {
		b.Fatal(err)
	}
	fake, err := ublktest.NewFake(ublktest.FakeConfig{SizeBytes: benchDevice, Depth: benchDepth, Unchecked: true, KeepBuffers: true})
	if err != nil {
		b.Fatal(err)
	}
	at, err := fake.Start(rs, h)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		fake.Stop()
		<-at.Ended()
		for _, err := range []error{at.Err(), fake.Err(), fake.Close(), rs.Close(), release()} {
			if err != nil {
				b.Error(err)
			}
		}
	})
	return fake
}

// run keeps depth requests in flight until b.N are done.
func run(b *testing.B, fake *ublktest.Fake, next func(i int) ublk.Descriptor, data []byte) {
	done := make(chan error, 1)
	started, ended := 0, 0
	var submit func()
	finish := func(errno syscall.Errno, _ []byte) {
		if errno != 0 {
			b.Errorf("request: %v", errno)
		}
		if ended++; ended == b.N {
			done <- nil
			return
		}
		submit()
	}
	submit = func() {
		if started < b.N {
			d := next(started)
			started++
			fake.Submit(d, data, finish)
		}
	}
	b.ReportAllocs()
	var before, after unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &before)
	b.ResetTimer()
	gate := make(chan struct{})
	fake.Submit(ublk.Descriptor{Op: ublk.OpRead, Len: 4096}, nil, func(syscall.Errno, []byte) {
		for range min(benchDepth, b.N) {
			submit()
		}
		close(gate)
	})
	<-gate
	<-done
	b.StopTimer()
	_ = unix.Getrusage(unix.RUSAGE_SELF, &after)
	cpu := (after.Utime.Nano() + after.Stime.Nano()) - (before.Utime.Nano() + before.Stime.Nano())
	b.ReportMetric(float64(cpu)/float64(b.N), "cpu-ns/op")
}

// spread visits the blocks of the device in an order that is not sequential.
func spread(i int) int64 {
	const blocks = benchDevice >> blockShift
	return int64(uint64(i) * 0x9e3779b1 % blocks << blockShift)
}

func prefill(b *testing.B, fake *ublktest.Fake, blocks int) {
	data := make([]byte, 256<<10)
	for off := int64(0); off < int64(blocks)<<blockShift; off += int64(len(data)) {
		if _, err := fake.WriteAt(data, off); err != nil {
			b.Fatal(err)
		}
	}
}

// TestNoAllocations demands that requests make no garbage: what is allocated at all is the growth of map and lists, once per
// many requests.
func TestNoAllocations(t *testing.T) {
	const blocks = 8 << 10
	for name, op := range map[string]ublk.Op{"leaf read": ublk.OpRead, "overwrite": ublk.OpWrite} {
		r := testing.Benchmark(func(b *testing.B) {
			fake := benchRig(b, true)
			prefill(b, fake, blocks)
			run(b, fake, func(i int) ublk.Descriptor {
				return ublk.Descriptor{Op: op, Off: spread(i) % (blocks << blockShift), Len: 4096}
			}, make([]byte, 4096))
		})
		if r.N < 1000 || r.AllocsPerOp() != 0 {
			t.Errorf("%s: %d requests, %d allocations per request", name, r.N, r.AllocsPerOp())
		}
	}
}

// A read of what a root that is no file has in memory, or of a part of a block to be written, makes no garbage either.
func TestNoAllocationsForRootInMemory(t *testing.T) {
	r := testing.Benchmark(BenchmarkRootMemoryRead4K)
	if r.N < 1000 || r.AllocsPerOp() != 0 {
		t.Errorf("%d requests, %d allocations per request", r.N, r.AllocsPerOp())
	}
}

func BenchmarkLeafRead4K(b *testing.B) {
	for _, verify := range []bool{false, true} {
		name := "verify=off"
		if verify {
			name = "verify=on"
		}
		b.Run(name, func(b *testing.B) {
			fake := benchRig(b, verify)
			const blocks = 32 << 10
			prefill(b, fake, blocks)
			run(b, fake, func(i int) ublk.Descriptor {
				return ublk.Descriptor{Op: ublk.OpRead, Off: spread(i) % (blocks << blockShift), Len: 4096}
			}, nil)
		})
	}
}

func BenchmarkRootRead4K(b *testing.B) {
	fake := benchRig(b, true)
	run(b, fake, func(i int) ublk.Descriptor {
		return ublk.Descriptor{Op: ublk.OpRead, Off: spread(i) % benchRoot, Len: 4096}
	}, nil)
}

// BenchmarkRootMemoryRead4K measures what a root costs that is no file, without the look-up in a cache.
func BenchmarkRootMemoryRead4K(b *testing.B) {
	root := &gatedBase{content: make([]byte, benchRoot), memory: benchRoot}
	fake := benchOver(b, benchDir(b), root, true)
	run(b, fake, func(i int) ublk.Descriptor {
		return ublk.Descriptor{Op: ublk.OpRead, Off: spread(i) % benchRoot, Len: 4096}
	}, nil)
	if root.calls != 0 {
		b.Errorf("the root was asked %d times", root.calls)
	}
}

func BenchmarkFirstTouchWrite4K(b *testing.B) {
	fake := benchRig(b, true)
	run(b, fake, func(i int) ublk.Descriptor {
		return ublk.Descriptor{Op: ublk.OpWrite, Off: spread(i), Len: 4096}
	}, make([]byte, 4096))
}

func BenchmarkOverwrite4K(b *testing.B) {
	fake := writtenRig(b)
	const blocks = 32 << 10
	prefill(b, fake, blocks)
	run(b, fake, func(i int) ublk.Descriptor {
		return ublk.Descriptor{Op: ublk.OpWrite, Off: spread(i) % (blocks << blockShift), Len: 4096}
	}, make([]byte, 4096))
}

// BenchmarkPlainWrite4K is what a first-touch write and an overwrite are measured by: the same request, written to a file at the same place, which is new to tmpfs as
// the blocks of a store that was just made are, or there already.
func BenchmarkPlainWrite4K(b *testing.B) {
	for name, written := range map[string]bool{"new": false, "again": true} {
		b.Run(name, func(b *testing.B) {
			fake := plainRig(b, written)
			run(b, fake, func(i int) ublk.Descriptor {
				return ublk.Descriptor{Op: ublk.OpWrite, Off: spread(i), Len: 4096}
			}, make([]byte, 4096))
		})
	}
}

// rewrite visits the device in pieces of 128 KiB, over and over.
func rewrite(i int) ublk.Descriptor {
	const n = 128 << 10
	return ublk.Descriptor{Op: ublk.OpWrite, Off: int64(i) * n % benchDevice, Len: n}
}

// BenchmarkSequentialWrite128K writes the device over and over, as an installation or a download does to a leaf.
func BenchmarkSequentialWrite128K(b *testing.B) {
	fake := writtenRig(b)
	b.SetBytes(128 << 10)
	run(b, fake, rewrite, make([]byte, 128<<10))
}

// BenchmarkPlainSequentialWrite128K is what it is measured by.
func BenchmarkPlainSequentialWrite128K(b *testing.B) {
	fake := plainRig(b, true)
	b.SetBytes(128 << 10)
	run(b, fake, rewrite, make([]byte, 128<<10))
}
