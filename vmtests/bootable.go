package vmtests

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
)

// Kind is what a system is made of.
type Kind string

// The kinds: systemd on ext4, System V's init on xfs, and systemd on ext4 with an initramfs of dracut's, where systemd runs, too.
const (
	Systemd  Kind = ""
	SysVinit Kind = "sysvinit"
	Dracut   Kind = "dracut"
)

// suffix tells the assets of kinds apart.
func (k Kind) suffix() string {
	if k == Systemd {
		return ""
	}
	return "-" + string(k)
}

// System is a Debian that boots by itself: with a kernel that is installed in it, and the initramfs that its own tools made of it.
type System struct {
	Kernel, Initrd string // files on this machine
	Image          string // a file system without partition table, of systemBytes; it must not be written
	Release        string // as uname -r prints it
}

// Own is what a machine starts for the system.
func (s System) Own() *OwnKernel { return &OwnKernel{Image: s.Kernel, Initrd: s.Initrd} }

// copied returns the system in a directory of its own, where it stays what it is when another process makes it anew.
func (s System) copied(ctx context.Context, dir string) (System, error) {
	for _, file := range []*string{&s.Kernel, &s.Initrd, &s.Image} {
		to := filepath.Join(dir, filepath.Base(*file))
		if _, err := command(ctx, "", "cp", "--sparse=always", *file, to); err != nil {
			return s, err
		}
		*file = to
	}
	return s, nil
}

// ownPackages are what a system that boots by itself has beside rootPackages: what makes an initramfs, and what tests work with.
var ownPackages = []string{"busybox", "e2fsprogs", "fio", "initramfs-tools", "linux-base", "lz4"}

// systemBytes is the size of a system's root.
const systemBytes = 2 << 30

// agentPath is where the agent lies in a system. The harness puts it there, no package does.
const agentPath = "/usr/local/lib/vmtests/agent"

// agentUnit starts the agent when everything else of a boot is done, or is waited for in vain.
const agentUnit = `[Unit]
Description=Agent of the test harness
After=multi-user.target getty.target console-getty.service

[Service]
ExecStart=` + agentPath + ` service
Environment=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/tmp LC_ALL=C.UTF-8 TERM=dumb COPPICE_VM=1
OOMScoreAdjust=-900

[Install]
WantedBy=default.target
`

// furnish makes a tree a machine of the harness: a name, a root to mount, a console that asks for a login whatever device it is, the agent, and no timers, as what
// they start is not what a test measures. Its arguments are the tree, the agent, and the agent's unit.
const furnish = `set -e; tree=$1
echo node >$tree/etc/hostname
printf '127.0.0.1 localhost\n127.0.1.1 node\n' >$tree/etc/hosts
mkdir -p $tree` + "$(dirname " + agentPath + ")" + `; cp $2 $tree` + agentPath + `
if [ -e $tree/usr/bin/dracut ]; then
 echo 'compress=lz4' >$tree/etc/dracut.conf.d/vmtests.conf
else
 printf 'MODULES=list\nCOMPRESS=lz4\n' >$tree/etc/initramfs-tools/conf.d/vmtests
 printf 'virtio_blk\nvirtio_net\next4\nxfs\n' >>$tree/etc/initramfs-tools/modules
fi
if [ -e $tree/etc/inittab ]; then
 echo '/dev/ublkb0 / xfs defaults 0 0' >$tree/etc/fstab
 sed -i '/^[1-6]:.*getty/d' $tree/etc/inittab
 echo 'S0:2345:respawn:/sbin/agetty -L 115200 ttyS0 linux' >>$tree/etc/inittab
 echo 'va:2345:respawn:/usr/bin/env HOME=/root TMPDIR=/tmp COPPICE_VM=1 ` + agentPath + ` service' >>$tree/etc/inittab
 exit
fi
echo '/dev/ublkb0 / ext4 errors=remount-ro 0 1' >$tree/etc/fstab
cp $3 $tree/etc/systemd/system/vmtests-agent.service
chroot $tree systemctl -q enable vmtests-agent.service console-getty.service
chroot $tree systemctl -q mask serial-getty@.service getty@tty1.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
 e2scrub_all.timer e2scrub_reap.service fstrim.timer systemd-firstboot.service
`

// equip installs a package, if there is one, and makes the initramfs. Its arguments are the tree, the kernel's release, and the package.
const equip = `set -e; tree=$1; export INITRD=No
mount -t proc proc $tree/proc; mount -t sysfs sysfs $tree/sys; mount -t devtmpfs devtmpfs $tree/dev || mount --bind /dev $tree/dev
if [ -n "$3" ]; then
 cp "$3" $tree/package.deb
 chroot $tree dpkg -i /package.deb >&2
 rm $tree/package.deb
fi
if [ -e $tree/usr/bin/dracut ]; then
 chroot $tree dracut --force --no-hostonly --tmpdir /var/tmp /boot/initrd.img-$2 $2 >&2
else
 chroot $tree update-initramfs -c -k $2 >&2
fi
`

// System is SystemOf of systemd.
func (b *Build) System(ctx context.Context, deb string) (System, error) {
	return b.SystemOf(ctx, Systemd, deb)
}

// SystemOf returns a system with a package installed, "" being none. It is made anew where the package or the agent is another one.
func (b *Build) SystemOf(ctx context.Context, kind Kind, deb string) (System, error) {
	base, baseRecipe, err := b.base(ctx, kind)
	if err != nil {
		return System{}, err
	}
	agent, err := b.Binary(ctx, "./vmtests/guest")
	if err != nil {
		return System{}, err
	}
	recipe := fmt.Sprint("system 1 ", baseRecipe, systemBytes, agentUnit, furnish, equip)
	for _, file := range []string{agent, deb} {
		if file == "" {
			continue
		}
		digest, _, err := FileDigest(file, math.MaxInt64)
		if err != nil {
			return System{}, err
		}
		recipe += " " + digest
	}
	name := "system" + kind.suffix()
	if deb == "" {
		name += "-bare"
	}
	dir, err := b.asset(ctx, name, recipe, func(ctx context.Context, dir string) error {
		return b.fillSystem(ctx, dir, kind, base, agent, deb)
	})
	if err != nil {
		return System{}, err
	}
	release, err := os.ReadFile(filepath.Join(base, "release"))
	file := func(name string) string { return filepath.Join(dir, name) }
	return System{Kernel: file("vmlinuz"), Initrd: file("initrd.img"), Image: file("root.img"), Release: string(release)}, err
}

func (b *Build) fillSystem(ctx context.Context, dir string, kind Kind, base, agent, deb string) error {
	if err := b.need(ctx, "mke2fs", "mkfs.xfs"); err != nil {
		return err
	}
	release, err := os.ReadFile(filepath.Join(base, "release"))
	if err != nil {
		return err
	}
	tree := filepath.Join(dir, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		return err
	}
	if _, err := command(ctx, "", "tar", "-xf", filepath.Join(base, "tree.tar"), "-C", tree, "--numeric-owner", "--xattrs", "--xattrs-include=*"); err != nil {
		return err
	}
	unit := filepath.Join(dir, "agent.service")
	if err := os.WriteFile(unit, []byte(agentUnit), 0o644); err != nil {
		return err
	}
	if _, err := command(ctx, "", "sh", "-c", furnish, "furnish", tree, agent, unit); err != nil {
		return err
	}
	// In a mount namespace of its own nothing stays mounted.
	if _, err := command(ctx, "", "unshare", "--mount", "sh", "-c", equip, "equip", tree, string(release), deb); err != nil {
		return err
	}
	if err := errors.Join(
		adopt(filepath.Join(tree, "boot"), "initrd.img-*", filepath.Join(dir, "initrd.img")),
		adopt(filepath.Join(tree, "boot"), "vmlinuz-*", filepath.Join(dir, "vmlinuz"))); err != nil {
		return err
	}
	image := filepath.Join(dir, "root.img")
	if kind == SysVinit {
		err = xfsFromTree(ctx, tree, image, systemBytes)
	} else {
		err = ext4FromTree(ctx, tree, image, systemBytes, "")
	}
	return errors.Join(err, os.RemoveAll(tree), os.Remove(unit))
}

// base returns a directory with the tree of a bootable Debian as tree.tar, and the release of its kernel, which is the one that the harness boots elsewhere too.
func (b *Build) base(ctx context.Context, kind Kind) (dir, recipe string, err error) {
	packages := slices.Concat(rootPackages, ownPackages)
	without := func(gone string) {
		packages = slices.DeleteFunc(packages, func(name string) bool { return name == gone })
	}
	switch kind {
	case SysVinit:
		without("systemd-sysv")
		packages = append(packages, "initscripts", "sysvinit-core")
	case Dracut:
		without("initramfs-tools")
		packages = append(packages, "dracut", "dracut-network")
	}
	recipe = fmt.Sprint("base 1 ", kernelPattern, releaseSource, rootPackages, ownPackages)
	if kind != Systemd {
		recipe += fmt.Sprint(packages)
	}
	dir, err = b.asset(ctx, "base"+kind.suffix(), recipe, func(ctx context.Context, dir string) error { return b.fillBase(ctx, dir, packages) })
	return dir, recipe, err
}

func (b *Build) fillBase(ctx context.Context, dir string, packages []string) error {
	if err := b.need(ctx, "dpkg-deb", "mmdebstrap"); err != nil {
		return err
	}
	if err := b.withLists(ctx, func() error { return b.downloadKernel(ctx, dir) }); err != nil {
		return err
	}
	deb := filepath.Join(dir, "kernel.deb")
	if err := adopt(dir, "*.deb", deb); err != nil {
		return err
	}
	tree := filepath.Join(dir, "tree")
	install := `set -e; cp ` + deb + ` $1/kernel.deb; INITRD=No chroot $1 dpkg -i /kernel.deb; rm $1/kernel.deb`
	if err := bootstrap(ctx, tree, []string{releaseSource}, packages, "--customize-hook="+install); err != nil {
		return err
	}
	release, err := soleName(filepath.Join(tree, modulesDir))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "release"), []byte(release), 0o644); err != nil {
		return err
	}
	if _, err := command(ctx, "", "tar", "-cf", filepath.Join(dir, "tree.tar"), "-C", tree, "--numeric-owner", "--xattrs", "."); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(tree), os.Remove(deb))
}
