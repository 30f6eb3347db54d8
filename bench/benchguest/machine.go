package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"coppice/bench"
)

// describe prints what the reader of the figures must know of this machine.
func describe(o options) error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return fmt.Errorf("read kernel release: %w", err)
	}
	fio, err := exec.Command("fio", "--version").Output()
	if err != nil {
		return fmt.Errorf("run fio --version: %w", err)
	}
	info := []struct{ key, value string }{
		{"guest kernel", unix.ByteSliceToString(u.Release[:]) + " " + unix.ByteSliceToString(u.Machine[:])},
		{"guest CPUs", strconv.Itoa(runtime.NumCPU())},
		{"fio", strings.TrimSpace(string(fio))},
		{"qemu-nbd", firstLine("qemu-nbd", "--version")},
		{"nbdkit", firstLine("nbdkit", "--version")},
		{"Go", runtime.Version()},
		{"rounds", strconv.Itoa(o.rounds)},
		{"bytes touched per device", fmt.Sprintf("%d MiB", o.size>>20)},
	}
	for _, i := range info {
		if err := (bench.Event{Kind: bench.KindInfo, Key: i.key, Value: i.value}).Emit(os.Stdout); err != nil {
			return err
		}
	}
	return nil
}

// firstLine is the first line that a program prints, or why there is none.
func firstLine(name string, args ...string) string {
	text, err := output(name, args...)
	if err != nil {
		return err.Error()
	}
	line, _, _ := strings.Cut(text, "\n")
	return line
}

// userHertz is the unit of /proc/stat, fixed for user space (USER_HZ, include/asm-generic/param.h).
const userHertz = 100

// busyTime returns how long the CPUs of this machine have worked since it started, all together.
func busyTime() (time.Duration, error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	return parseBusy(string(stat))
}

// parseBusy adds user, nice, system, irq, softirq and steal of the first line of /proc/stat
// (Documentation/filesystems/proc.rst); idle and iowait stay out.
func parseBusy(stat string) (time.Duration, error) {
	line, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0, fmt.Errorf("parse /proc/stat: first line %q", line)
	}
	ticks := int64(0)
	for i, field := range fields[1:9] {
		if i == 3 || i == 4 {
			continue
		}
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("parse /proc/stat: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / userHertz, nil
}
