package resident

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrMemoryLimit is returned by [LockMemory] where the limit on locked memory would end the process some day.
var ErrMemoryLimit = errors.New("the limit on locked memory is not infinite (LimitMEMLOCK=infinity in a unit)")

// LockMemory keeps what this process uses in memory from now on: the whole program at once, and every other page from its
// first use. A Go program has address space that it never uses, many times its memory, so it must not all be
// filled, which mlockall(2) does without MCL_ONFAULT. What the runtime gives back to the system is given back by other
// means, as a locked page cannot be discarded (runtime/mem_linux.go, Go 1.26).
//
// It refuses with [ErrMemoryLimit], and changes nothing, where RLIMIT_MEMLOCK is finite and cannot be raised: mappings of the
// runtime would fail when it is reached.
func LockMemory() error {
	limit := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	_ = unix.Setrlimit(unix.RLIMIT_MEMLOCK, &limit) // what counts is what it is then
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return fmt.Errorf("lock memory: %w", err)
	}
	if limit.Cur != unix.RLIM_INFINITY {
		return fmt.Errorf("lock memory: %w", ErrMemoryLimit)
	}
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("lock memory: %w", err)
	}
	program, err := programMappings()
	if err != nil {
		return fmt.Errorf("lock program: %w", err)
	}
	for _, m := range program {
		if _, _, errno := unix.Syscall(unix.SYS_MLOCK, m.start, m.end-m.start, 0); errno != 0 {
			return fmt.Errorf("lock program: %w", errno)
		}
	}
	return nil
}

type mapping struct{ start, end uintptr }

// programMappings returns where the program of this process is mapped (proc_pid_maps(5)).
func programMappings() ([]mapping, error) {
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	program, err := os.Readlink(Self)
	if err != nil {
		return nil, err
	}
	var all []mapping
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if !strings.HasSuffix(lines.Text(), " "+program) {
			continue
		}
		var m mapping
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x ", &m.start, &m.end); err != nil {
			return nil, fmt.Errorf("read %q: %w", lines.Text(), err)
		}
		all = append(all, m)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s is mapped nowhere", program)
	}
	return all, nil
}
