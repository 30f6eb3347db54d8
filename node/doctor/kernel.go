package doctor

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"coppice/ebpf"
	"coppice/ublk"
	"coppice/ublk/uring"
)

// release parses "6.12.117-1-cloud" to 6, 12.
func release(s string) (major, minor int, ok bool) {
	n, err := fmt.Sscanf(s, "%d.%d", &major, &minor)
	return major, minor, n == 2 && err == nil
}

func (s System) kernel() Finding {
	major, minor, ok := release(s.Release)
	at := func(a, b int) bool { return major > a || major == a && minor >= b }
	switch {
	case !ok:
		return finding("kernel", Warn, "run Linux 6.12 or later", "version %q is not understood", s.Release)
	case !at(6, 1):
		return finding("kernel", Fail, "run Linux 6.1 or later; Debian 12 and 13 have it", "Linux %s is too old", s.Release)
	case !at(6, 12):
		return finding("kernel", Warn, "run Linux 6.12 or later where devices must outlive the daemon",
			"Linux %s serves devices; their recovery is tested from 6.12 on", s.Release)
	}
	return finding("kernel", OK, "", "Linux %s", s.Release)
}

func (s System) machine() Finding {
	if s.Arch != "amd64" && s.Arch != "arm64" {
		return finding("machine", Warn, "use amd64 or arm64", "%s is not tested", s.Arch)
	}
	if s.PageSize != 4096 {
		return finding("machine", Warn, "use a kernel with pages of 4 KiB", "%s with pages of %d bytes is not tested", s.Arch, s.PageSize)
	}
	return finding("machine", OK, "", "%s, pages of %d bytes", s.Arch, s.PageSize)
}

func (s System) user() Finding {
	if s.EUID != 0 {
		return finding("user", Fail, "run coppice daemon as root; run coppice doctor as root to check the rest for certain", "user %d is not root", s.EUID)
	}
	return finding("user", OK, "", "root")
}

// driver tells where the ublk driver is: loaded, in the kernel, beside it, or nowhere.
func (s System) driver() Finding {
	const check = "ublk driver"
	modules := "lib/modules/" + s.Release
	switch {
	case s.exists("sys/module/ublk_drv"), s.exists("dev/ublk-control"):
		return finding(check, OK, "", "loaded")
	case s.listed(modules + "/modules.builtin"):
		return finding(check, Warn, "look for errors of ublk in dmesg", "built into the kernel, but /dev/ublk-control is missing")
	case s.listed(modules + "/modules.dep"):
		return finding(check, OK, "", "module ublk_drv is there; the daemon loads it")
	case s.configured("is not set"):
		return finding(check, Fail, "run a kernel with CONFIG_BLK_DEV_UBLK=m: Debian's linux-image-amd64 (or -cloud-amd64, -arm64) of 6.12 or later has it",
			"this kernel was built without it (CONFIG_BLK_DEV_UBLK is not set)")
	case s.configured("=m"):
		return finding(check, Fail, "install the package with the kernel's further modules: linux-modules-extra-"+s.Release+" on Ubuntu, kernel-modules-extra on Fedora",
			"the kernel was built with module ublk_drv, but it is not in /%s", modules)
	}
	return finding(check, Fail, "install a kernel that has it, with its modules: linux-image-amd64 (or -cloud-amd64, -arm64) of 6.12 or later on Debian, linux-modules-extra-$(uname -r) on Ubuntu",
		"no module ublk_drv for kernel %s", s.Release)
}

// listed tells whether a list of modules names the driver.
func (s System) listed(list string) bool {
	for line := range strings.Lines(s.text(list)) {
		file, _, _ := strings.Cut(line, ":")
		if name, _, _ := strings.Cut(path.Base(strings.TrimSpace(file)), "."); name == "ublk_drv" {
			return true
		}
	}
	return false
}

// configured tells whether the kernel's configuration has CONFIG_BLK_DEV_UBLK followed by suffix.
func (s System) configured(suffix string) bool {
	config := []byte(s.text("boot/config-" + s.Release))
	if len(config) == 0 {
		config = s.configOfKernel()
	}
	sc := bufio.NewScanner(bytes.NewReader(config))
	for sc.Scan() {
		line := strings.TrimPrefix(sc.Text(), "# ")
		if rest, ok := strings.CutPrefix(line, "CONFIG_BLK_DEV_UBLK"); ok && strings.TrimSpace(rest) == suffix {
			return true
		}
	}
	return false
}

func (s System) configOfKernel() []byte {
	f, err := s.open().Open("proc/config.gz")
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil
	}
	const most = 4 << 20
	config, err := io.ReadAll(io.LimitReader(z, most))
	if err != nil {
		return nil
	}
	return config
}

func (s System) control() Finding {
	const check = "ublk control"
	have, err := s.OpenUblk()
	switch {
	case errors.Is(err, ublk.ErrNoDriver):
		return finding(check, Warn, "modprobe ublk_drv, where the driver is there", "/dev/ublk-control is missing: the driver is not loaded")
	case errors.Is(err, ublk.ErrPermission), errors.Is(err, fs.ErrPermission):
		return finding(check, Fail, "run as root; in a container, allow /dev/ublk-control and CAP_SYS_ADMIN", "no access: %v", oneLine(err))
	case err != nil:
		return finding(check, Fail, "look for errors of ublk in dmesg", "does not work: %v", oneLine(err))
	case !have.Has(ublk.FeatureRecovery | ublk.FeatureReissue):
		return finding(check, Warn, "run Linux 6.12 or later", "features %s: no recovery, devices end with the daemon", have)
	case !have.Has(ublk.FeaturePerIODaemon):
		return finding(check, OK, "", "features %s; devices that outlive the daemon have one queue (more from Linux 6.16 on)", have)
	}
	return finding(check, OK, "", "features %s", have)
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", ": ") }

func openUring() error {
	r, err := uring.New(uring.Config{Entries: 8})
	if err != nil {
		return err
	}
	return r.Close()
}

func (s System) uring() Finding {
	const check, sysctl = "io_uring", "proc/sys/kernel/io_uring_disabled"
	switch disabled := s.text(sysctl); {
	case disabled == "2":
		return finding(check, Fail, "sysctl kernel.io_uring_disabled=1 (leaves it to root)", "switched off for everybody (kernel.io_uring_disabled = 2)")
	case disabled == "1" && s.EUID != 0:
		return finding(check, Fail, "run as root", "left to root (kernel.io_uring_disabled = 1)")
	}
	if err := s.OpenUring(); err != nil {
		return finding(check, Fail, "in a container, allow io_uring_setup in its seccomp profile", "does not work: %v", oneLine(err))
	}
	return finding(check, OK, "", "works")
}

// initialPIDSpace is the number of the first PID namespace (PROC_PID_INIT_INO, include/linux/proc_ns.h).
const initialPIDSpace = "pid:[4026531836]"

func (s System) pidSpace() Finding {
	if s.PIDSpace != initialPIDSpace && s.PIDSpace != "" {
		return finding("pid namespace", Warn, "run the daemon in the machine's own (docker run --pid=host)",
			"not the machine's own: some kernels refuse to start devices from here")
	}
	return finding("pid namespace", OK, "", "the machine's own")
}

// ebpf tells whether requests can be measured in the kernel. Devices are served without.
func (s System) ebpf() Finding {
	lack := ebpf.LackError{Lacks: s.ProbeEBPF()}
	if len(lack.Lacks) > 0 {
		var what []string
		for _, l := range lack.Lacks {
			what = append(what, l.What)
		}
		return finding("eBPF", Warn, lack.ToDo(), "devices work; the latency of their requests cannot be measured by source: %s", strings.Join(what, "; "))
	}
	return finding("eBPF", OK, "", "requests can be measured in the kernel (coppice ebpf load)")
}
