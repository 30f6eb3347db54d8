//go:build vm

package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"

	"coppice/node"
)

// upgrade hands the devices over to the program at path.
func (r *vmRig) upgrade(path string) upgradeReport {
	r.t.Helper()
	var u upgradeReport
	if err := json.Unmarshal([]byte(r.ok("upgrade", path, "--watch", "1s", "-o", "json")), &u); err != nil {
		r.t.Fatal(err)
	}
	if u.Outcome != node.UpgradeDone || u.StallMS <= 0 {
		r.t.Errorf("reported as %+v", u)
	}
	return u
}

// programs returns the path of the program, and that of one that can be it, too, and whose daemon dies where brokenVariable is set.
func programs(t *testing.T) (good, broken string) {
	t.Helper()
	good, err := exec.LookPath("coppice")
	if err != nil {
		t.Fatal(err)
	}
	if broken, err = os.Executable(); err != nil {
		t.Fatal(err)
	}
	return good, broken
}

// countedReads makes 16 reads of a device that nobody else reads, and returns how many the kernel has counted since it was first measured.
func (r *vmRig) countedReads(dev node.Device) (n uint64) {
	r.t.Helper()
	r.sh("dd if=" + dev.Path + " of=/dev/null bs=4k count=16 iflag=direct status=none")
	for key, l := range r.latencies(dev.Name) {
		if key.source == "unknown" {
			r.t.Errorf("%s: nobody said where the data of %d requests came from", key.op, l.Count)
		}
		if key.op == "read" {
			n += l.Count
		}
	}
	return n
}

// Devices go from program to program, in one process, under a file system that is written to. What measures requests goes with them.
func TestUpgradeUnderLoad(t *testing.T) {
	good, other := programs(t)
	r := newVMRig(t)
	d := r.start()
	used, idle := r.create("used"), r.create("idle", "--leaf", r.leaf+":idle")
	r.sh("mount " + used.Path + " " + r.mnt)
	wait := r.verifying(15)
	r.ok("ebpf", "load")
	counted := r.countedReads(idle)
	for _, program := range []string{other, good} {
		u := r.upgrade(program)
		if n := r.countedReads(idle); n != counted+16 {
			t.Errorf("%d reads are counted, were %d before the upgrade, and 16 came", n, counted)
		} else {
			counted = n
		}
		if u.PID != d.cmd.Process.Pid {
			t.Errorf("process %d goes on as %d", d.cmd.Process.Pid, u.PID)
		}
		r.sh("date > " + r.mnt + "/answered && sync " + r.mnt + "/answered")
		t.Logf("two devices, one under load: no I/O for %.0f ms", u.StallMS)
	}
	wait()
	t.Log(r.sh("grep -E 'hand|over|restored' " + d.log))
	r.refused("it is no program", "upgrade", r.root)
	r.refused("check the program", "upgrade", "/bin/ls")
	for _, name := range []string{"used", "idle"} {
		if got := r.inspect(name); got.State != node.StateLive {
			t.Errorf("%s is %s", name, got.State)
		}
	}
	if _, err := os.Stat(idle.Path); err != nil {
		t.Error(err)
	}
	r.sh("umount " + r.mnt + " && fsck.ext4 -fn " + used.Path)
	r.ok("delete", "used")
	r.ok("delete", "idle")
	r.ok("ebpf", "unload")
	d.stop()
	r.nothingLeft()
	r.ok("store", "check", r.leaf)
	// Guards of both upgrades were there still. They end without a daemon.
	ours := "pgrep -fa '^coppice --run-dir " + r.runDir + " '"
	r.sh("for i in $(seq 100); do " + ours + " >/dev/null || exit 0; sleep 0.1; done; " + ours + "; exit 1")
	if strings.Contains(d.text(), "THE NEW PROGRAM DOES NOT LIVE") {
		t.Errorf("a guard came back for a daemon that was stopped:\n%s", d.text())
	}
}
