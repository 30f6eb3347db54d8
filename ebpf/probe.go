package ebpf

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	cilium "github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// Oldest is the oldest kernel that the programs are for.
const oldestMajor, oldestMinor = 6, 1

// Lack is something that a machine, or a process, does not have and the programs need.
type Lack struct {
	What string `json:"what"`
	ToDo string `json:"to_do"`
}

// LackError tells that the programs cannot be loaded here.
type LackError struct{ Lacks []Lack }

// Error says all that is missing.
func (e *LackError) Error() string {
	var all []string
	for _, l := range e.Lacks {
		all = append(all, l.What)
	}
	return "this machine cannot measure with eBPF: " + strings.Join(all, "; ")
}

// ToDo says all that can be done about it.
func (e *LackError) ToDo() string {
	var all []string
	for _, l := range e.Lacks {
		all = append(all, l.ToDo)
	}
	return strings.Join(all, "; ")
}

// machine is what [Probe] looks at.
type machine struct {
	release string
	pins    string       // directory of the file system for pins
	types   func() error // fails where the kernel does not describe what the programs use
	call    func() error // a call of bpf() that needs the capabilities
	magic   func(string) (int64, error)
}

// Probe returns what is missing for [Load] on this machine and by this process: nothing where it will work.
func Probe() []Lack {
	m := machine{pins: "/sys/fs/bpf", types: kernelTypes, call: makeMap, magic: fileSystem}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		m.release = unix.ByteSliceToString(uts.Release[:])
	}
	return m.probe()
}

func (m machine) probe() []Lack {
	var lacks []Lack
	lack := func(todo, format string, args ...any) {
		lacks = append(lacks, Lack{fmt.Sprintf(format, args...), todo})
	}
	var major, minor int
	if n, err := fmt.Sscanf(m.release, "%d.%d", &major, &minor); err == nil && n == 2 && (major < oldestMajor || major == oldestMajor && minor < oldestMinor) {
		lack(fmt.Sprintf("run Linux %d.%d or later", oldestMajor, oldestMinor), "Linux %s is older than %d.%d", m.release, oldestMajor, oldestMinor)
	}
	if err := m.types(); errors.Is(err, os.ErrNotExist) || errors.Is(err, btf.ErrNotSupported) {
		lack("run a kernel with CONFIG_DEBUG_INFO_BTF=y, as Debian's are", "the kernel does not describe its types (no /sys/kernel/btf/vmlinux)")
	} else if err != nil {
		lack("run a kernel with CONFIG_BLOCK=y, CONFIG_TRACEPOINTS=y and CONFIG_DEBUG_INFO_BTF=y, 6.1 or later", "the kernel's block layer cannot be traced: %v", err)
	}
	switch err := m.call(); {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		lack("run coppice ebpf load as root, or with CAP_BPF and CAP_PERFMON, outside of containers", "no permission to load eBPF programs (%v)", err)
	case errors.Is(err, unix.ENOSYS), errors.Is(err, cilium.ErrNotSupported):
		lack("run a kernel with CONFIG_BPF_SYSCALL=y and CONFIG_BPF_JIT=y", "the kernel has no eBPF (%v)", err)
	case err != nil:
		lack("look for what dmesg says of bpf", "eBPF does not work: %v", err)
	}
	if magic, err := m.magic(m.pins); err != nil || magic != unix.BPF_FS_MAGIC {
		lack("mount -t bpf bpf "+m.pins, "no bpf file system is mounted on %s", m.pins)
	}
	return lacks
}

func fileSystem(path string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, err
	}
	return st.Type, nil
}

// kernelTypes finds the tracepoints.
func kernelTypes() error {
	types, err := btf.LoadKernelSpec()
	if err != nil {
		return err
	}
	points := slices.Collect(maps.Values(pointOf))
	for _, at := range tracePoints {
		points = append(points, at.point)
	}
	for _, name := range points {
		var point *btf.Typedef
		if err := types.TypeByName("btf_trace_"+name, &point); err != nil {
			return fmt.Errorf("no tracepoint %s: %w", name, strip(err))
		}
	}
	return nil
}

// strip keeps an error about one type from reading like one about all.
func strip(err error) error {
	if errors.Is(err, btf.ErrNotFound) {
		return btf.ErrNotFound
	}
	return err
}

// makeMap makes and closes a map such as the programs have.
func makeMap() error {
	m, err := cilium.NewMap(&cilium.MapSpec{Type: cilium.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1, Flags: unix.BPF_F_MMAPABLE})
	if err != nil {
		return err
	}
	return m.Close()
}
