package doctor

import (
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"
)

const (
	leastMemory = 256 << 20
	fineMemory  = 1 << 30
)

func (s System) memory() Finding {
	has := humanize.IBytes(s.Memory)
	switch {
	case s.Memory < leastMemory:
		return finding("memory", Fail, "use a machine with 1 GiB or more", "%s is too little", has)
	case s.Memory < fineMemory:
		return finding("memory", Warn, "use few devices, with --depth 32", "%s; a device's buffers can take depth x 512 KiB", has)
	}
	return finding("memory", OK, "", "%s", has)
}

func (s System) files() Finding {
	const fine = 65536 // a device has two files and a registered slot per queue
	if s.EUID != 0 && s.NoFile < fine {
		return finding("open files", Warn, "raise the hard limit (LimitNOFILE= in the unit, ulimit -Hn)",
			"at most %d per process; a thousand devices need more", s.NoFile)
	}
	return finding("open files", OK, "", "not limited for root")
}

func (s System) locked() Finding {
	const fine = 64 << 20
	if s.EUID != 0 && s.MemLock < fine {
		return finding("locked memory", Warn, "raise the hard limit (LimitMEMLOCK=infinity in the unit)",
			"at most %s for this user", humanize.IBytes(s.MemLock))
	}
	return finding("locked memory", OK, "", "not limited for root")
}

func (s System) runDir() Finding {
	if s.RunType != unix.TMPFS_MAGIC {
		return finding("run directory", Warn, "mount a tmpfs on /run, as every distribution does",
			"/run is not a tmpfs: what a killed daemon had not written yet is kept on a disk")
	}
	return finding("run directory", OK, "", "/run is a tmpfs")
}

// released is older than any clock that is right.
var released = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func (s System) clock() Finding {
	now := s.Now.UTC().Format("2006-01-02 15:04 MST")
	switch {
	case s.Now.Before(released):
		return finding("clock", Warn, "set the clock, run chrony or systemd-timesyncd", "%s is in the past", now)
	case !s.Synced:
		return finding("clock", Warn, "run chrony or systemd-timesyncd", "%s, not synchronised: times in reports may be wrong", now)
	}
	return finding("clock", OK, "", "%s, synchronised", now)
}

func (s System) scheduler() Finding {
	if s.exists("sys/module/mq_deadline") {
		return finding("I/O scheduler", OK, "", "mq-deadline is there; devices are set to none, see that no udev rule sets another for ublkb*")
	}
	return finding("I/O scheduler", OK, "", "devices are set to none")
}

// udev rules from before systemd 257 make no links in /dev/disk for ublk devices (systemd pull request 34709).
func (s System) udev() Finding {
	for _, dir := range []string{"etc", "usr/lib", "lib"} {
		rules := s.text(dir + "/udev/rules.d/60-persistent-storage.rules")
		switch {
		case rules == "":
			continue
		case strings.Contains(rules, "ublk"):
			return finding("udev", OK, "", "makes links by uuid and label for ublk devices")
		}
		return finding("udev", Warn, "mount by /dev/ublkbN, or with UUID= through blkid; systemd 257 brings the links",
			"its rules make no /dev/disk/by-uuid links for ublk devices")
	}
	return finding("udev", OK, "", "not installed: device nodes come from the kernel alone")
}

// tools are programs that the daemon or its users want, with their Debian packages.
var tools = []struct{ program, pkg, why string }{
	{"modprobe", "kmod", "loads the driver"},
	{"blkid", "util-linux", "tells what is on a device"},
	{"fuser", "psmisc", "tells who has a device open"},
}

func (s System) tools() Finding {
	var missing, packages []string
	for _, t := range tools {
		if _, err := s.LookPath(t.program); err != nil {
			missing = append(missing, t.program+" ("+t.why+")")
			packages = append(packages, t.pkg)
		}
	}
	if len(missing) > 0 {
		return finding("tools", Warn, "apt-get install "+strings.Join(packages, " "), "missing: %s", strings.Join(missing, ", "))
	}
	return finding("tools", OK, "", "all there; for leaves on remote disks add nbd-client or nvme-cli as needed")
}
