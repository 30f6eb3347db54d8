// Package doctor tells whether a machine can run the daemon, and what to do where it cannot.
package doctor

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"coppice/ebpf"
	"coppice/ublk"
)

// Level is how bad a finding is.
type Level string

// Levels. A machine with a Fail cannot serve devices.
const (
	OK   Level = "ok"
	Warn Level = "warn"
	Fail Level = "fail"
)

// Finding is what one check found.
type Finding struct {
	Check  string `json:"check"`
	Level  Level  `json:"level"`
	Detail string `json:"detail"`
	ToDo   string `json:"to_do,omitempty"`
}

// System is the machine as the checks see it. Its zero value is of no use; see [Host].
type System struct {
	Root      string // what the paths of /proc, /sys, /boot... are looked up under
	Release   string // of the kernel, as uname -r
	Arch      string
	PageSize  int
	EUID      int
	Now       time.Time
	Synced    bool   // the kernel's clock is disciplined
	Memory    uint64 // bytes
	NoFile    uint64 // hard limit
	MemLock   uint64 // hard limit
	PIDSpace  string // /proc/self/ns/pid
	RunType   int64  // file system magic of /run
	LookPath  func(string) (string, error)
	OpenUring func() error                  // makes and closes a ring
	OpenUblk  func() (ublk.Features, error) // asks the driver
	ProbeEBPF func() []ebpf.Lack            // tells what measuring in the kernel lacks
}

// Host returns the machine that the process runs on.
func Host() System {
	s := System{
		Root: "/", Arch: runtime.GOARCH, PageSize: os.Getpagesize(), EUID: os.Geteuid(), Now: time.Now(),
		LookPath: exec.LookPath, OpenUring: openUring, OpenUblk: openUblk, ProbeEBPF: ebpf.Probe,
	}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		s.Release = unix.ByteSliceToString(uts.Release[:])
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		s.Memory = info.Totalram * uint64(info.Unit)
	}
	s.NoFile, s.MemLock = hardLimit(unix.RLIMIT_NOFILE), hardLimit(unix.RLIMIT_MEMLOCK)
	var tx unix.Timex
	if _, err := unix.Adjtimex(&tx); err == nil {
		s.Synced = tx.Status&unix.STA_UNSYNC == 0
	}
	s.PIDSpace, _ = os.Readlink("/proc/self/ns/pid")
	var st unix.Statfs_t
	if unix.Statfs("/run", &st) == nil {
		s.RunType = st.Type
	}
	return s
}

func hardLimit(which int) uint64 {
	var l unix.Rlimit
	if unix.Getrlimit(which, &l) != nil {
		return 0
	}
	return l.Max
}

func openUblk() (ublk.Features, error) {
	c, err := ublk.Open("")
	if err != nil {
		return 0, err
	}
	return c.Features(), c.Close()
}

// Examine runs all checks, in an order in which the first failure is often the cause of the
// rest.
func (s System) Examine() []Finding {
	checks := []func() Finding{
		s.kernel, s.machine, s.user, s.driver, s.control, s.uring, s.pidSpace,
		s.memory, s.files, s.locked, s.runDir, s.clock, s.scheduler, s.udev, s.tools, s.ebpf,
	}
	list := make([]Finding, len(checks))
	for i, check := range checks {
		list[i] = check()
	}
	return list
}

// Failed tells whether any finding is a Fail.
func Failed(list []Finding) bool {
	for _, f := range list {
		if f.Level == Fail {
			return true
		}
	}
	return false
}

func finding(check string, level Level, todo, format string, args ...any) Finding {
	return Finding{Check: check, Level: level, Detail: fmt.Sprintf(format, args...), ToDo: todo}
}

func (s System) open() fs.FS { return os.DirFS(s.Root) }

// text returns a file's content without the space around it, or "".
func (s System) text(path string) string {
	b, err := fs.ReadFile(s.open(), path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (s System) exists(path string) bool {
	_, err := fs.Stat(s.open(), path)
	return err == nil
}
