package resident

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A program in memory is a copy that runs, whatever becomes of the file, and that nobody changes.
func TestProgram(t *testing.T) {
	path := filepath.Join(t.TempDir(), "program")
	text, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := Program(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command(Path(f)).Run(); err != nil {
		t.Errorf("run: %v", err)
	}
	if _, err := f.WriteAt([]byte("x"), 0); !errors.Is(err, syscall.EPERM) {
		t.Errorf("written to: %v", err)
	}
	if err := f.Truncate(0); !errors.Is(err, syscall.EPERM) {
		t.Errorf("cut off: %v", err)
	}
	got := make([]byte, len(text))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, text) {
		t.Errorf("another program: %v", err)
	}
	if _, err := Program(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("from nothing: %v", err)
	}
	if _, err := Program(filepath.Dir(path)); err == nil {
		t.Error("from a directory")
	}
}

// The flags of threads are found whatever the process is called.
func TestThreadFlags(t *testing.T) {
	for _, name := range []string{"a) R 1 (b", "plain"} {
		if err := SetName(name); err != nil {
			t.Fatal(err)
		}
		flags, err := ThreadFlags(os.Getpid())
		if err != nil || len(flags) == 0 {
			t.Fatalf("%s: %v, %v", name, flags, err)
		}
		const exiting = 0x4 // PF_EXITING (include/linux/sched.h)
		for tid, f := range flags {
			if f == 0 || f&exiting != 0 {
				t.Errorf("%s: thread %d has the flags %#x", name, tid, f)
			}
		}
	}
	if _, err := ThreadFlags(1 << 30); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no process: %v", err)
	}
}

// Memory is not locked where the limit would end the process some day.
func TestLockMemoryNeedsNoLimit(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		t.Fatal(err)
	}
	err := LockMemory()
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &now); err != nil {
		t.Fatal(err)
	}
	switch {
	case now.Cur == unix.RLIM_INFINITY && err != nil:
		t.Errorf("no limit: %v", err)
	case now.Cur != unix.RLIM_INFINITY && (!errors.Is(err, ErrMemoryLimit) || now != limit):
		t.Errorf("limit %v, now %v: %v", limit, now, err)
	}
	if err == nil {
		if err := unix.Munlockall(); err != nil {
			t.Error(err)
		}
	}
	program, err := programMappings()
	if err != nil || len(program) < 2 {
		t.Errorf("the program is mapped at %v, %v", program, err)
	}
}
