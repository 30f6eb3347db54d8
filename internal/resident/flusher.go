package resident

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// FlusherFlags are the bits of a thread that PR_SET_IO_FLUSHER sets: PF_MEMALLOC_NOIO, memory is found without writing to
// disks, and PF_LOCAL_THROTTLE, it writes on where others have to wait for disks (include/linux/sched.h, Linux 6.12).
const FlusherFlags = 0x0008_0000 | 0x0010_0000

// BecomeFlusher makes every thread of this process one that disks depend on. The kernel knows that of single threads only, and
// threads and programs inherit it: the program is executed again, once, by a thread that was made one, and BecomeFlusher does
// not return then. It returns nil in the program that was executed, and an error where the kernel refuses (EPERM without
// CAP_SYS_RESOURCE), which leaves everything as it was. It is to be called before anything else is done.
func BecomeFlusher() error {
	flags, err := taskFlags("/proc/self/stat") // of the first thread
	if err != nil {
		return fmt.Errorf("become I/O flusher: %w", err)
	}
	if flags&FlusherFlags == FlusherFlags {
		return nil
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become I/O flusher (PR_SET_IO_FLUSHER): %w", err)
	}
	err = unix.Exec(Self, os.Args, os.Environ())
	return errors.Join(fmt.Errorf("become I/O flusher: execute the program again: %w", err), unix.Prctl(unix.PR_SET_IO_FLUSHER, 0, 0, 0, 0))
}

// ThreadFlags returns the kernel's flags (PF_) of each thread of process pid, by its number.
func ThreadFlags(pid int) (map[int]uint64, error) {
	dir := fmt.Sprintf("/proc/%d/task", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read flags of threads: %w", err)
	}
	all := make(map[int]uint64)
	for _, e := range entries {
		tid, err := strconv.Atoi(e.Name())
		if err != nil {
			return nil, fmt.Errorf("read flags of threads: %w", err)
		}
		flags, err := taskFlags(dir + "/" + e.Name() + "/stat")
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			return nil, fmt.Errorf("read flags of threads: %w", err)
		}
		all[tid] = flags
	}
	return all, nil
}

// taskFlags reads the ninth field of a file as proc_pid_stat(5) describes it. The second one, the name, may have anything in it.
func taskFlags(path string) (uint64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	const afterName = 9 - 3
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(fields) <= afterName {
		return 0, fmt.Errorf("read %s: %d fields only", path, len(fields))
	}
	return strconv.ParseUint(string(fields[afterName]), 10, 64)
}

// SetName makes name what ps and top call this process, which they call by a number where it was executed through a descriptor.
// The kernel keeps 15 bytes.
func SetName(name string) error {
	if err := os.WriteFile("/proc/self/comm", []byte(name), 0); err != nil {
		return fmt.Errorf("name process: %w", err)
	}
	return nil
}
