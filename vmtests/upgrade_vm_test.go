//go:build vm && long

package vmtests

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Versions that the daemon is upgraded to: one that is as good as its own, and one that ends where it is to serve.
const nextProgram, dyingProgram = "/mnt/programs/next", "/mnt/programs/dying"

// programsDisk is a disk with both.
func (l *machineLab) programsDisk(t *testing.T) Disk {
	t.Helper()
	dir := filepath.Join(l.dir, "programs")
	next, err := l.b.OtherVersion(t.Context(), "./cmd/coppice", "next")
	dying, dyingErr := l.b.Binary(t.Context(), "./vmtests/testdata/dying")
	if err := errors.Join(err, dyingErr, os.Mkdir(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{nextProgram: next, dyingProgram: dying} {
		if _, err := command(t.Context(), "", "cp", path, filepath.Join(dir, filepath.Base(name))); err != nil {
			t.Fatal(err)
		}
	}
	image := dir + ".img"
	if err := ext4FromTree(t.Context(), dir, image, 0, "^has_journal"); err != nil {
		t.Fatal(err)
	}
	return Disk{Name: "programs", Path: image, ReadOnly: true}
}

// TestUpgradeOfBootedMachine upgrades, in a machine whose root is on a device, the daemon that serves the root, and then the one in the sandbox of coppice.service. fio verifies what it writes on each meanwhile.
// A new version takes over, is killed, and is followed by itself; one that dies is followed by the one before.
func TestUpgradeOfBootedMachine(t *testing.T) {
	t.Parallel()
	l := newMachineLab(t, Systemd)
	m := l.node(t, "upgrade", l.web.address)
	data := filepath.Join(l.dir, "data")
	if err := SparseFile(data, 1<<30); err != nil {
		t.Fatal(err)
	}
	m.cfg.Disks = append(m.cfg.Disks, l.programsDisk(t), Disk{Name: "data", Path: data})
	vm := l.boot(t, m)
	m.sh(t, vm, "mount programs", "mkdir /mnt/programs; mount -o ro /dev/disk/by-id/virtio-programs /mnt/programs")

	root := upgraded{m: m, vm: vm, dir: "/var/tmp", runDir: "/run/coppice-root"}
	before := examineRoot(t, vm)
	root.upgradeUnderLoad(t)
	if after := examineRoot(t, vm); after.daemon == before.daemon {
		t.Errorf("process %d still serves the root", after.daemon)
	}

	t.Log(m.sh(t, vm, "a device of the service", `coppice store format /dev/disk/by-id/virtio-data
truncate -s 256M /srv/root.img; mkfs.ext4 -q /srv/root.img; mkdir -p /srv/data
systemctl start coppice.service; coppice create data --root /srv/root.img --leaf /dev/disk/by-id/virtio-data
udevadm settle; mount /dev/coppice/by-name/data /srv/data`))
	service := upgraded{m: m, vm: vm, dir: "/srv/data", runDir: "/run/coppice"}
	service.upgradeUnderLoad(t)
	t.Log(m.sh(t, vm, "sandbox", sandboxed))
	m.sh(t, vm, "end of the device", "umount /srv/data; e2fsck -fn /dev/coppice/by-name/data; coppice delete data; systemctl is-active coppice.service")
	wantNoIOErrors(t, "the kernel's log", kernelLogOf(t, vm))
	m.shutDown(t, vm)
}

// upgraded is a daemon in a machine, and a directory on a device that it serves.
type upgraded struct {
	m           *node
	vm          *VM
	dir, runDir string
}

// loadSeconds is for how long fio works at least while a daemon is upgraded; proven is later than a new program has proved itself, and a supervisor would go back to the former one.
const (
	loadSeconds = 75
	proven      = 12 * time.Second
)

func (u upgraded) upgradeUnderLoad(t *testing.T) {
	t.Helper()
	var work sync.WaitGroup
	work.Go(func() {
		script := fmt.Sprintf("fio --name=verify --directory=%s --size=32M --bs=4k-64k --rw=randrw --direct=1 --ioengine=libaio --iodepth=8 --verify=crc32c --verify_fatal=1 "+
			"--time_based --runtime=%d --output-format=terse", u.dir, loadSeconds)
		var out strings.Builder
		exit, err := u.vm.Run(t.Context(), Job{Argv: []string{"sh", "-c", script}, Output: &out, Timeout: 8 * time.Minute})
		if err != nil || !exit.OK() {
			t.Errorf("fio: %v, %+.200v\n%s", err, exit, lastLines(out.String(), 20))
		}
	})
	defer work.Wait()
	time.Sleep(3 * time.Second)
	from := u.daemon(t)
	to := u.upgrade(t, nextProgram)
	if now := u.daemon(t); now.Version != "next" || now.PID != from.PID || to.PID != from.PID {
		t.Errorf("process %d of version %s is followed by %d of %s", from.PID, from.Version, now.PID, now.Version)
	}
	u.refuse(t)
	if now := u.daemon(t); now.Version == "dying" {
		t.Errorf("the daemon is of version %s", now.Version)
	}
	t.Logf("%s: the program before the one that dies is %s", u.runDir, u.daemon(t).Version)
}

// daemonVersion is what coppice version -o json says of a daemon.
type daemonVersion struct {
	Version string `json:"version"`
	PID     int    `json:"pid"`
}

func (u upgraded) daemon(t *testing.T) daemonVersion {
	t.Helper()
	var v struct{ Daemon daemonVersion }
	out := u.m.sh(t, u.vm, "version", "coppice --run-dir "+u.runDir+" version -o json")
	if err := json.Unmarshal([]byte(out), &v); err != nil || v.Daemon.PID == 0 {
		t.Fatalf("%s: no daemon: %s (%v)", u.runDir, out, err)
	}
	return v.Daemon
}

// upgrade hands the devices over to a program, and waits until that has proved itself.
func (u upgraded) upgrade(t *testing.T, program string) (r struct {
	PID     int     `json:"pid"`
	Outcome string  `json:"outcome"`
	StallMS float64 `json:"stall_ms"`
}) {
	t.Helper()
	out := u.m.sh(t, u.vm, "upgrade", fmt.Sprintf("coppice --run-dir %s upgrade %s --watch %s -o json; echo answered >%s/answered; sync %[4]s/answered", u.runDir, program, proven, u.dir))
	if err := json.Unmarshal([]byte(out), &r); err != nil || r.Outcome != "done" || r.StallMS <= 0 {
		t.Errorf("%s: upgrade to %s: %s (%v)", u.runDir, program, out, err)
	}
	t.Logf("%s: upgrade to %s under load: no I/O for %.0f ms", u.runDir, program, r.StallMS)
	return r
}

// refuse upgrades to a program that dies, and wants to be told that the former one serves again.
func (u upgraded) refuse(t *testing.T) {
	t.Helper()
	began := time.Now()
	out := u.m.sh(t, u.vm, "upgrade to a program that dies", fmt.Sprintf("if coppice --run-dir %s upgrade %s; then exit 9; fi 2>&1; echo answered >%s/answered; sync %[3]s/answered", u.runDir, dyingProgram, u.dir))
	if !strings.Contains(out, "the new program ended") || !strings.Contains(out, "serves the devices again") {
		t.Errorf("%s: %s", u.runDir, out)
	}
	t.Logf("%s: the former program served again, and files were written, after %.1f s\n%s", u.runDir, time.Since(began).Seconds(), out)
}
