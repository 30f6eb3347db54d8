package node

import (
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// The Go heap holds maps and bookkeeping only; I/O buffers lie outside.
const (
	memoryShare  = 8 // of the machine's memory, as a fraction
	minHeapBytes = 128 << 20
	maxHeapBytes = 2 << 30
)

// SetUpProcess prepares the process for serving block devices: enough Go processors that a reactor's
// thread finds one when it comes back from the kernel, a memory limit unless GOMEMLIMIT
// gives one, and the limits and the out-of-memory score that the system allows.
// It returns what could not be had, joined; the daemon runs without it.
func SetUpProcess() error {
	cpus := runtime.NumCPU()
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(goProcessors(cpus))
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(heapLimit(memoryBytes()))
	}
	return errors.Join(
		raiseLimit("RLIMIT_MEMLOCK", unix.RLIMIT_MEMLOCK),
		raiseLimit("RLIMIT_NOFILE", unix.RLIMIT_NOFILE),
		protectFromOOM(),
	)
}

// goProcessors is one for the reactor of each CPU, one for each chunk that is unpacked (package image), and two for the rest: the collector and what talks to servers.
func goProcessors(cpus int) int { return 2*cpus + 2 }

func heapLimit(memory int64) int64 {
	return min(max(memory/memoryShare, minHeapBytes), maxHeapBytes)
}

func memoryBytes() int64 {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0
	}
	return int64(info.Totalram) * int64(info.Unit)
}

// maxOpenFiles is what a daemon of a thousand devices needs, many times over; some kernels' hard
// limit of a thousand millions would make other programs' close loops endless.
const maxOpenFiles = 1 << 20

// raiseLimit raises a limit as far as the process may: without bound (files: to maxOpenFiles) where it has
// CAP_SYS_RESOURCE, else to the hard limit.
func raiseLimit(name string, which int) error {
	want := uint64(math.MaxUint64) // RLIM_INFINITY
	if which == unix.RLIMIT_NOFILE {
		want = maxOpenFiles
	}
	var now unix.Rlimit
	if err := unix.Getrlimit(which, &now); err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	if now.Cur >= want {
		return nil
	}
	if unix.Setrlimit(which, &unix.Rlimit{Cur: want, Max: max(want, now.Max)}) == nil {
		return nil
	}
	if err := unix.Setrlimit(which, &unix.Rlimit{Cur: now.Max, Max: now.Max}); err != nil {
		return fmt.Errorf("raise %s: %w", name, err)
	}
	return nil
}

// protectFromOOM makes the process the last to be killed for memory: the memory that its death frees
// is small, and all I/O of its devices would wait.
func protectFromOOM() error {
	const never = "-1000" // OOM_SCORE_ADJ_MIN, include/uapi/linux/oom.h
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(never), 0); err != nil {
		return fmt.Errorf("lower the out-of-memory score: %w", err)
	}
	return nil
}
