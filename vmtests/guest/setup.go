package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"coppice/vmtests/wire"
)

type mount struct {
	source, target, fstype, data string
	optional                     bool
}

var basics = []mount{
	{source: "proc", target: "/proc", fstype: "proc"},
	{source: "sysfs", target: "/sys", fstype: "sysfs"},
	{source: "devtmpfs", target: "/dev", fstype: "devtmpfs"},
	{source: "tmpfs", target: "/run", fstype: "tmpfs", data: "mode=755"},
}

var extras = []mount{
	{source: "devpts", target: "/dev/pts", fstype: "devpts", data: "ptmxmode=666"},
	{source: "tmpfs", target: "/dev/shm", fstype: "tmpfs"},
	{source: "tmpfs", target: "/tmp", fstype: "tmpfs"},
	{source: "debugfs", target: "/sys/kernel/debug", fstype: "debugfs", optional: true},
	{source: "tracefs", target: "/sys/kernel/tracing", fstype: "tracefs", optional: true},
	{source: "bpf", target: "/sys/fs/bpf", fstype: "bpf", optional: true},
	{source: "cgroup2", target: "/sys/fs/cgroup", fstype: "cgroup2", optional: true},
	{source: "configfs", target: "/sys/kernel/config", fstype: "configfs", optional: true},
}

func mountBasics() error { return mountAll(basics) }

func mountAll(list []mount) error {
	for _, m := range list {
		err := os.MkdirAll(m.target, 0o755)
		if err == nil {
			err = unix.Mount(m.source, m.target, m.fstype, 0, m.data)
		}
		if err != nil && !m.optional {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	return nil
}

// setup brings the machine to the state that the boot description asks for.
func setup() error {
	boot, err := readBoot()
	if err != nil {
		return err
	}
	for _, name := range boot.Modules {
		if err := loadModule(name); err != nil {
			return err
		}
	}
	if err := linkDisks(boot.Disks); err != nil {
		return err
	}
	if boot.System != "" {
		return startSystem(diskLink(boot.System), unix.MS_MOVE)
	}
	if boot.Union != nil {
		return startUnion(boot)
	}
	if boot.Userland != "" {
		if err := enterUserland(diskLink(boot.Userland)); err != nil {
			return err
		}
	}
	if err := mountAll(extras); err != nil {
		return err
	}
	for _, l := range boot.Links {
		if err := makeLink(l); err != nil {
			return err
		}
	}
	return tune()
}

func readBoot() (wire.Boot, error) {
	var boot wire.Boot
	text, err := os.ReadFile(wire.BootFile)
	if err == nil {
		err = json.Unmarshal(text, &boot)
	}
	if err != nil {
		return boot, fmt.Errorf("read boot description: %w", err)
	}
	return boot, nil
}

func diskLink(serial string) string { return "/dev/disk/by-id/virtio-" + serial }

// linkDisks waits until every named virtio disk is there and links it as udev would.
func linkDisks(serials []string) error {
	if err := os.MkdirAll("/dev/disk/by-id", 0o755); err != nil {
		return err
	}
	missing := make(map[string]bool, len(serials))
	for _, s := range serials {
		missing[s] = true
	}
	for deadline := time.Now().Add(30 * time.Second); len(missing) > 0; time.Sleep(10 * time.Millisecond) {
		files, _ := filepath.Glob("/sys/block/vd*/serial")
		for _, file := range files {
			text, err := os.ReadFile(file)
			serial := string(bytes.TrimRight(text, "\x00\n"))
			if err != nil || !missing[serial] {
				continue
			}
			node := "/dev/" + filepath.Base(filepath.Dir(file))
			if err := os.Symlink(node, diskLink(serial)); err != nil {
				return fmt.Errorf("link disk %s: %w", serial, err)
			}
			delete(missing, serial)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("find disks %v: not there after 30 s", missing)
		}
	}
	return nil
}

// enterUserland makes the read-only file system on disk, under a tmpfs overlay, the root of this process and of all
// that it starts. The initramfs stays reachable where the harness put its files.
func enterUserland(disk string) error {
	const lower, scratch, root = "/lower", "/scratch", "/newroot"
	if err := loadModule("overlay"); err != nil {
		return err
	}
	for _, dir := range []string{lower, scratch, root} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount(disk, lower, "ext4", unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("mount userland disk: %w", err)
	}
	if err := unix.Mount("tmpfs", scratch, "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount overlay scratch: %w", err)
	}
	if err := errors.Join(os.Mkdir(scratch+"/upper", 0o755), os.Mkdir(scratch+"/work", 0o755)); err != nil {
		return err
	}
	data := "lowerdir=" + lower + ",upperdir=" + scratch + "/upper,workdir=" + scratch + "/work"
	if err := unix.Mount("overlay", root, "overlay", 0, data); err != nil {
		return fmt.Errorf("mount overlay: %w", err)
	}
	return switchRoot(root, unix.MS_MOVE, "/lib/modules", "/harness")
}

// switchRoot makes a directory the root, with the kernel's file systems in it and what is kept of the old root. MS_MOVE takes the kernel's from the old
// root, MS_BIND leaves them there too, for who goes on in it.
func switchRoot(root string, how uintptr, kept ...string) error {
	move := func(dir string, flags uintptr) error {
		if err := os.MkdirAll(root+dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(dir, root+dir, "", flags, ""); err != nil {
			return fmt.Errorf("move %s into the new root: %w", dir, err)
		}
		return nil
	}
	for _, m := range basics {
		if err := move(m.target, how); err != nil {
			return err
		}
	}
	for _, dir := range kept {
		if err := move(dir, unix.MS_BIND); err != nil {
			return err
		}
	}
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move new root over the old: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	return unix.Chdir("/")
}

func makeLink(l wire.Link) error {
	if err := os.MkdirAll(filepath.Dir(l.Path), 0o755); err != nil {
		return err
	}
	_ = os.Remove(l.Path)
	if err := os.Symlink(l.Target, l.Path); err != nil {
		return fmt.Errorf("link %s: %w", l.Path, err)
	}
	return nil
}

// tune brings the loopback interface up and lets the agent ask the kernel for task states.
func tune() error {
	for file, value := range map[string]string{
		"/proc/sys/kernel/sysrq":    "1",
		"/proc/sys/kernel/hostname": "coppice-vm",
	} {
		if err := os.WriteFile(file, []byte(value), 0); err != nil {
			return fmt.Errorf("set %s: %w", file, err)
		}
	}
	return interfaceUp("lo", "127.0.0.1/8")
}

// interfaceUp gives a network interface an address, ADDRESS/BITS, and switches it on, unless it is.
func interfaceUp(name, address string) error {
	prefix, err := netip.ParsePrefix(address)
	if err != nil {
		return fmt.Errorf("address of %s: %w", name, err)
	}
	if ifi, err := net.InterfaceByName(name); err != nil || ifi.Flags&net.FlagUp != 0 {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	set := func(what uint, value []byte) error {
		return errors.Join(ifr.SetInet4Addr(value), unix.IoctlIfreq(fd, what, ifr))
	}
	err = errors.Join(set(unix.SIOCSIFADDR, prefix.Addr().AsSlice()), set(unix.SIOCSIFNETMASK, net.CIDRMask(prefix.Bits(), 32)))
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err = errors.Join(err, unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)); err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	return nil
}

// openPort finds the harness's virtio-serial port by name. It is read with blocking calls: the port's poll needs no
// place in the runtime's event loop.
func openPort() (int, error) {
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, file := range names {
			text, err := os.ReadFile(file)
			if err != nil || strings.TrimSpace(string(text)) != wire.PortName {
				continue
			}
			fd, err := unix.Open("/dev/"+filepath.Base(filepath.Dir(file)), unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				return -1, fmt.Errorf("open port: %w", err)
			}
			return fd, nil
		}
	}
	return -1, fmt.Errorf("find virtio port %s: not there after 30 s", wire.PortName)
}
