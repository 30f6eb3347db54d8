package vmtests

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"coppice/vmtests/wire"
)

// Disk is one virtio disk of a VM, found in the guest as /dev/disk/by-id/virtio-NAME.
type Disk struct {
	Name      string // its serial number: 1 to 20 letters and digits
	Path      string // raw file or block device on the host
	Snapshot  bool   // writes go to a temporary file and are dropped with the VM; Path is not changed
	ReadOnly  bool   // the guest sees a read-only disk
	Cache     string // cache mode of QEMU; default "writeback": the guest sees a volatile cache and its flushes are obeyed
	BlockSize int    // logical block size in bytes; default 512
	WriteLog  string // existing file on the host that gets every write and flush, in the format of package logwrites; not with Snapshot or ReadOnly
}

// GuestPath is where the guest finds the disk.
func (d Disk) GuestPath() string { return "/dev/disk/by-id/virtio-" + d.Name }

// cpuFlags make emulated figures usable: byte-wise "rep movsb" and costly vector checksums are hidden from the guest.
const cpuFlags = "max,-erms,-fsrm,-sse4.2,-avx,-avx2"

// countedCPUFlags are those of a machine that counts instructions, where one that is dear to emulate, such as those for checksums, costs what all others do.
const countedCPUFlags = "max,-erms,-fsrm,-avx,-avx2"

func (d Disk) args(index int) []string {
	id := fmt.Sprintf("disk%d", index)
	device := fmt.Sprintf("virtio-blk-pci,drive=%s,serial=%s", id, d.Name)
	if d.BlockSize != 0 {
		device += fmt.Sprintf(",logical_block_size=%d,physical_block_size=%d", d.BlockSize, max(d.BlockSize, 4096))
	}
	if d.WriteLog != "" {
		return []string{"-blockdev", d.logged(id), "-device", device + ",write-cache=on"}
	}
	cache := d.Cache
	if cache == "" {
		cache = "writeback"
	}
	drive := fmt.Sprintf("if=none,id=%s,format=raw,discard=unmap,cache=%s,file=%s", id, cache, escapeCommas(d.Path))
	if d.Snapshot {
		drive += ",snapshot=on"
	}
	if d.ReadOnly {
		drive += ",readonly=on"
	}
	return []string{"-drive", drive, "-device", device}
}

// logged describes the disk with a recorder in front of it.
func (d Disk) logged(id string) string {
	return fmt.Sprintf("driver=blklogwrites,node-name=%s,discard=unmap,file.driver=file,file.discard=unmap,file.filename=%s,"+
		"log.driver=file,log.filename=%s", id, escapeCommas(d.Path), escapeCommas(d.WriteLog))
}

// escapeCommas writes a value for one of QEMU's comma-separated options.
func escapeCommas(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// Addresses on the network of a guest that has one, which is QEMU's user network: who calls HostAddr reaches the host's loopback.
const (
	HostAddr  = "10.0.2.2"
	GuestAddr = "10.0.2.15/24"
)

// machineID is what the firmware of every VM says, so that a guest, which has no machine-id(5), is a node that can hold leases.
const machineID = "c0991ce0-0000-4000-8000-000000000001"

// qemuArgs is the whole command line of a VM whose files lie in dir.
func qemuArgs(cfg Config, kernel Kernel, accel Accel, dir string) []string {
	args := []string{
		"-name", "coppice-" + cfg.Name + ",debug-threads=on", "-uuid", machineID,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35", "-m", strconv.Itoa(cfg.MemMiB), "-smp", strconv.Itoa(cfg.CPUs),
		"-chardev", consoleDev(cfg, dir), "-serial", "chardev:console",
		"-device", "virtio-serial-pci",
		"-chardev", "socket,id=agent,path=" + filepath.Join(dir, "agent"),
		"-device", "virtserialport,chardev=agent,name=" + wire.PortName,
	}
	args = append(args, accel.args(cfg.Counted)...)
	network, card := "user,id=net,ipv6=off"+forwards(cfg.Forward), "virtio-net-pci,netdev=net"
	if own := cfg.Own; own != nil && own.Netboot != "" {
		network += ",bootfile=" + escapeCommas(own.Netboot)
		card += ",bootindex=0"
	} else {
		card += ",romfile="
		args = append(args, directBoot(cfg, kernel, accel, dir)...)
	}
	if cfg.Network {
		args = append(args, "-netdev", network, "-device", card)
	}
	for i, d := range cfg.Disks {
		args = append(args, d.args(i)...)
	}
	return append(args, cfg.QEMUArgs...)
}

// consoleDev is what is behind the serial line that the console is on. All that comes is in a file.
func consoleDev(cfg Config, dir string) string {
	file := escapeCommas(filepath.Join(dir, "console"))
	if cfg.Terminal == "" {
		return "file,id=console,path=" + file
	}
	return "socket,id=console,path=" + escapeCommas(cfg.Terminal) + ",logfile=" + file
}

// directBoot are the arguments by which QEMU itself loads the kernel, where the firmware does not.
func directBoot(cfg Config, kernel Kernel, accel Accel, dir string) []string {
	image, initrd := kernel.Image, filepath.Join(dir, "initrd")
	if cfg.Own != nil {
		image = cfg.Own.Image
	}
	return []string{"-kernel", image, "-initrd", initrd, "-append", kernelCommandLine(cfg, accel)}
}

// forwards are the options of the network by which ports of the host lead to the guest, in the order of the host's.
func forwards(ports map[int]int) (options string) {
	for _, host := range slices.Sorted(maps.Keys(ports)) {
		options += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:%d-:%d", host, ports[host])
	}
	return options
}

func kernelCommandLine(cfg Config, accel Accel) string {
	words := []string{"console=ttyS0", "quiet", "panic=-1", "oops=panic", "mitigations=off", "nokaslr", "log_buf_len=8M", "printk.devkmsg=on"}
	if accel == TCG {
		// An emulator that waits for a processor fails the kernel's test of the timer, which then panics.
		words = append(words, "clearcpuid=rep_good", "tsc=reliable", "clocksource=tsc", "no_timer_check")
	}
	if cfg.Counted {
		words = append(words, "vmtests.counted") // for tests that have to know
	}
	if cfg.KernelArgs != "" {
		words = append(words, cfg.KernelArgs)
	}
	return strings.Join(words, " ")
}
