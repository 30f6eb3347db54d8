package ebpf

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// supported tells whether this machine says that it can measure. Where it does, what follows has to work; where it does not, it has said why.
func supported(t testing.TB) bool {
	t.Helper()
	able := true
	for _, l := range Probe() {
		if l.What == "" || l.ToDo == "" {
			t.Errorf("unclear: %+v", l)
		}
		// The tests mount one of their own.
		if !strings.Contains(l.What, "bpf file system") {
			t.Logf("not here: %s (to do: %s)", l.What, l.ToDo)
			able = false
		}
	}
	return able
}

// pinsDir mounts a bpf file system and returns a directory in it that does not exist yet.
func pinsDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatalf("mount bpf file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount bpf file system: %v", err)
		}
	})
	return filepath.Join(dir, "coppice")
}

func loadAt(t testing.TB, cfg LoadConfig) *Loaded {
	t.Helper()
	l, err := Load(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := Unload(cfg.Pins); err != nil {
			t.Error(err)
		}
	})
	return l
}

func openTables(t testing.TB, m Maps) *Tables {
	t.Helper()
	tables, err := Open(m)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tables.Close(); err != nil {
			t.Error(err)
		}
	})
	return tables
}

// loopDisk is a loop device over a file, read and written past the page cache.
type loopDisk struct {
	f      *os.File
	name   string
	id     DiskID
	buf    []byte
	queues int
	depth  int
}

func newLoopDisk(t testing.TB) *loopDisk {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, 16<<20)); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v\n%s", err, out)
	}
	path := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", path).CombinedOutput(); err != nil {
			t.Errorf("losetup --detach %s: %v\n%s", path, err, out)
		}
	})
	d := &loopDisk{name: filepath.Base(path), queues: 1, depth: 256}
	if d.f, err = os.OpenFile(path, os.O_RDWR|syscall.O_DIRECT, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.f.Close() })
	if d.buf, err = unix.Mmap(-1, 0, 64<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Munmap(d.buf); err != nil {
			t.Error(err)
		}
	})
	if d.id, err = DiskIDOf("/sys", d.name); err != nil {
		t.Fatal(err)
	}
	return d
}

func counted(list []Latency, op, source string) *Latency {
	for i := range list {
		if list[i].Op == op && list[i].Source == source {
			return &list[i]
		}
	}
	return &Latency{}
}

// sayOfAll says where the data of the next request comes from, whichever tag it gets.
func (d *Disk) sayOfAll(queues int, mark uint64) {
	for q := range queues {
		marks := d.Marks(q)
		for i := range marks {
			marks[i] = mark
		}
	}
}
