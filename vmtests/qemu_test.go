package vmtests

import (
	"slices"
	"strings"
	"testing"
)

func TestCommandLine(t *testing.T) {
	cfg := Config{Name: "x", CPUs: 2, MemMiB: 512, Network: true, Forward: map[int]int{20001: 81, 20000: 80}, KernelArgs: "more=1", Disks: []Disk{
		{Name: "root", Path: "/a,b", Snapshot: true},
		{Name: "leaf", Path: "/leaf", BlockSize: 512, Cache: "none", ReadOnly: true},
		{Name: "taped", Path: "/taped", WriteLog: "/a,log"},
	}}
	args := qemuArgs(cfg, Kernel{Image: "/k"}, TCG, "/dir")
	for _, want := range []string{
		"tcg,thread=multi", cpuFlags, "coppice-x,debug-threads=on", machineID,
		"if=none,id=disk0,format=raw,discard=unmap,cache=writeback,file=/a,,b,snapshot=on",
		"if=none,id=disk1,format=raw,discard=unmap,cache=none,file=/leaf,readonly=on",
		"virtio-blk-pci,drive=disk1,serial=leaf,logical_block_size=512,physical_block_size=4096",
		"driver=blklogwrites,node-name=disk2,discard=unmap,file.driver=file,file.discard=unmap,file.filename=/taped,log.driver=file,log.filename=/a,,log",
		"user,id=net,ipv6=off,hostfwd=tcp:127.0.0.1:20000-:80,hostfwd=tcp:127.0.0.1:20001-:81", "virtio-blk-pci,drive=disk2,serial=taped,write-cache=on",
	} {
		if !slices.Contains(args, want) {
			t.Errorf("command line lacks %q:\n%s", want, shellQuote(args))
		}
	}
	for terminal, want := range map[string]string{"": "file,id=console,path=/dir/console", "/a,b": "socket,id=console,path=/a,,b,logfile=/dir/console"} {
		if got := consoleDev(Config{Terminal: terminal}, "/dir"); got != want {
			t.Errorf("console of terminal %q: %q", terminal, got)
		}
	}
	line := args[slices.Index(args, "-append")+1]
	for _, want := range []string{"panic=-1", "clocksource=tsc", "no_timer_check", "clearcpuid=rep_good", "more=1"} {
		if !strings.Contains(line, want) {
			t.Errorf("kernel command line %q lacks %q", line, want)
		}
	}
	if line := kernelCommandLine(cfg, KVM); strings.Contains(line, "clearcpuid") {
		t.Errorf("kernel command line for KVM %q hides features of the CPU", line)
	}
}

func TestCountedCommandLine(t *testing.T) {
	args := qemuArgs(Config{Name: "x", CPUs: 1, Counted: true}, Kernel{Image: "/k"}, TCG, "/dir")
	for _, want := range []string{"tcg,thread=single", countedCPUFlags, "-icount", "shift=0,align=off,sleep=on"} {
		if !slices.Contains(args, want) {
			t.Errorf("command line lacks %q:\n%s", want, shellQuote(args))
		}
	}
	if line := args[slices.Index(args, "-append")+1]; !strings.Contains(line, "vmtests.counted") {
		t.Errorf("kernel command line %q does not say that instructions are counted", line)
	}
}

func TestShellQuote(t *testing.T) {
	if got, want := shellQuote([]string{"a", "b c", "it's"}), `a 'b c' 'it'\''s'`; got != want {
		t.Errorf("quoted %s, want %s", got, want)
	}
}

func TestLastLines(t *testing.T) {
	if got := lastLines("a\nb\nc\n", 2); got != "b\nc" {
		t.Errorf("last lines %q", got)
	}
}

func TestDirectBoot(t *testing.T) {
	harness := strings.Join(qemuArgs(Config{Name: "x", Network: true}, Kernel{Image: "/k"}, TCG, "/dir"), " ")
	own := strings.Join(qemuArgs(Config{Name: "x", Network: true, Own: &OwnKernel{Image: "/own", Initrd: "/initrd"}, QEMUArgs: []string{"-smbios", "type=11"}}, Kernel{Image: "/k"}, TCG, "/dir"), " ")
	network := strings.Join(qemuArgs(Config{Name: "x", Network: true, Own: &OwnKernel{Netboot: "http://10.0.2.2:80/a,b"}}, Kernel{Image: "/k"}, TCG, "/dir"), " ")
	for _, c := range []struct{ args, want string }{
		{harness, "-kernel /k -initrd /dir/initrd -append "},
		{harness, "netdev=net,romfile= "},
		{own, "-kernel /own -initrd /dir/initrd -append "},
		{own, " -smbios type=11"},
		{network, ",bootfile=http://10.0.2.2:80/a,,b "},
		{network, "netdev=net,bootindex=0"},
	} {
		if !strings.Contains(c.args+" ", c.want) {
			t.Errorf("%q is not in %s", c.want, c.args)
		}
	}
	if strings.Contains(network, "-kernel") || strings.Contains(network, "romfile=") {
		t.Errorf("a machine that boots from the network gets a kernel or no firmware: %s", network)
	}
}
