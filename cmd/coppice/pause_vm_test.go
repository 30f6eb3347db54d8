//go:build vm && long

package main

import (
	"fmt"
	"testing"
)

// The pause of a mounted file system that is frozen does not depend on what its leaf holds.
func TestFreezePause(t *testing.T) {
	const pieceMiB, smallMiB, largeMiB = 8, 8, 128
	r := newVMRig(t)
	r.sh(fmt.Sprintf("rm %[1]s && truncate -s %[2]dM %[1]s && mkfs.ext4 -q -F %[1]s && head -c %[3]dM /dev/urandom > %[4]s/piece",
		r.root, 2*largeMiB, pieceMiB, r.dir))
	d := r.start()
	web := r.create("web1")
	r.sh("mount " + web.Path + " " + r.mnt)
	var small, large float64 // milliseconds; the longest of each
	for round := range 3 {
		for _, mib := range []int{smallMiB, largeMiB} {
			if mib == largeMiB && round > 0 {
				continue
			}
			name := fmt.Sprintf("cut%d-%d", mib, round)
			r.sh(fmt.Sprintf("for i in $(seq %d); do cp %s/piece %s/%s-$i; done; sync", mib/pieceMiB, r.dir, r.mnt, name))
			f := r.freeze("web1", name)
			t.Logf("leaf of %d MiB: paused %.1f ms, seal %.1f ms", f.Layer.DataBytes>>20, f.PauseMS, f.SealMS)
			if f.Layer.DataBytes < int64(mib)<<20 {
				t.Errorf("the layer has %d bytes, want %d MiB", f.Layer.DataBytes, mib)
			}
			if mib == largeMiB {
				large = f.PauseMS
			} else {
				small = max(small, f.PauseMS)
			}
		}
	}
	if large > 3*small+100 {
		t.Errorf("paused %.1f ms for %d MiB, %.1f ms for %d", large, largeMiB, small, smallMiB)
	}
	r.sh("umount " + r.mnt)
	r.ok("delete", "web1")
	d.stop()
	r.nothingLeft()
}
