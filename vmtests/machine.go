package vmtests

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// machine is held while any VM of this process runs: pinned virtual CPUs of two processes' VMs would share cores.
var machine struct {
	sync.Mutex
	taken  []bool // places of VMs that run
	unlock func()
}

// acquireMachine waits until no other process runs VMs, and returns the first place, from 0 on, that no VM of this one has. The returned function may be called once.
func acquireMachine(path string) (release func(), place int, err error) {
	machine.Lock()
	defer machine.Unlock()
	if !slices.Contains(machine.taken, true) {
		if machine.unlock, err = lockFile(path); err != nil {
			return nil, 0, err
		}
	}
	if place = slices.Index(machine.taken, false); place < 0 {
		place, machine.taken = len(machine.taken), append(machine.taken, false)
	}
	machine.taken[place] = true
	return func() {
		machine.Lock()
		defer machine.Unlock()
		machine.taken[place] = false
		if !slices.Contains(machine.taken, true) {
			machine.unlock()
		}
	}, place, nil
}

// startFromLastingThread starts a process that the kernel is to kill together with its parent. "Parent" means the thread
// that forked (prctl(2), PR_SET_PDEATHSIG), so that thread must not end before the process does.
func startFromLastingThread(cmd *exec.Cmd) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			waitGone(cmd.Process.Pid)
		}
	}()
	return <-started
}

// waitGone blocks its thread until the process has ended, without reaping it.
func waitGone(pid int) {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			return
		}
	}
}

// pinCPUs binds each virtual CPU's thread to a host core of its own, the first to the given one. Left alone, both may stay on one core for
// minutes.
func pinCPUs(pid, cpus, first int) error {
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return fmt.Errorf("read affinity: %w", err)
	}
	var cores []int
	for i := range len(allowed) * 64 {
		if allowed.IsSet(i) {
			cores = append(cores, i)
		}
	}
	threads, err := cpuThreads(pid, cpus)
	if err != nil {
		return err
	}
	for i, tid := range threads {
		var one unix.CPUSet
		one.Set(cores[(first+i)%len(cores)])
		if err := unix.SchedSetaffinity(tid, &one); err != nil {
			return fmt.Errorf("pin virtual CPU %d: %w", i, err)
		}
	}
	return nil
}

// cpuThreads waits for QEMU's threads "CPU n/TCG" or "CPU n/KVM" and returns their ids in the order of n. One thread that is "ALL CPUs/TCG" is that of the only one.
func cpuThreads(pid, cpus int) ([]int, error) {
	found := make(map[int]int)
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/comm", pid))
		if len(files) == 0 {
			return nil, fmt.Errorf("find threads of QEMU: it has ended")
		}
		for _, file := range files {
			name, err := os.ReadFile(file)
			var n int
			_, scanErr := fmt.Sscanf(string(name), "CPU %d/", &n)
			if err != nil || scanErr != nil && !strings.HasPrefix(string(name), "ALL CPUs/") {
				continue
			}
			if tid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil {
				found[n] = tid
			}
		}
		if len(found) == cpus {
			threads := make([]int, cpus)
			for n, tid := range found {
				threads[n] = tid
			}
			return threads, nil
		}
	}
	return nil, fmt.Errorf("find threads of QEMU: %d of %d virtual CPUs after 20 s", len(found), cpus)
}

// HostWait returns how long each virtual CPU's thread has been runnable without running, since the VM began. A job during
// which it grew markedly was disturbed, and its figures are void.
func (vm *VM) HostWait() ([]time.Duration, error) {
	threads, err := cpuThreads(vm.cmd.Process.Pid, vm.hello.CPUs)
	if err != nil {
		return nil, err
	}
	waits := make([]time.Duration, len(threads))
	for i, tid := range threads {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/schedstat", vm.cmd.Process.Pid, tid))
		if err != nil {
			return nil, err
		}
		fields := strings.Fields(string(text)) // run time, wait time in ns, slices
		if len(fields) != 3 {
			return nil, fmt.Errorf("read schedstat: %q", text)
		}
		ns, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			return nil, err
		}
		waits[i] = time.Duration(ns)
	}
	return waits, nil
}

// firstField returns the value of the first "name : value" line of a /proc file.
func firstField(text []byte, name string) []byte {
	for line := range bytes.Lines(text) {
		if key, value, ok := bytes.Cut(line, []byte(":")); ok && string(bytes.TrimSpace(key)) == name {
			return bytes.TrimSpace(value)
		}
	}
	return nil
}
