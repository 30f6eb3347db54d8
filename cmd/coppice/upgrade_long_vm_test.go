//go:build vm && long

package main

import (
	"fmt"
	"syscall"
	"testing"
)

// A supervisor starts the program that its daemon is of by now.
func TestSupervisorFollowsUpgrade(t *testing.T) {
	_, other := programs(t)
	r := newRootRig(t)
	dev := r.create("root")
	r.sh("mount " + dev.Path + " " + r.mnt)
	u := r.upgrade(other)
	r.assertProtected(u.PID, dev.Path)
	inode := func() string { return r.sh(fmt.Sprintf("stat -L -c %%i /proc/%d/exe", r.daemonPID())) }
	before := inode()
	r.sh("sleep 11") // sooner it would be followed by the former one
	if err := syscall.Kill(u.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.sh("echo x > " + r.mnt + "/x && sync " + r.mnt + "/x")
	if after := inode(); after != before || r.daemonPID() == u.PID {
		t.Errorf("program %s is followed by %s", before, after)
	}
	r.sh("umount " + r.mnt)
	r.ok("delete", "root")
}
