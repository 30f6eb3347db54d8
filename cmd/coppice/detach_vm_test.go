//go:build vm

package main

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"coppice/node"
)

// A mounted ext4 under load is detached while the daemon is killed again and again. In the end the root and the layer that it stood
// on are gone, and the file system is whole, byte for byte.
func TestDetachMountedFileSystemUnderKills(t *testing.T) {
	r := newVMRig(t)
	r.sh("mkdir " + r.dir + "/files && head -c 48M /dev/urandom > " + r.dir + "/files/big && rm " + r.root +
		" && truncate -s 96M " + r.root + " && mkfs.ext4 -q -F -d " + r.dir + "/files " + r.root)
	d := r.start()
	web := r.create("web1")
	r.sh("mount " + web.Path + " " + r.mnt + " && echo kept > " + r.mnt + "/kept")
	r.freeze("web1", "gold")
	stop := r.writers()
	r.ok("detach", "web1", "--rate", "3M", "--background")
	const kills = 6
	unfinished := 0
	for range kills {
		time.Sleep(500 * time.Millisecond)
		d.signal(syscall.SIGKILL)
		if err := d.wait(); err == nil {
			t.Error("the daemon ended well")
		}
		d = r.start()
		s := r.inspect("web1")
		for began := time.Now(); s.State == node.StateRestoring && time.Since(began) < time.Minute; s = r.inspect("web1") {
			time.Sleep(100 * time.Millisecond)
		}
		if s.State != node.StateLive {
			t.Fatalf("the device is %s: %s", s.State, s.Error)
		}
		for _, l := range s.Leaf.Info.Layers {
			if l.Name == "web1" && l.Detaching { // the work itself may begin a moment later
				unfinished++
			}
			if l.Unfinished {
				t.Logf("to be resumed: %d MiB are copied", l.DataBytes>>20)
			}
		}
	}
	if unfinished < kills-1 {
		t.Errorf("killed only %d times before the end", unfinished)
	}
	if out := r.ok("detach", "web1"); !strings.Contains(out, "is complete") {
		t.Errorf("detach: %s", out)
	}
	stop()
	if dev := r.inspect("web1"); dev.Root.Path != "" {
		t.Errorf("it still has the root %q", dev.Root.Path)
	}
	r.ok("store", "remove", r.leaf, "gold")
	r.sh("cmp " + r.mnt + "/big " + r.dir + "/files/big && umount " + r.mnt + " && rm " + r.root + " && fsck.ext4 -fn " + web.Path)
	want := r.sha256(web.Path)
	d.stop()
	d = r.start()
	if got := r.sha256(web.Path); got != want {
		t.Errorf("the device had the digest %s, now %s", want, got)
	}
	r.sh("mount " + web.Path + " " + r.mnt + " && grep -q kept " + r.mnt + "/kept && cmp " + r.mnt + "/big " + r.dir + "/files/big && umount " + r.mnt +
		" && fsck.ext4 -fn " + web.Path)
	r.ok("delete", "web1")
	d.stop()
	r.nothingLeft()
	r.ok("store", "check", r.leaf)
}
