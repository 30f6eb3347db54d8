//go:build vm

package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

// nodeOf is another node: a daemon with a node id and a boot id of its own, which reaches r's leaf by a block device of its own.
func (r *vmRig) nodeOf(name string) (*vmRig, *vmDaemon) {
	r.t.Helper()
	n := *r
	n.runDir = filepath.Join(r.dir, name)
	n.leaf = strings.TrimSpace(r.sh("losetup -f --show " + r.leaf))
	r.t.Cleanup(func() { r.sh("losetup -d " + n.leaf) })
	config := filepath.Join(r.dir, name+".toml")
	n.bootID = filepath.Join(r.dir, name+".boot")
	text := "node_id = \"" + uuid.NewString() + "\"\nlease = \"8s\"\nscrub_bytes_per_second = 0\n"
	if err := errors.Join(os.WriteFile(config, []byte(text), 0o600), os.WriteFile(n.bootID, []byte(uuid.NewString()+"\n"), 0o600)); err != nil {
		r.t.Fatal(err)
	}
	return &n, n.start("--config", config)
}

// Two nodes reach one store. The second is refused until the lease of the first is broken. Then the first writes nothing more, though
// it runs on and has a writer all the time, and the second finds all that was flushed.
func TestSecondNodeTakesStore(t *testing.T) {
	r := newVMRig(t)
	r.sh("modprobe loop && head -c 1M /dev/urandom > " + r.dir + "/kept")
	first, d1 := r.nodeOf("first")
	second, d2 := r.nodeOf("second")
	dev := first.create("web1")
	r.sh("dd if=" + r.dir + "/kept of=" + dev.Path + " bs=64K oflag=direct conv=notrunc,fsync status=none")
	second.refused("break-lease", "create", "web1", "--root", r.root, "--leaf", second.leaf)
	second.refused("break-lease", "store", "format", second.leaf, "--force")

	write := "dd if=/dev/urandom of=" + dev.Path + " bs=4K count=1 seek=1024 oflag=direct conv=notrunc,fsync status=none"
	fenced := make(chan time.Time, 1)
	go func() {
		for exec.Command("sh", "-ec", write).Run() == nil {
			time.Sleep(20 * time.Millisecond)
		}
		fenced <- time.Now()
	}()
	began := time.Now()
	t.Log(strings.TrimSpace(second.ok("store", "break-lease", second.leaf)))
	broken := time.Now()
	select {
	case end := <-fenced:
		t.Logf("the first node wrote for %.1f s, the lease was broken after %.1f s", end.Sub(began).Seconds(), broken.Sub(began).Seconds())
	case <-time.After(time.Second):
		t.Fatal("the first node goes on writing when its lease is broken")
	}
	if out := first.ok("inspect", "web1"); !strings.Contains(out, "FENCED") {
		t.Errorf("the first node does not say that it is fenced:\n%s", out)
	}
	r.sh("cp --sparse=always " + r.leaf + " " + r.dir + "/before")
	if out, err := exec.Command("sh", "-ec", write).CombinedOutput(); err == nil {
		t.Errorf("the fenced node takes writes: %s", out)
	}
	first.ok("delete", "web1")
	d1.stop()
	if out, err := exec.Command("cmp", r.dir+"/before", r.leaf).CombinedOutput(); err != nil {
		t.Errorf("the fenced node has written to the store: %v: %s", err, out)
	}

	web := second.create("web1")
	r.sh("cmp -n 1048576 " + r.dir + "/kept " + web.Path)
	r.sh("dd if=" + r.dir + "/kept of=" + web.Path + " bs=64K seek=32 oflag=direct conv=notrunc,fsync status=none")
	second.ok("delete", "web1")
	d2.stop()
	second.nothingLeft()
	r.ok("store", "check", r.leaf)
}
