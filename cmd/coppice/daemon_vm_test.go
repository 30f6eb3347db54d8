//go:build vm

package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"coppice/node"
	"coppice/ublk"
	"coppice/ublk/uapi"
)

func TestDaemonStopsIdleAndLeavesMountedDevices(t *testing.T) {
	r := newVMRig(t)
	d := r.start()
	used := r.create("used")
	idle := r.create("idle", "--id", "7")
	r.sh("mount " + used.Path + " " + r.mnt + " && head -c 8M /dev/urandom > " + r.mnt + "/before && sha256sum " + r.mnt + "/before > " + r.dir + "/sum")
	r.refused("mounted on "+r.mnt, "delete", "used")

	d.signal(syscall.SIGTERM)
	d.signal(syscall.SIGINT) // the second one changes nothing
	if err := d.wait(); err != nil {
		t.Errorf("daemon ended with %v", err)
	}
	if log := d.text(); !strings.Contains(log, "LEFT QUIESCED") || !strings.Contains(log, r.mnt) {
		t.Errorf("the log does not tell of the device in use:\n%s", log)
	}
	if _, err := os.Stat(idle.Path); err == nil {
		t.Error("the idle device is still there")
	}
	writer := exec.Command("dd", "if=/dev/urandom", "of="+r.mnt+"/meanwhile", "bs=1M", "count=4", "conv=fsync", "status=none")
	if err := writer.Start(); err != nil {
		t.Fatal(err)
	}

	d = r.start()
	if err := writer.Wait(); err != nil {
		t.Errorf("write while no daemon ran: %v", err)
	}
	if got := r.inspect("idle"); got.Path != idle.Path || got.State != node.StateLive || got.Restored == nil {
		t.Errorf("idle device came back as %+v", got)
	}
	r.sh("echo 3 > /proc/sys/vm/drop_caches && sha256sum -c --quiet " + r.dir + "/sum && umount " + r.mnt + " && fsck.ext4 -fn " + used.Path)
	r.ok("delete", "used")
	r.ok("delete", "idle")
	d.stop()
	r.nothingLeft()
	r.ok("store", "check", r.leaf)
}

func TestUnrecoverableDeviceInUseKeepsDaemon(t *testing.T) {
	r := newVMRig(t)
	d := r.start()
	dev := r.create("web1", "--queues", "2")
	if dev.Recoverable || dev.Queues != 2 {
		t.Fatalf("kernel 6.12 made %+v", dev)
	}
	r.sh("mount " + dev.Path + " " + r.mnt)
	d.signal(syscall.SIGTERM)
	for began := time.Now(); !strings.Contains(d.text(), "CAN NEITHER BE STOPPED NOR LEFT"); time.Sleep(20 * time.Millisecond) {
		if time.Since(began) > time.Minute {
			t.Fatal("not said in the log")
		}
	}
	r.sh("echo served > " + r.mnt + "/f && sync")
	select {
	case err := <-d.ended:
		t.Fatalf("the daemon ended with a device in use: %v", err)
	default:
	}
	r.sh("umount " + r.mnt)
	if err := d.wait(); err != nil {
		t.Error(err)
	}
	if nodes := r.kernelDevices(); len(nodes) > 0 {
		t.Errorf("left: %v", nodes)
	}
}

func TestBadInputLeavesNoOrphan(t *testing.T) {
	r := newVMRig(t)
	r.start()
	empty, plain := filepath.Join(r.dir, "empty"), filepath.Join(r.dir, "plain")
	r.sh("touch " + empty + " && truncate -s 64M " + plain)
	create := func(root, leaf string, flags ...string) []string {
		return append([]string{"create", "bad", "--root", root, "--leaf", leaf}, flags...)
	}
	r.refused("no such file", create(r.dir+"/none", r.leaf)...)
	r.refused("is empty", create(empty, r.leaf)...)
	r.refused("is a directory", create(r.dir, r.leaf)...)
	r.refused("not a coppice leaf store", create(r.root, plain)...)
	r.refused("no such file", create(r.root, r.dir+"/none")...)
	r.refused("no device name", "create", "../bad", "--root", r.root, "--leaf", r.leaf)
	r.nothingLeft()

	dev := r.create("web1")
	r.refused("of that name already", "create", "web1", "--root", r.root, "--leaf", r.leaf+":other")
	r.refused("layer in use", create(r.root, r.leaf+":web1")...)
	r.refused("belongs to device web1", create(r.root, r.leaf, "--id", "0")...)
	r.refused("lies on "+dev.Path, create(dev.Path, r.leaf)...)
	r.sh("mount " + dev.Path + " " + r.mnt + " && truncate -s 1M " + r.mnt + "/nested.img")
	r.refused("lies on "+dev.Path, create(r.mnt+"/nested.img", r.leaf)...)
	r.sh("umount " + r.mnt)
	r.refused("in use", "store", "check", r.leaf)
	r.refused("in use", "store", "format", r.leaf, "--force")

	r.plant(5)
	r.refused("ublk device 5", create(r.root, r.leaf, "--id", "5")...)
	r.ok("delete", "web1")
	for _, node := range r.kernelDevices() {
		if node != "/dev/ublkc5" {
			t.Errorf("%s left", node)
		}
	}
	if out := r.ok("list"); !strings.Contains(out, "no devices") {
		t.Errorf("list:\n%s", out)
	}
}

// plant makes a device of another program, which is not started.
func (r *vmRig) plant(id uint32) {
	r.t.Helper()
	ctx := context.Background()
	c, err := ublk.Open("")
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := c.Delete(ctx, int(id)); err != nil {
			r.t.Error(err)
		}
		if err := c.Close(); err != nil {
			r.t.Error(err)
		}
	})
	if _, err := c.Add(ctx, uapi.DevInfo{NrHWQueues: 1, QueueDepth: 1, MaxIOBufBytes: 1 << 16, DevID: id}); err != nil {
		r.t.Fatal(err)
	}
}

// A device that lost its leaf or its root is not taken up, and comes when they are back.
func TestMissingRootAtRestart(t *testing.T) {
	r := newVMRig(t)
	d := r.start()
	dev := r.create("web1")
	r.sh("mount " + dev.Path + " " + r.mnt + " && echo kept > " + r.mnt + "/f")
	d.stop()
	r.sh("mv " + r.root + " " + r.root + ".away")
	d = r.start()
	if got := r.inspect("web1"); got.State != node.StateFailed || !strings.Contains(got.Error, "root.img") {
		t.Errorf("reported as %+v", got)
	}
	r.refused("in use", "delete", "web1")
	d.stop()
	r.sh("mv " + r.root + ".away " + r.root)
	d = r.start()
	r.sh("sync && grep -q kept " + r.mnt + "/f && umount " + r.mnt)
	r.ok("delete", "web1")
	d.stop()
	r.nothingLeft()
}

func TestDaemonWithoutDriverOrPermission(t *testing.T) {
	r := newVMRig(t)
	r.withoutControl(func() {
		r.refused("the ublk driver is not loaded", "daemon")
		if out, err := r.coppice("doctor"); !strings.Contains(out, "/dev/ublk-control is missing") {
			t.Errorf("doctor: %v\n%s", err, out)
		}
	})
	self, err := exec.LookPath("coppice")
	if err != nil {
		t.Fatal(err)
	}
	r.sh("cp " + self + " /coppice && chmod 755 /coppice")
	t.Cleanup(func() { r.sh("rm -r /coppice /coppice-dir") })
	const nobody = 65534
	r.sh("mkdir -p /coppice-dir && chown 65534 /coppice-dir")
	cmd := exec.Command("/coppice", "--run-dir", "/coppice-dir/run", "daemon")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	text, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(text), "no permission") || !strings.Contains(string(text), "to do: run the daemon as root") {
		t.Errorf("daemon of user nobody: %v\n%s", err, text)
	}
}

// withoutControl runs do while the driver cannot be reached.
func (r *vmRig) withoutControl(do func()) {
	const control = "/dev/ublk-control"
	r.sh("mv " + control + " " + control + ".away")
	defer r.sh("mv " + control + ".away " + control)
	do()
}

func TestSecondDaemonOnTheSameRunDirectory(t *testing.T) {
	r := newVMRig(t)
	d := r.start()
	r.refused("another daemon is running (pid ", "daemon")
	r.create("web1")
	r.ok("delete", "web1")
	d.stop()
}
