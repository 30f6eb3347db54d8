package ebpf

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	cilium "github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// Each thing that can be missing is said, with what to do, and nothing else is.
func TestProbe(t *testing.T) {
	ok := func() error { return nil }
	fine := machine{release: "6.1.0-18-amd64", pins: "/p", types: ok, call: ok, magic: func(string) (int64, error) { return unix.BPF_FS_MAGIC, nil }}
	if lacks := fine.probe(); len(lacks) != 0 {
		t.Errorf("of a fine machine: %+v", lacks)
	}
	failing := func(err error) func() error { return func() error { return fmt.Errorf("call: %w", err) } }
	for _, c := range []struct {
		name, what, todo string
		with             func(*machine)
	}{
		{"old", "6.0.9 is older", "6.1", func(m *machine) { m.release = "6.0.9" }},
		{"no types", "no /sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF", func(m *machine) { m.types = failing(os.ErrNotExist) }},
		{"no types for sure", "no /sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF", func(m *machine) { m.types = failing(btf.ErrNotSupported) }},
		{"no tracepoint", "cannot be traced", "CONFIG_TRACEPOINTS", func(m *machine) { m.types = failing(btf.ErrNotFound) }},
		{"no permission", "no permission", "CAP_BPF and CAP_PERFMON", func(m *machine) { m.call = failing(unix.EPERM) }},
		{"no eBPF", "has no eBPF", "CONFIG_BPF_SYSCALL", func(m *machine) { m.call = failing(unix.ENOSYS) }},
		{"no such map", "has no eBPF", "CONFIG_BPF_SYSCALL", func(m *machine) { m.call = failing(cilium.ErrNotSupported) }},
		{"ill", "does not work", "dmesg", func(m *machine) { m.call = failing(unix.ENOMEM) }},
		{"nowhere to pin", "no bpf file system", "mount -t bpf", func(m *machine) { m.magic = func(string) (int64, error) { return unix.TMPFS_MAGIC, nil } }},
		{"no directory", "no bpf file system", "mount -t bpf", func(m *machine) { m.magic = func(string) (int64, error) { return 0, unix.ENOENT } }},
	} {
		m := fine
		c.with(&m)
		lacks := m.probe()
		if len(lacks) != 1 || !strings.Contains(lacks[0].What, c.what) || !strings.Contains(lacks[0].ToDo, c.todo) {
			t.Errorf("%s: %+v", c.name, lacks)
		}
	}
	err := error(&LackError{[]Lack{{"no a", "get a"}, {"no b", "get b"}}})
	var lack *LackError
	if !errors.As(err, &lack) || !strings.HasSuffix(err.Error(), "no a; no b") || lack.ToDo() != "get a; get b" {
		t.Errorf("%q, %q", err, lack.ToDo())
	}
}

// What a machine lacks is said instead of what failed for that, but not instead of what the verifier has against a program.
func TestLackOr(t *testing.T) {
	nothing, mount := func() []Lack { return nil }, func() []Lack { return []Lack{{"nothing is mounted", "mount it"}} }
	failed := errors.New("pin: invalid argument")
	mute := fmt.Errorf("load: %w", &cilium.VerifierError{Cause: unix.EPERM})
	refused := fmt.Errorf("load: %w", &cilium.VerifierError{Cause: unix.EACCES, Log: []string{"R1 is a mystery"}})
	for _, c := range []struct {
		err   error
		probe func() []Lack
		want  string
	}{
		{failed, nothing, "pin: invalid argument"},
		{failed, mount, "this machine cannot measure with eBPF: nothing is mounted"},
		{mute, mount, "this machine cannot measure with eBPF: nothing is mounted"},
		{refused, nothing, refused.Error()},
		{refused, mount, refused.Error() + "\nthis machine cannot measure with eBPF: nothing is mounted"},
	} {
		got := lackOr(c.err, c.probe)
		var lack *LackError
		if got.Error() != c.want || errors.As(got, &lack) != (len(c.probe()) > 0) {
			t.Errorf("%v: %q, want %q", c.err, got, c.want)
		}
	}
}

func TestLoadConfig(t *testing.T) {
	for _, bad := range []LoadConfig{{Devices: -1}, {Devices: minors + 1}, {Tags: -1}, {Tags: maxTags + 1}} {
		if _, err := Load(bad); err == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
	for cpus, want := range map[int]int{1: 1, 2: 2, 3: 4, 8: 8, 100: MaxShards} {
		if got := shardsFor(cpus); got != want {
			t.Errorf("%d CPUs: %d shards, want %d", cpus, got, want)
		}
	}
}
