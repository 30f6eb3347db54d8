package main

import (
	"testing"
)

func TestModuleName(t *testing.T) {
	for file, want := range map[string]string{
		"kernel/drivers/block/ublk_drv.ko.xz": "ublk_drv",
		"kernel/drivers/md/dm-mod.ko":         "dm_mod",
		"kernel/arch/crc32c-intel.ko.zst":     "crc32c_intel",
	} {
		if got := moduleName(file); got != want {
			t.Errorf("%s: %s, want %s", file, got, want)
		}
	}
}

func TestFaultLine(t *testing.T) {
	for line, want := range map[string]bool{
		"<4>[    1.5] WARNING: CPU: 0 PID: 1 at block/x.c:1":                true,
		"<1>[    1.5] BUG: kernel NULL pointer dereference":                 true,
		"<4>[    1.5] Oops: 0000 [#1] PREEMPT SMP":                          true,
		"<6>[    1.5] sysrq: Show State":                                    false,
		"<3>[    1.5] INFO: task x:1 blocked for more than 120 seconds.":    false,
		"<6>[    1.5] x: WARNING: printed by a program, not by the kernel.": false,
	} {
		if got := faultLine.MatchString(line); got != want {
			t.Errorf("%q: fault %v, want %v", line, got, want)
		}
	}
}
