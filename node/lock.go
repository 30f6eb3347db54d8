package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrRunning is wrapped by [New] when another daemon has the run directory.
var ErrRunning = errors.New("another daemon is running")

const lockName = "lock"

// runLock is the claim on a run directory. It is an open-file-description lock
// (fcntl(2)): the kernel drops it when the process ends, however it ends, and others can
// ask about it without taking it.
type runLock struct{ file *os.File }

// takeRunLock claims dir, waiting up to patience for an ending daemon to let go.
func takeRunLock(dir string, patience time.Duration) (*runLock, error) {
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, fmt.Errorf("lock run directory: %w", err)
	}
	deadline := time.Now().Add(patience)
	for {
		lk := unix.Flock_t{Type: unix.F_WRLCK, Whence: unix.SEEK_SET}
		err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk)
		if err == nil {
			return writePID(f)
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) {
			_ = f.Close()
			return nil, fmt.Errorf("lock run directory: %w", err)
		}
		if time.Now().After(deadline) {
			pid := readPID(f)
			_ = f.Close()
			return nil, fail(CodeInUse, "use the running daemon, stop it first, or give this one another --run-dir",
				"start daemon in %s: %w%s", dir, ErrRunning, pid)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func writePID(f *os.File) (*runLock, error) {
	pid := strconv.Itoa(os.Getpid()) + "\n"
	err := f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(pid), 0)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock run directory: %w", err)
	}
	return &runLock{f}, nil
}

// readPID returns " (pid N)" of the holder, or "".
func readPID(f *os.File) string {
	buf := make([]byte, 32)
	n, _ := f.ReadAt(buf, 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(buf[:n])))
	if err != nil {
		return ""
	}
	return fmt.Sprintf(" (pid %d)", pid)
}

func (l *runLock) release() error { return l.file.Close() }

// daemonHolds tells whether some daemon has claimed the run directory dir: it serves its socket
// or is about to.
func daemonHolds(dir string) bool {
	f, err := os.Open(filepath.Join(dir, lockName))
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	lk := unix.Flock_t{Type: unix.F_WRLCK, Whence: unix.SEEK_SET}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lk); err != nil {
		return false
	}
	return lk.Type != unix.F_UNLCK
}
