package ublk

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// However goroutines are spread over threads, none runs its function on the main thread, and
// all threads end.
func TestOwnThreadsEnd(t *testing.T) {
	const goroutines = 64
	tids := make(chan int, goroutines)
	var all, here sync.WaitGroup
	here.Add(goroutines)
	for range goroutines {
		all.Go(func() {
			runtime.LockOSThread() // so that each has a thread, the main one among them
			here.Done()
			here.Wait()
			onOwnThread(func() { tids <- unix.Gettid() })
		})
	}
	all.Wait()
	for range goroutines {
		tid := <-tids
		if tid == os.Getpid() {
			t.Error("a function runs on the main thread")
		}
		if err := awaitThreadEnd(tid); err != nil {
			t.Errorf("thread %d: %v", tid, err)
		}
	}
}

func TestAwaitThreadEndOfNoThread(t *testing.T) {
	if err := awaitThreadEnd(-1); !errors.Is(err, unix.EINVAL) {
		t.Errorf("thread -1: %v", err)
	}
}
