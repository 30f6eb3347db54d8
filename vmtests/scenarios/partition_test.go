//go:build vm

package scenarios

import (
	"os"
	"strings"
	"testing"
	"time"
)

// waitForFile waits until the kernel has made a device node.
func waitForFile(t *testing.T, path string) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			return
		}
		if time.Since(began) > 10*time.Second {
			t.Fatalf("%s does not appear; partitions:\n%s", path, sh(t, "cat /proc/partitions"))
		}
	}
}

// changeAndKeep writes into the file system on device, has the device made again by remake, and wants all to be as it
// was left. Both times.
func changeAndKeep(t *testing.T, device, fstype string, remake func() string) {
	t.Helper()
	var before tree
	for _, round := range []string{"one", "two"} {
		dir := mountPoint(t, device, "-t "+fstype)
		if before != nil {
			before.same(t, readTree(t, dir+"/etc"))
		}
		sh(t, "cd "+dir+"; cp -a usr/share/zoneinfo/America etc/copy-"+round+"; echo "+round+" >etc/hostname; rm -rf etc/copy-none; sync")
		before = readTree(t, dir+"/etc")
		unmount(t, dir)
		device = remake()
	}
	dir := mountPoint(t, device, "-t "+fstype+" -o ro")
	before.same(t, readTree(t, dir+"/etc"))
	if text := sh(t, "cat "+dir+"/etc/hostname"); strings.TrimSpace(text) != "two" {
		t.Errorf("hostname %q, want two", text)
	}
	unmount(t, dir)
}

// TestPartitionTable has a root with a GPT: the kernel finds its partition in the union device.
func TestPartitionTable(t *testing.T) {
	startDaemon(t)
	leaf := disk(t, "leaf")
	format(t, leaf)
	make := func() string {
		dev := createForTest(t, "parts", disk(t, "gpt"), leaf)
		waitForFile(t, dev.Path+"p1")
		sh(t, "sfdisk --verify "+dev.Path)
		return dev.Path + "p1"
	}
	changeAndKeep(t, make(), "ext4", func() string {
		coppice(t, "delete", "parts")
		checkStore(t, leaf)
		return make()
	})
	sh(t, "e2fsck -fn /dev/ublkb*p1")
}

// TestRootAndLeafOnOneDisk has both as partitions of the same disk.
func TestRootAndLeafOnOneDisk(t *testing.T) {
	startDaemon(t)
	root, leaf := disk(t, "pair")+"1", disk(t, "pair")+"2"
	coppice(t, "store", "format", leaf)
	dev := createForTest(t, "pair", root, leaf)
	changeAndKeep(t, dev.Path, "ext4", func() string {
		coppice(t, "delete", "pair")
		return createForTest(t, "pair", root, leaf).Path
	})
	sh(t, "e2fsck -fn "+dev.Path)
	coppice(t, "delete", "pair")
	checkStore(t, leaf)
}

// TestXFS has a root with another file system. Its files are discarded as they are deleted.
func TestXFS(t *testing.T) {
	startDaemon(t)
	leaf := disk(t, "leaf")
	format(t, leaf)
	dev := createForTest(t, "xfs", disk(t, "xfs"), leaf)
	changeAndKeep(t, dev.Path, "xfs -o discard", func() string {
		sh(t, "xfs_repair -n "+dev.Path)
		coppice(t, "delete", "xfs")
		return createForTest(t, "xfs", disk(t, "xfs"), leaf).Path
	})
	sh(t, "xfs_repair -n "+dev.Path)
}
