//go:build vm

package scenarios

import (
	"crypto/md5"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// nothingLeft wants no trace of a device: not in the kernel, not in the daemon, not in its directory.
func nothingLeft(t *testing.T) {
	t.Helper()
	for _, pattern := range []string{"/dev/ublkb*", "/dev/ublkc*", "/sys/block/ublkb*", "/run/coppice/devices/*"} {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			t.Errorf("left behind: %v", found)
		}
	}
}

// TestBadCreate gives create what it cannot take. Each time it says what is wrong and what to do, and nothing is left.
func TestBadCreate(t *testing.T) {
	startDaemon(t)
	leaf, root := disk(t, "leaf"), disk(t, "debian")
	format(t, leaf)
	layers := coppice(t, "store", "dump", leaf)
	dir := t.TempDir()
	empty, blank := dir+"/empty", dir+"/blank"
	sh(t, "touch "+empty+"; truncate -s 64M "+blank)
	tests := []struct{ name, root, leaf, want string }{
		{"root missing", "/nowhere", leaf, "/nowhere"},
		{"root empty", empty, leaf, empty},
		{"root is a directory", dir, leaf, dir},
		{"leaf missing", root, "/nowhere", "/nowhere"},
		{"leaf not formatted", root, blank, blank},
		{"leaf is a directory", root, dir, dir},
		{"leaf is the root", root, root, root},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			refused(t, tt.want, "coppice", "create", "bad", "--root", tt.root, "--leaf", tt.leaf)
			nothingLeft(t)
		})
	}
	if now := coppice(t, "store", "dump", leaf); now != layers {
		t.Errorf("the store was changed:\n%s\nwas\n%s", now, layers)
	}
}

// TestBadUse does with a device what cannot be done.
func TestBadUse(t *testing.T) {
	startDaemon(t)
	leaf, root := disk(t, "leaf"), disk(t, "debian")
	format(t, leaf)
	dev := createForTest(t, "good", root, leaf)
	refused(t, "good", "coppice", "create", "good", "--root", root, "--leaf", leaf+":other")
	refused(t, "good", "coppice", "create", "twice", "--root", root, "--leaf", leaf+":good")
	refused(t, leaf, "coppice", "store", "check", leaf)
	refused(t, leaf, "coppice", "store", "format", "--force", leaf)
	refused(t, "/run/coppice", "coppice", "daemon")
	refused(t, "", "setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "coppice", "list")
	dir := mountPoint(t, dev.Path, "-t ext4")
	sh(t, "echo kept >"+dir+"/root/kept")
	refused(t, "in use", "coppice", "delete", "good")
	if text := sh(t, "sync; cat "+dir+"/root/kept"); text != "kept\n" {
		t.Errorf("after the refused deletion the file reads %q", text)
	}
	unmount(t, dir)
	coppice(t, "delete", "good")
	nothingLeft(t)
	refused(t, "good", "coppice", "create", "bad", "--root", disk(t, "gpt"), "--leaf", leaf+":good")
	nothingLeft(t)
	refused(t, "gone", "coppice", "delete", "gone")
}

// TestBadStore formats what must not be formatted and opens what is damaged.
func TestBadStore(t *testing.T) {
	leaf := disk(t, "leaf")
	format(t, leaf)
	refused(t, "--force", "coppice", "store", "format", leaf)
	refused(t, "--force", "coppice", "store", "format", disk(t, "xfs"))
	refused(t, "/tmp/tiny", "coppice", "store", "format", "--size=64K", "/tmp/tiny")
	startDaemon(t)
	createForTest(t, "once", disk(t, "debian"), leaf)
	coppice(t, "delete", "once")
	// spoil damages the middle of a superblock's copy; both begin with what marks a store.
	spoil := func(block int) {
		sh(t, "printf damaged | dd of="+leaf+" bs=1 conv=notrunc,fsync status=none seek="+strconv.Itoa(block*4096+40))
	}
	t.Run("one copy", func(t *testing.T) {
		for _, block := range []int{0, 16} {
			spoil(block)
			createForTest(t, "once", disk(t, "debian"), leaf)
			coppice(t, "delete", "once")
			checkStore(t, leaf)
		}
	})
	t.Run("both copies", func(t *testing.T) {
		spoil(0)
		spoil(16)
		before := digestOf(t, leaf)
		refused(t, "superblock", "coppice", "create", "once", "--root", disk(t, "debian"), "--leaf", leaf)
		nothingLeft(t)
		if digestOf(t, leaf) != before {
			t.Error("the damaged store was written")
		}
	})
}

// digestOf covers the part of a store that holds all its structures in these tests.
func digestOf(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := md5.New()
	if _, err := io.Copy(h, io.LimitReader(f, 128<<20)); err != nil {
		t.Fatal(err)
	}
	return string(h.Sum(nil))
}

// TestNoDriver has a machine where the driver is not loaded and cannot be.
func TestNoDriver(t *testing.T) {
	if out := coppice(t, "doctor"); !strings.Contains(out, "can serve devices") {
		t.Errorf("doctor says %q", out)
	}
	sh(t, "modprobe -r ublk_drv; echo install ublk_drv /bin/false >/etc/modprobe.d/no-ublk.conf")
	t.Cleanup(func() { sh(t, "rm /etc/modprobe.d/no-ublk.conf; modprobe ublk_drv") })
	refused(t, "ublk", "coppice", "daemon")
	if out := coppice(t, "doctor"); !strings.Contains(out, "/dev/ublk-control is missing") {
		t.Errorf("doctor says %q", out)
	}
	refused(t, "coppice.sock", "coppice", "list")
	nothingLeft(t)
}
