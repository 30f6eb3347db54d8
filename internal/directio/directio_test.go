package directio

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestBuffersAreAligned(t *testing.T) {
	for _, n := range []int{0, 1, Align - 1, Align, 1 << 20} {
		b := Buffer(n)
		if len(b) != n || cap(b) != n || uintptr(unsafe.Pointer(unsafe.SliceData(b)))%Align != 0 || len(bytes.Trim(b, "\x00")) > 0 {
			t.Errorf("%d bytes: %d of %d at %p", n, len(b), cap(b), b)
		}
	}
}

func TestKind(t *testing.T) {
	dir := t.TempDir()
	file, pipe := filepath.Join(dir, "file"), filepath.Join(dir, "pipe")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), unix.Mkfifo(pipe, 0o600)); err != nil {
		t.Fatal(err)
	}
	for path, ok := range map[string]bool{file: true, pipe: false, dir: false, "/dev/null": false} {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if block, err := Kind(st); block || (err == nil) != ok {
			t.Errorf("%s: %v, %v", path, block, err)
		}
	}
	st, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Kind(st); !errors.Is(err, syscall.EISDIR) {
		t.Error(err)
	}
	if block, err := Kind(device{st}); !block || err != nil {
		t.Errorf("a block device: %v, %v", block, err)
	}
}

// device is what a block device looks like.
type device struct{ os.FileInfo }

func (device) Mode() os.FileMode { return os.ModeDevice | 0o660 }

// What is written to a file that is made is there for others, whether or not the file system has O_DIRECT, as a tmpfs before Linux 6.6 has not.
func TestOpen(t *testing.T) {
	for _, dir := range dirs(t) {
		path := filepath.Join(dir, "file")
		f, err := Open(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		p := Buffer(2 * Align)
		copy(p[Align:], "content")
		if _, err := f.WriteAt(p, Align); err != nil {
			t.Error(err)
		}
		if err := Sync(f); err != nil {
			t.Error(err)
		}
		if size, err := Size(f); size != 3*Align || err != nil {
			t.Errorf("%d bytes, %v", size, err)
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got[Align:], p) {
			t.Errorf("%v, or other content", err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if _, err := Size(f); err == nil || Sync(f) == nil {
			t.Error("a file that is closed")
		}
		if _, err := Open(path+".not", os.O_RDWR, 0); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
}

// dirs are folders on file systems of this machine: that of temporary files, and a tmpfs where there is one.
func dirs(t *testing.T) []string {
	all := []string{t.TempDir()}
	if dir, err := os.MkdirTemp("/dev/shm", "directio"); err == nil {
		t.Cleanup(func() { os.RemoveAll(dir) })
		all = append(all, dir)
	}
	return all
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	open := func() *os.File {
		t.Helper()
		f, err := Open(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	one, two := open(), open()
	defer two.Close()
	if err := Lock(one, unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	for _, how := range []int{unix.LOCK_EX, unix.LOCK_SH} {
		began := time.Now()
		if err := Lock(two, how); !errors.Is(err, ErrInUse) || time.Since(began) < time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	}
	done := make(chan error)
	go func() {
		err := ErrInUse
		for errors.Is(err, ErrInUse) { // a busy machine may take longer than Lock waits
			err = Lock(two, unix.LOCK_EX)
		}
		done <- err
	}()
	if err := one.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("the lock was given back, and could not be taken: %v", err)
	}
	if err := two.Close(); err != nil || Lock(two, unix.LOCK_SH) == nil {
		t.Errorf("%v, or a closed file can be locked", err)
	}
}
