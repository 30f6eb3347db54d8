package ublk

import (
	"errors"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// onOwnThread runs f on a thread that ends when f has returned. It is to be the whole of a goroutine.
func onOwnThread(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != os.Getpid() {
		f() // still locked, the thread ends with its goroutine
		return
	}
	// The main thread would stay. While this goroutine keeps it, the next one gets another.
	taken := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		close(taken)
		f()
	}()
	<-taken
	runtime.UnlockOSThread()
}

const threadPatience = 10 * time.Second

// awaitThreadEnd waits until the kernel has no thread tid of this process any more.
func awaitThreadEnd(tid int) error {
	for deadline := time.Now().Add(threadPatience); ; {
		err := unix.Tgkill(os.Getpid(), tid, 0)
		if errors.Is(err, unix.ESRCH) {
			return nil
		}
		if err == nil && time.Now().After(deadline) {
			err = os.ErrDeadlineExceeded
		}
		if err != nil {
			return err
		}
		time.Sleep(100 * time.Microsecond)
	}
}
