//go:build vm

package vmtests

import "strings"

// besideRoot are units of the system that have nothing to do with its root, its packages, or its console: boots without them take half the
// processor's time. TestBoot has them all in its first boot, and in make long in each.
var besideRoot = []string{
	"coppice.service", "dbus.service", "dbus.socket", "dev-hugepages.mount", "dev-mqueue.mount", "e2scrub_reap.service", "kmod-static-nodes.service", "modprobe@configfs.service",
	"modprobe@dm_mod.service", "modprobe@drm.service", "modprobe@efi_pstore.service", "modprobe@fuse.service", "modprobe@loop.service", "modprobe@ublk_drv.service", "networking.service",
	"sys-fs-fuse-connections.mount", "sys-kernel-config.mount", "sys-kernel-debug.mount", "systemd-logind.service", "systemd-modules-load.service",
	"systemd-pstore.service", "systemd-random-seed.service", "systemd-sysctl.service", "systemd-sysusers.service", "systemd-udev-trigger.service", "systemd-update-utmp.service",
	"systemd-user-sessions.service",
}

// fixedAddress is that of a guest without DHCP, as the kernel's parameter ip= has it.
var fixedAddress = strings.TrimSuffix(GuestAddr, "/24") + "::" + HostAddr + ":255.255.255.0:::off"

// bootShort has a machine boot without what no count of boots is about.
func (m *node) bootShort() {
	m.cfg.CPUs, m.cfg.KernelArgs = 1, strings.Replace(m.cfg.KernelArgs, "ip=dhcp", "ip="+fixedAddress, 1)
	for _, unit := range besideRoot {
		m.cfg.KernelArgs += " systemd.mask=" + unit
	}
}
