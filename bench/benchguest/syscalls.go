package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// enterTracepoint is hit at each system call.
const enterTracepoint = "/sys/kernel/tracing/events/raw_syscalls/sys_enter/id"

// countSyscalls begins to count the system calls of all threads of a process, and of those that these start unless it is this process, which starts others. The function that
// it returns ends it.
func countSyscalls(pid int) (func() (uint64, error), error) {
	text, err := os.ReadFile(enterTracepoint)
	if err != nil {
		return nil, fmt.Errorf("find tracepoint of system calls: %w", err)
	}
	id, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("find tracepoint of system calls: %w", err)
	}
	attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_TRACEPOINT, Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{})), Config: id}
	if pid != os.Getpid() {
		attr.Bits |= unix.PerfBitInherit
	}
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil {
		return nil, err
	}
	var counters []int
	closeAll := func() {
		for _, fd := range counters {
			_ = unix.Close(fd)
		}
	}
	for _, thread := range threads {
		tid, err := strconv.Atoi(filepath.Base(thread))
		if err != nil {
			continue
		}
		fd, err := unix.PerfEventOpen(&attr, tid, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
		if errors.Is(err, unix.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			closeAll()
			return nil, fmt.Errorf("count system calls of thread %d: %w", tid, err)
		}
		counters = append(counters, fd)
	}
	if len(counters) == 0 {
		return nil, fmt.Errorf("count system calls of process %d: it has no thread", pid)
	}
	return func() (total uint64, err error) {
		defer closeAll()
		var count [8]byte
		for _, fd := range counters {
			if _, err := unix.Read(fd, count[:]); err != nil {
				return 0, fmt.Errorf("read count of system calls: %w", err)
			}
			total += binary.NativeEndian.Uint64(count[:])
		}
		return total, nil
	}, nil
}
