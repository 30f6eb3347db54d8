package uring

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func addrOf(p []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(p))) }

func tempFile(t testing.TB, content []byte) *os.File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "data")
	mustOK(t, os.WriteFile(name, content, 0o600))
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	mustOK(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func wantRes(t testing.TB, c CQE, want int32) {
	t.Helper()
	if c.Res != want {
		t.Fatalf("result %d, want %d", c.Res, want)
	}
}

func TestReadWriteFile(t *testing.T) {
	eachVariant(t, func(t *testing.T, r *Ring) {
		f := tempFile(t, nil)
		fd := int32(f.Fd())
		buf := offHeap(t, 8192)
		for i := range buf {
			buf[i] = byte(i * 7)
		}
		want := bytes.Clone(buf)
		r.SQE().PrepWrite(fd, addrOf(buf), 8192, 4096, unix.RWF_DSYNC)
		wantRes(t, one(t, r), 8192)
		r.SQE().PrepFsync(fd, true)
		wantRes(t, one(t, r), 0)
		clear(buf)
		r.SQE().PrepRead(fd, addrOf(buf), 8192, 4096)
		wantRes(t, one(t, r), 8192)
		if !bytes.Equal(buf, want) {
			t.Fatal("read differs from what was written")
		}
		r.SQE().PrepRead(fd, addrOf(buf), 8192, 12288)
		wantRes(t, one(t, r), 0)
		r.SQE().PrepRead(-1, addrOf(buf), 8192, 0)
		wantRes(t, one(t, r), -int32(unix.EBADF))
	})
}

func TestFallocate(t *testing.T) {
	r := newRing(t, Config{SingleIssuer: true})
	f := tempFile(t, bytes.Repeat([]byte{1}, 12288))
	r.SQE().PrepFallocate(int32(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 4096, 4096)
	c := one(t, r)
	got, err := os.ReadFile(f.Name())
	mustOK(t, err)
	want := append(append(bytes.Repeat([]byte{1}, 4096), make([]byte, 4096)...), bytes.Repeat([]byte{1}, 4096)...)
	if c.Res != 0 || !bytes.Equal(got, want) {
		t.Errorf("result %d, hole in place: %v", c.Res, bytes.Equal(got, want))
	}
}

func TestFixedFiles(t *testing.T) {
	eachVariant(t, func(t *testing.T, r *Ring) {
		mustOK(t, r.RegisterFilesSparse(4))
		a, b := tempFile(t, []byte("first")), tempFile(t, []byte("other"))
		buf := offHeap(t, 16)
		read := func(slot int32) CQE {
			clear(buf)
			s := r.SQE()
			s.PrepRead(slot, addrOf(buf), 5, 0)
			s.SetFixedFile()
			return one(t, r)
		}
		wantRes(t, read(3), -int32(unix.EBADF))
		mustOK(t, r.UpdateFile(3, int(a.Fd())))
		mustOK(t, a.Close())
		wantRes(t, read(3), 5)
		if string(buf[:5]) != "first" {
			t.Errorf("slot 3 reads %q", buf[:5])
		}
		mustOK(t, r.UpdateFile(3, int(b.Fd())))
		wantRes(t, read(3), 5)
		if string(buf[:5]) != "other" {
			t.Errorf("replaced slot 3 reads %q", buf[:5])
		}
		mustOK(t, r.UpdateFile(3, -1))
		wantRes(t, read(3), -int32(unix.EBADF))
		if err := r.UpdateFile(4, 0); !errors.Is(err, unix.EINVAL) {
			t.Errorf("slot beyond the table: %v", err)
		}
		if err := r.RegisterFilesSparse(4); !errors.Is(err, unix.EBUSY) {
			t.Errorf("second table: %v", err)
		}
		mustOK(t, r.UnregisterFiles())
	})
}

func TestRegisteredBuffers(t *testing.T) {
	eachVariant(t, func(t *testing.T, r *Ring) {
		mustOK(t, r.RegisterBuffersSparse(4))
		f := tempFile(t, make([]byte, 4096))
		fd := int32(f.Fd())
		buf := offHeap(t, 8192)
		copy(buf[4096:], "registered")
		r.SQE().PrepWriteFixed(fd, addrOf(buf)+4096, 10, 100, 0, 2)
		wantRes(t, one(t, r), -int32(unix.EFAULT))
		mustOK(t, r.UpdateBuffer(2, addrOf(buf), 8192))
		r.SQE().PrepWriteFixed(fd, addrOf(buf)+4096, 10, 100, 0, 2)
		wantRes(t, one(t, r), 10)
		r.SQE().PrepReadFixed(fd, addrOf(buf)+50, 10, 100, 2)
		wantRes(t, one(t, r), 10)
		if string(buf[50:60]) != "registered" {
			t.Errorf("read %q", buf[50:60])
		}
		r.SQE().PrepReadFixed(fd, addrOf(buf)+8190, 10, 100, 2)
		wantRes(t, one(t, r), -int32(unix.EFAULT))
		mustOK(t, r.UpdateBuffer(2, 0, 0))
		r.SQE().PrepReadFixed(fd, addrOf(buf), 10, 100, 2)
		wantRes(t, one(t, r), -int32(unix.EFAULT))
		mustOK(t, r.UnregisterBuffers())
	})
}

func TestPipeKeepsOrderAndContent(t *testing.T) {
	eachVariant(t, func(t *testing.T, r *Ring) {
		var p [2]int
		mustOK(t, unix.Pipe2(p[:], unix.O_CLOEXEC))
		defer unix.Close(p[0])
		defer unix.Close(p[1])
		buf := offHeap(t, 64)
		s := r.SQE()
		s.PrepRead(int32(p[0]), addrOf(buf), 32, 0)
		s.SetUserData(1)
		copy(buf[32:], "through the pipe")
		s = r.SQE()
		s.PrepWrite(int32(p[1]), addrOf(buf)+32, 16, 0, 0)
		s.SetUserData(2)
		submitAndWait(t, r, 2)
		sum := r.CQE(0).Res + r.CQE(1).Res
		r.Advance(2)
		if sum != 32 || string(buf[:16]) != "through the pipe" {
			t.Errorf("moved %d bytes, read %q", sum, buf[:16])
		}
	})
}

func TestPollAndCancel(t *testing.T) {
	eachVariant(t, func(t *testing.T, r *Ring) {
		efd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		mustOK(t, err)
		defer unix.Close(efd)
		arm := func() {
			s := r.SQE()
			s.PrepPollAdd(int32(efd), unix.POLLIN)
			s.SetUserData(77)
		}
		arm()
		_, err = r.Submit()
		mustOK(t, err)
		if r.Ready() != 0 {
			t.Fatal("poll of a silent eventfd ended")
		}
		_, err = unix.Write(efd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		mustOK(t, err)
		wantRes(t, one(t, r), unix.POLLIN)
		var drain [8]byte
		_, err = unix.Read(efd, drain[:])
		mustOK(t, err)

		arm()
		s := r.SQE()
		s.PrepCancel(77, 0)
		s.SetUserData(78)
		submitAndWait(t, r, 2)
		for i := range uint32(2) {
			want := map[uint64]int32{77: -int32(unix.ECANCELED), 78: 0}[r.CQE(i).UserData]
			wantRes(t, *r.CQE(i), want)
		}
		r.Advance(2)
	})
}

func TestProbe(t *testing.T) {
	r := newRing(t, Config{SingleIssuer: true})
	ops, err := r.Probe()
	mustOK(t, err)
	for _, op := range []uint8{OpNop, OpFsync, OpReadFixed, OpWriteFixed, OpPollAdd, OpAsyncCancel, OpFallocate, OpRead, OpWrite, OpURingCmd} {
		if !ops[op] {
			t.Errorf("opcode %d is not supported", op)
		}
	}
	if ops[probeOps-1] {
		t.Error("opcode 255 is supported")
	}
}

func TestLimitWorkers(t *testing.T) {
	r := newRing(t, Config{SingleIssuer: true})
	mustOK(t, r.RegisterIOWQMaxWorkers(2, 2))
	f := tempFile(t, []byte("worker"))
	buf := offHeap(t, 8)
	s := r.SQE()
	s.PrepRead(int32(f.Fd()), addrOf(buf), 6, 0)
	s.Flags |= SQEAsync
	wantRes(t, one(t, r), 6)
}
