//go:build vm

package main

import (
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"coppice/node"
)

// detached is how much of a device's layer has been copied for it to be complete.
func (r *vmRig) detached(device string) int64 {
	r.t.Helper()
	s := r.inspect(device)
	if s.Leaf.Info == nil {
		return 0
	}
	for _, l := range s.Leaf.Info.Layers {
		if l.Unfinished {
			return l.DataBytes
		}
	}
	if s.State == node.StateLive && s.Root.Path == "" {
		r.t.Fatal("it is complete already")
	}
	return 0
}

// A mounted ext4 under load is detached while the daemon is killed again and again. In the end the root and the layer that it stood
// on are gone, and the file system is whole, byte for byte.
func TestDetachMountedFileSystemUnderKills(t *testing.T) {
	r := newVMRig(t)
	r.sh("mkdir " + r.dir + "/files && head -c " + detachedData + " /dev/urandom > " + r.dir + "/files/big && rm " + r.root +
		" && truncate -s " + detachedRoot + " " + r.root + " && mkfs.ext4 -q -F -d " + r.dir + "/files " + r.root)
	d := r.start()
	web := r.create("web1")
	r.sh("mount " + web.Path + " " + r.mnt + " && echo kept > " + r.mnt + "/kept")
	r.freeze("web1", "gold")
	stop := r.writers()
	r.ok("detach", "web1", "--rate", detachRate, "--background")
	const kills = 3
	var resumed []int64 // bytes that were copied at each kill, as the next daemon finds it
	for len(resumed) < kills {
		last := int64(0)
		if n := len(resumed); n > 0 {
			last = resumed[n-1]
		}
		for began := time.Now(); r.detached("web1") <= last; time.Sleep(100 * time.Millisecond) {
			if time.Since(began) > time.Minute {
				t.Fatalf("detaching does not go on after %d bytes", last)
			}
		}
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
		resumed = append(resumed, r.detached("web1"))
	}
	t.Logf("killed when so many bytes were copied: %d", resumed)
	if !slices.IsSorted(resumed) || resumed[0] == 0 {
		t.Error("not gone on with where it had ended")
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
