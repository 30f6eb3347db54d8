//go:build vm

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// writers keeps a mounted file system busy until the returned function is called.
func (r *vmRig) writers() (stop func()) {
	r.t.Helper()
	script := `i=0; while [ ! -e ` + r.dir + `/enough ]; do
		head -c 300K /dev/urandom > ` + r.mnt + `/w$((i % 40)); mkdir -p ` + r.mnt + `/d$((i % 7))/$i; rm -rf ` + r.mnt + `/d$(((i+3) % 7)); i=$((i+1)); done`
	cmd := exec.Command("sh", "-ec", script)
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	return func() {
		r.sh("touch " + r.dir + "/enough")
		// What a test needs to know of writers that hang.
		const patience = 2 * time.Minute
		hang := time.AfterFunc(patience, func() {
			list, _ := r.coppice("list", "-o", "json")
			tasks, _ := exec.Command("sh", "-c", "for d in /proc/[0-9]*; do grep -q '^State:.D' $d/status && cat $d/comm $d/stack; done; "+
				"grep -H . /sys/block/ublkb*/inflight; grep -rH . /sys/kernel/debug/block/ublkb*/hctx*/busy").CombinedOutput()
			inspect, _ := r.coppice("inspect", "web1", "-o", "json")
			r.t.Logf("the writers hang\n%s\n%s\n%s", list, tasks, inspect)
			_ = cmd.Process.Kill()
		})
		err := cmd.Wait()
		hang.Stop()
		if err != nil {
			r.t.Errorf("writers: %v", err)
		}
		r.sh("rm " + r.dir + "/enough")
	}
}

func (r *vmRig) freeze(name, as string, flags ...string) frozen {
	r.t.Helper()
	var f frozen
	if err := json.Unmarshal([]byte(r.ok(append([]string{"freeze", name, "--as", as, "-o", "json"}, flags...)...)), &f); err != nil {
		r.t.Fatal(err)
	}
	return f
}

// sha256 returns the digest of a device or file.
func (r *vmRig) sha256(path string) string {
	r.t.Helper()
	return strings.Fields(r.sh("echo 3 > /proc/sys/vm/drop_caches; sha256sum " + path))[0]
}

// A mounted ext4 under load is frozen: the layer holds a clean file system, and the writers never notice.
func TestFreezeMountedFileSystemUnderLoad(t *testing.T) {
	r := newVMRig(t)
	d := r.start()
	web := r.create("web1")
	r.sh("mount " + web.Path + " " + r.mnt + " && echo kept > " + r.mnt + "/kept")
	stop := r.writers()
	var names []string
	for i := range 4 {
		time.Sleep(300 * time.Millisecond)
		name := fmt.Sprint("cut", i)
		f := r.freeze("web1", name)
		t.Logf("%s: paused %.1f ms, seal %.1f ms, %d KiB", name, f.PauseMS, f.SealMS, f.Layer.DataBytes>>10)
		if len(f.Frozen) != 1 || f.Frozen[0] != r.mnt || !f.Layer.Sealed {
			t.Errorf("froze %+v", f)
		}
		names = append(names, name)
	}
	stop()
	branch := filepath.Join(r.dir, "branch")
	r.sh("mkdir " + branch)
	for i, name := range names {
		dev := r.create(fmt.Sprint("from", i), "--from", name)
		// -n: what FIFREEZE left needs no recovery of its journal.
		r.sh("fsck.ext4 -fn " + dev.Path + " && mount " + dev.Path + " " + branch + " && grep -q kept " + branch + "/kept && umount " + branch)
		r.ok("delete", fmt.Sprint("from", i))
	}
	r.sh("umount " + r.mnt + " && fsck.ext4 -fn " + web.Path)
	f := r.freeze("web1", "unmounted")
	if len(f.Frozen) != 0 || f.Layer.Parent != "cut3" {
		t.Errorf("froze %+v", f)
	}
	r.ok("delete", "web1")
	d.stop()
	r.nothingLeft()
	r.ok("store", "check", r.leaf)
}

// A command that is killed or stopped while it holds a file system frozen does not leave it so.
func TestKilledFreezeThaws(t *testing.T) {
	r := newVMRig(t)
	d := r.start()
	web := r.create("web1")
	r.sh("mount " + web.Path + " " + r.mnt)
	kill := func(delay time.Duration, s syscall.Signal) {
		cmd := exec.Command("coppice", "--run-dir", r.runDir, "freeze", "web1", "--as", fmt.Sprint("k", s, delay.Microseconds()))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(delay)
		_ = cmd.Process.Signal(s)
		began := time.Now()
		r.sh("echo on > " + r.mnt + "/f && sync -f " + r.mnt)
		t.Logf("%v after %s: the file system takes writes after %d ms", s, delay, time.Since(began).Milliseconds())
		if s == syscall.SIGSTOP {
			_ = cmd.Process.Signal(syscall.SIGCONT)
		}
		_ = cmd.Wait()
	}
	for lived := 10 * time.Millisecond; lived <= 250*time.Millisecond; lived += freezeStep {
		kill(lived, syscall.SIGKILL)
	}
	// One that hangs is left to the watchdog.
	self := os.Args[0]
	os.Args[0] = "coppice" // what the watchdog is started as
	f, err := newFreezer(web.Path)
	os.Args[0] = self
	if err != nil {
		t.Fatal(err)
	}
	if err := f.freeze(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	r.sh("echo on > " + r.mnt + "/f")
	if took := time.Since(began); took < watchdogLimit/2 || took > 2*watchdogLimit {
		t.Errorf("thawed by the watchdog after %s", took)
	}
	if err := f.thaw(); err == nil || !strings.Contains(err.Error(), "too early") {
		t.Errorf("thaw after the watchdog: %v", err)
	}
	if err := f.close(); err != nil {
		t.Error(err)
	}
	r.sh("fsfreeze -f " + r.mnt)
	time.Sleep(2 * time.Second) // the last one killed may have left a freeze that is still to expire
	r.refused("somebody else has frozen it", "freeze", "web1", "--as", "other")
	r.sh("fsfreeze -u " + r.mnt + " && echo on > " + r.mnt + "/f && umount " + r.mnt + " && fsck.ext4 -fn " + web.Path)
	r.ok("delete", "web1")
	d.stop()
	r.nothingLeft()
}

// A mounted ext4 under load is exported to a file and to a block device. Each is clean, has the digest that is reported, and
// the export of a device made from a frozen layer is what that device reads.
func TestExportMountedFileSystemUnderLoad(t *testing.T) {
	r := newVMRig(t)
	d := r.start()
	web := r.create("web1")
	r.sh("mount " + web.Path + " " + r.mnt + " && echo kept > " + r.mnt + "/kept")
	stop := r.writers()
	dest := filepath.Join(r.dir, "out.img")
	for i := range 2 {
		e := r.export("web1", dest)
		t.Logf("paused %.1f ms, %d MiB written in %.0f ms", e.PauseMS, e.WrittenBytes>>20, e.TotalMS)
		if len(e.Frozen) != 1 || i == 0 && r.sha256(dest) != e.SHA256 {
			t.Errorf("exported %+v", e)
		}
		r.sh("fsck.ext4 -fn " + dest + " && rm " + dest)
	}
	r.freeze("web1", "gold")
	stop()
	from := r.create("from", "--from", "gold")
	e := r.export("from", dest)
	r.sh("cmp " + from.Path + " " + dest)
	r.ok("delete", "from")
	// Onto a block device: the frozen device's content again, over what was there.
	loop := strings.TrimSpace(r.sh("modprobe loop && tr '\\0' x < /dev/zero | head -c " + rootSize + " > " + r.dir + "/disk && losetup -f --show " + r.dir + "/disk"))
	third := r.create("third", "--from", "gold")
	if got := r.export("third", loop); got.SHA256 != e.SHA256 {
		t.Errorf("another device of the same layer has %s", got.SHA256)
	}
	r.sh("cmp " + loop + " " + dest)
	r.sh("losetup -d " + loop)
	r.refused("lies on "+web.Path, "export", "third", r.mnt+"/out.img")
	r.refused("lies on "+third.Path, "export", "web1", third.Path)
	r.ok("delete", "third")
	r.sh("umount " + r.mnt)
	r.ok("delete", "web1")
	d.stop()
	out := r.ok("store", "info", r.leaf)
	if strings.Contains(out, "export-") {
		t.Errorf("left:\n%s", out)
	}
	r.ok("store", "check", r.leaf)
}

func (r *vmRig) export(name, dest string) exported {
	r.t.Helper()
	cmd := exec.Command("coppice", "--run-dir", r.runDir, "export", name, dest, "-o", "json")
	cmd.Stderr = os.Stderr // the progress
	out, err := cmd.Output()
	if err != nil {
		r.t.Fatalf("export %s: %v", name, err)
	}
	var e exported
	if err := json.Unmarshal(out, &e); err != nil {
		r.t.Fatal(err)
	}
	return e
}
