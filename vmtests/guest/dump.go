package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	syslogReadAll    = 3  // SYSLOG_ACTION_READ_ALL, include/linux/syslog.h
	syslogBufferSize = 10 // SYSLOG_ACTION_SIZE_BUFFER
)

// dump returns the kernel log with the state of every task, and the user-space picture of the runs under way.
func (r *runs) dump() string {
	var b strings.Builder
	b.WriteString(r.processes())
	for _, key := range []string{"w", "t"} { // blocked tasks, then all tasks (Documentation/admin-guide/sysrq.rst)
		if err := os.WriteFile("/proc/sysrq-trigger", []byte(key), 0); err != nil {
			fmt.Fprintf(&b, "sysrq %s: %v\n", key, err)
		}
	}
	b.WriteString("--- kernel log\n")
	b.WriteString(kernelLog())
	return b.String()
}

// processes lists the runs under way with the kernel stack of each thread.
func (r *runs) processes() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var b strings.Builder
	for id, pid := range r.pids {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		fmt.Fprintf(&b, "--- run %d, pid %d: %q\n", id, pid, strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00"))
	}
	return b.String()
}

func kernelLog() string {
	size, err := unix.Klogctl(syslogBufferSize, nil)
	if err != nil {
		return fmt.Sprintf("read kernel log: %v\n", err)
	}
	buf := make([]byte, size)
	n, err := unix.Klogctl(syslogReadAll, buf)
	if err != nil {
		return fmt.Sprintf("read kernel log: %v\n", err)
	}
	return string(buf[:n])
}

// markKernelLog writes a line into the kernel log and returns it, so that what follows can be told from what was before.
// The line break makes the kernel show the line at once; without it, it waits for a continuation.
func markKernelLog() string {
	mark := fmt.Sprintf("coppice-run-%d", time.Now().UnixNano())
	if err := os.WriteFile("/dev/kmsg", []byte("<7>"+mark+"\n"), 0); err != nil {
		return ""
	}
	return mark
}

var faultLine = regexp.MustCompile(`\] (BUG:|WARNING:|Oops|general protection fault|kernel BUG at|Kernel panic)`)

// kernelFaults returns the lines after mark by which the kernel reports a fault of its own.
func kernelFaults(mark string) []string {
	log := kernelLog()
	if _, after, ok := strings.Cut(log, mark); ok && mark != "" {
		log = after
	}
	var faults []string
	for line := range strings.Lines(log) {
		if faultLine.MatchString(line) {
			faults = append(faults, strings.TrimSpace(line))
		}
	}
	return faults
}
