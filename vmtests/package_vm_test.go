//go:build vm

package vmtests

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Versions of the package that tests install one after the other.
const oldPackage, newPackage = packageVersion, "0.0.1"

// packageLab is a Debian on a disk of its own, with versions of the package at hand, and a disk for leaves.
type packageLab struct {
	b   *Build
	cfg Config
	vm  *VM
}

func newPackageLab(t *testing.T, versions ...string) *packageLab {
	t.Helper()
	b := newBuild(t)
	system, err := b.System(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	disks, cleanup, err := b.Scratch([]string{"leaf=1G"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cleanup)
	dir := t.TempDir()
	root, debs := filepath.Join(dir, "root"), filepath.Join(dir, "debs")
	if _, err := command(t.Context(), "", "cp", "--sparse=always", system.Image, root); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(debs, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, version := range versions {
		deb, err := b.PackageOf(t.Context(), version)
		if err == nil {
			_, err = command(t.Context(), "", "cp", deb, debs)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := ext4FromTree(t.Context(), debs, debs+".img", 0, "^has_journal"); err != nil {
		t.Fatal(err)
	}
	disks = append([]Disk{{Name: "root", Path: root}, {Name: "debs", Path: debs + ".img", ReadOnly: true}}, disks...)
	return &packageLab{b: b, cfg: Config{
		Name: "package", MemMiB: 1536, Own: system.Own(), Disks: disks, KernelArgs: bootArgs + " root=/dev/vda", Consoles: t.ArtifactDir(),
	}}
}

// up boots the system, and waits until it can be worked with.
func (l *packageLab) up(t *testing.T) {
	t.Helper()
	l.vm = boot(t, l.b, l.cfg)
}

// down powers the system off, and fails where that takes long or something is wrong with it.
func (l *packageLab) down(t *testing.T) {
	t.Helper()
	began := time.Now()
	if err := l.vm.PowerOff(t.Context()); err != nil {
		t.Fatalf("power off: %v", err)
	}
	t.Logf("down in %.1f s", time.Since(began).Seconds())
	for _, bad := range []string{"I/O error", "EXT4-fs error", "Failed unmounting", "timed out", "Oops"} {
		if strings.Contains(l.vm.console(), bad) {
			t.Errorf("the console has %q\n%s", bad, l.vm.Report())
		}
	}
	if err := l.vm.Kill(); err != nil {
		t.Error(err)
	}
}

// sh runs a script in the guest, which fails with its first command that fails, and returns what it printed.
func (l *packageLab) sh(t *testing.T, what, script string) string {
	t.Helper()
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	var out strings.Builder
	exit, err := l.vm.Run(ctx, Job{Argv: []string{"sh", "-euc", script}, Output: &out, Timeout: 3 * time.Minute})
	t.Logf("%s: %.1f s", what, time.Since(began).Seconds())
	if err != nil || !exit.OK() {
		log, _ := l.vm.Output(t.Context(), "sh", "-c", "systemctl status --no-pager -l coppice; journalctl -b --no-pager -n 150")
		t.Fatalf("%s: %v %s\n%s\n%s\n%s", what, err, exit, out.String(), exit.Dump, log)
	}
	return out.String()
}

// Scripts of what is done with the package. Initramfs images are another test's matter, and dear.
const (
	installPackage = `
sed -i 's|^/dev/ublkb0|/dev/vda|' /etc/fstab; systemctl daemon-reload
echo update_initramfs=no >/etc/initramfs-tools/update-initramfs.conf
mkdir -p /debs; mount -o ro /dev/disk/by-id/virtio-debs /debs
apt-get install -y -q --no-install-recommends /debs/coppice_` + oldPackage + `_amd64.deb
coppice doctor
systemctl is-active coppice.service
`
	// sandboxed shows that the daemon that answers is the one in the sandbox.
	sandboxed = `
pid=$(systemctl show -p MainPID --value coppice.service)
grep -q '^NoNewPrivs:.1' /proc/$pid/status; grep -q '^Seccomp:.2' /proc/$pid/status
grep '^CapBnd:' /proc/$pid/status; ps -o user= -p $pid
test "$(ps -o user= -p $pid)" = coppice
`
	declareDevice = `
coppice store format /dev/disk/by-id/virtio-leaf
mkdir -p /srv/data; truncate -s 256M /srv/root.img; mkfs.ext4 -q /srv/root.img
printf 'root = "/srv/root.img"\nleaf = "/dev/disk/by-id/virtio-leaf"\n' >/etc/coppice/devices.d/data.toml
printf 'leaf = 3\n' >/etc/coppice/devices.d/wrong.toml
echo '/dev/coppice/by-name/data /srv/data ext4 _netdev,nofail 0 2' >>/etc/fstab
systemctl daemon-reload
systemctl reload coppice
coppice list
systemctl start srv-data.mount
test "$(readlink -f /dev/coppice/by-name/data)" = /dev/ublkb0
systemctl is-active 'dev-coppice-by\x2dname-data.device'
mountpoint /srv/data
coppice list -o json | grep -q '"name": *"wrong"'
rm /etc/coppice/devices.d/wrong.toml
coppice delete wrong
`
	commandLine = `
coppice create scratch --root /srv/root.img --leaf /dev/disk/by-id/virtio-leaf --save
udevadm settle
disk=$(readlink -f /dev/coppice/by-name/scratch); echo $disk
grep -q '\[none\]' /sys/block/$(basename $disk)/queue/scheduler
fio --name=raw --filename=/dev/coppice/by-name/scratch --size=16M --rw=randrw --bs=4k --ioengine=libaio --iodepth=8 --direct=1 --verify=crc32c --io_size=4M | grep 'err= 0'
test -e /etc/coppice/devices.d/scratch.toml
coppice delete scratch --forget
udevadm settle
test ! -e /dev/coppice/by-name/scratch; test ! -e /etc/coppice/devices.d/scratch.toml
test -e /dev/coppice/by-name/data
`
)

// TestPackage installs the package with apt, and has the daemon serve in its sandbox: a device that is declared, with a mount of fstab on it, and one that is made and deleted by
// hand. The machine goes down with the mount.
func TestPackage(t *testing.T) {
	t.Parallel()
	l := newPackageLab(t, oldPackage)
	l.cfg.CPUs = 1 // little here happens at once, and two emulated ones spend much on each other
	l.up(t)
	t.Log(l.sh(t, "install", installPackage))
	t.Log(l.sh(t, "sandbox", sandboxed))
	l.sh(t, "declare", declareDevice)
	l.sh(t, "command line", commandLine)
	l.down(t)
}
