package doctor

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coppice/ebpf"
	"coppice/ublk"
)

const testRelease = "6.12.117+deb12-cloud-amd64"

// fine is a machine with nothing to complain about.
func fine(t *testing.T) System {
	t.Helper()
	s := System{
		Root: t.TempDir(), Release: testRelease, Arch: "amd64", PageSize: 4096, EUID: 0,
		Now: time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC), Synced: true, Memory: 16 << 30, NoFile: 1 << 20, MemLock: 1 << 40,
		PIDSpace: initialPIDSpace, RunType: unix.TMPFS_MAGIC,
		LookPath:  func(name string) (string, error) { return "/bin/" + name, nil },
		OpenUring: func() error { return nil },
		OpenUblk: func() (ublk.Features, error) {
			return ublk.FeatureRecovery | ublk.FeatureReissue | ublk.FeaturePerIODaemon, nil
		},
		ProbeEBPF: func() []ebpf.Lack { return nil },
	}
	s.put(t, "sys/module/ublk_drv/refcnt", "0")
	s.put(t, "proc/sys/kernel/io_uring_disabled", "0\n")
	return s
}

func (s System) put(t *testing.T, path, text string) {
	t.Helper()
	full := filepath.Join(s.Root, path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(full), 0o755), os.WriteFile(full, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
}

func TestFineMachine(t *testing.T) {
	list := fine(t).Examine()
	for _, f := range list {
		if f.Level != OK || f.Detail == "" || f.ToDo != "" {
			t.Errorf("%+v", f)
		}
	}
	if Failed(list) {
		t.Error("fails")
	}
}

func TestFindings(t *testing.T) {
	unloaded := func(t *testing.T, s *System) {
		t.Helper()
		if err := os.RemoveAll(filepath.Join(s.Root, "sys/module/ublk_drv")); err != nil {
			t.Fatal(err)
		}
		s.OpenUblk = func() (ublk.Features, error) { return 0, fmt.Errorf("open: %w", ublk.ErrNoDriver) }
	}
	modules := "lib/modules/" + testRelease
	for _, c := range []struct {
		name, check string
		level       Level
		say         string // in what was found or what is to be done
		with        func(*testing.T, *System)
	}{
		{"old kernel", "kernel", Fail, "6.1 or later", func(_ *testing.T, s *System) { s.Release = "5.15.0-91-generic" }},
		{"lower bound", "kernel", Warn, "recovery", func(_ *testing.T, s *System) { s.Release = "6.1.0-18-amd64" }},
		{"odd release", "kernel", Warn, "not understood", func(_ *testing.T, s *System) { s.Release = "custom" }},
		{"newer kernel", "kernel", OK, "7.0", func(_ *testing.T, s *System) { s.Release = "7.0.1" }},
		{"other machine", "machine", Warn, "riscv64", func(_ *testing.T, s *System) { s.Arch = "riscv64" }},
		{"large pages", "machine", Warn, "65536", func(_ *testing.T, s *System) { s.PageSize = 65536 }},
		{"not root", "user", Fail, "user 1000", func(_ *testing.T, s *System) { s.EUID = 1000 }},
		{"loadable driver", "ublk driver", OK, "the daemon loads it", func(t *testing.T, s *System) {
			unloaded(t, s)
			s.put(t, modules+"/modules.dep", "kernel/fs/ext4/ext4.ko.xz: x\nkernel/drivers/block/ublk_drv.ko.xz:\n")
		}},
		{"built-in driver", "ublk driver", Warn, "dmesg", func(t *testing.T, s *System) {
			unloaded(t, s)
			s.put(t, modules+"/modules.builtin", "kernel/drivers/block/ublk_drv.ko\n")
		}},
		{"driver not configured", "ublk driver", Fail, "CONFIG_BLK_DEV_UBLK", func(t *testing.T, s *System) {
			unloaded(t, s)
			s.put(t, "boot/config-"+testRelease, "CONFIG_X=y\n# CONFIG_BLK_DEV_UBLK is not set\n")
		}},
		{"modules package missing", "ublk driver", Fail, "linux-modules-extra-" + testRelease, func(t *testing.T, s *System) {
			unloaded(t, s)
			s.put(t, "proc/config.gz", zipped(t, "CONFIG_BLK_DEV_UBLK=m\nCONFIG_BLK_DEV_UBLK_LEGACY_OPCODES=y\n"))
		}},
		{"driver unknown", "ublk driver", Fail, "linux-image", unloaded},
		{"driver not loaded", "ublk control", Warn, "modprobe", unloaded},
		{"no access", "ublk control", Fail, "root", func(_ *testing.T, s *System) {
			s.OpenUblk = func() (ublk.Features, error) { return 0, errors.Join(ublk.ErrPermission, unix.EACCES) }
		}},
		{"driver ill", "ublk control", Fail, "dmesg", func(_ *testing.T, s *System) {
			s.OpenUblk = func() (ublk.Features, error) { return 0, unix.EIO }
		}},
		{"no recovery", "ublk control", Warn, "end with the daemon", func(_ *testing.T, s *System) {
			s.OpenUblk = func() (ublk.Features, error) { return 0, nil }
		}},
		{"one queue", "ublk control", OK, "one queue", func(_ *testing.T, s *System) {
			s.OpenUblk = func() (ublk.Features, error) { return ublk.FeatureRecovery | ublk.FeatureReissue, nil }
		}},
		{"io_uring off", "io_uring", Fail, "kernel.io_uring_disabled=1", func(t *testing.T, s *System) { s.put(t, "proc/sys/kernel/io_uring_disabled", "2") }},
		{"io_uring for root", "io_uring", OK, "works", func(t *testing.T, s *System) { s.put(t, "proc/sys/kernel/io_uring_disabled", "1") }},
		{"io_uring not for us", "io_uring", Fail, "root", func(t *testing.T, s *System) {
			s.put(t, "proc/sys/kernel/io_uring_disabled", "1")
			s.EUID = 1
		}},
		{"io_uring filtered", "io_uring", Fail, "seccomp", func(_ *testing.T, s *System) { s.OpenUring = func() error { return unix.EPERM } }},
		{"container", "pid namespace", Warn, "--pid=host", func(_ *testing.T, s *System) { s.PIDSpace = "pid:[4026532000]" }},
		{"tiny", "memory", Fail, "too little", func(_ *testing.T, s *System) { s.Memory = 100 << 20 }},
		{"small", "memory", Warn, "--depth 32", func(_ *testing.T, s *System) { s.Memory = 512 << 20 }},
		{"few files", "open files", Warn, "LimitNOFILE", func(_ *testing.T, s *System) { s.NoFile, s.EUID = 1024, 1 }},
		{"little locked", "locked memory", Warn, "LimitMEMLOCK", func(_ *testing.T, s *System) { s.MemLock, s.EUID = 64<<10, 1 }},
		{"run on disk", "run directory", Warn, "tmpfs", func(_ *testing.T, s *System) { s.RunType = unix.EXT4_SUPER_MAGIC }},
		{"clock behind", "clock", Warn, "set the clock", func(_ *testing.T, s *System) { s.Now = time.Unix(0, 0) }},
		{"clock free", "clock", Warn, "not synchronised", func(_ *testing.T, s *System) { s.Synced = false }},
		{"deadline scheduler", "I/O scheduler", OK, "mq-deadline", func(t *testing.T, s *System) { s.put(t, "sys/module/mq_deadline/refcnt", "0") }},
		{"old udev", "udev", Warn, "by-uuid", func(t *testing.T, s *System) {
			s.put(t, "usr/lib/udev/rules.d/60-persistent-storage.rules", `KERNEL!="loop*|nvme*|sd*", GOTO="end"`)
		}},
		{"new udev", "udev", OK, "links", func(t *testing.T, s *System) {
			s.put(t, "usr/lib/udev/rules.d/60-persistent-storage.rules", `KERNEL!="loop*|ublk*", GOTO="end"`)
		}},
		{"tools missing", "tools", Warn, "apt-get install psmisc", func(_ *testing.T, s *System) {
			s.LookPath = func(name string) (string, error) {
				if name == "fuser" {
					return "", os.ErrNotExist
				}
				return name, nil
			}
		}},
		{"no eBPF", "eBPF", Warn, "cannot be measured by source: no types; no permission", func(_ *testing.T, s *System) {
			s.ProbeEBPF = func() []ebpf.Lack {
				return []ebpf.Lack{{What: "no types", ToDo: "another kernel"}, {What: "no permission", ToDo: "as root"}}
			}
		}},
		{"eBPF to do", "eBPF", Warn, "another kernel; as root", func(_ *testing.T, s *System) {
			s.ProbeEBPF = func() []ebpf.Lack {
				return []ebpf.Lack{{What: "no types", ToDo: "another kernel"}, {What: "no permission", ToDo: "as root"}}
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := fine(t)
			c.with(t, &s)
			list := s.Examine()
			for _, f := range list {
				if f.Check != c.check {
					continue
				}
				if text := f.Detail + f.ToDo; f.Level != c.level || !strings.Contains(text, c.say) || strings.Contains(text, "\n") {
					t.Errorf("%+v", f)
				}
				if (f.ToDo == "") != (f.Level == OK) {
					t.Errorf("%s with %q to do", f.Level, f.ToDo)
				}
				if f.Level == Fail && !Failed(list) {
					t.Error("not failed on the whole")
				}
				return
			}
			t.Errorf("no finding %s", c.check)
		})
	}
}

func zipped(t *testing.T, text string) string {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// The real machine can be examined, whatever comes out.
func TestHost(t *testing.T) {
	s := Host()
	if s.Release == "" || s.Memory == 0 || s.NoFile == 0 || s.PIDSpace == "" {
		t.Errorf("host: %+v", s)
	}
	for _, f := range s.Examine() {
		if f.Check == "" || f.Detail == "" || f.Level != OK && f.ToDo == "" {
			t.Errorf("%+v", f)
		}
	}
}
