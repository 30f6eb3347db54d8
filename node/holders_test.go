package node

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
)

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestHoldersOfDiskAndPartitions(t *testing.T) {
	dir := t.TempDir()
	proc, sys := filepath.Join(dir, "proc"), filepath.Join(dir, "sys")
	block := filepath.Join(sys, "class/block")
	put(t, filepath.Join(block, "ublkb3/dev"), "259:3\n")
	put(t, filepath.Join(block, "ublkb3/ublkb3p1/dev"), "259:4\n")
	put(t, filepath.Join(block, "ublkb3/ublkb3p2/dev"), "259:5\n")
	put(t, filepath.Join(block, "ublkb3p2/holders/dm-0/dev"), "253:0\n")
	put(t, filepath.Join(block, "ublkb33/dev"), "259:33\n")
	put(t, filepath.Join(proc, "self/mountinfo"), `22 1 0:20 / /proc rw - proc proc rw
40 1 259:4 / /srv/my\040disk rw,relatime shared:1 - ext4 /dev/ublkb3p1 rw
41 1 259:33 / /other rw - ext4 /dev/ublkb33 rw
`)
	put(t, filepath.Join(proc, "swaps"), "Filename Type Size Used Priority\n/dev/ublkb3 partition 1 0 -2\n")

	got := readUsageAt(proc, sys).holders("/dev/ublkb3")
	slices.Sort(got)
	want := []string{"ublkb3 used as swap", "ublkb3p1 mounted on /srv/my disk", "ublkb3p2 below dm-0"}
	if !slices.Equal(got, want) {
		t.Errorf("holders %q, not %q", got, want)
	}
}

func TestOpenersOfDiskAndPartitions(t *testing.T) {
	dir := t.TempDir()
	proc, sys := filepath.Join(dir, "proc"), filepath.Join(dir, "sys")
	put(t, filepath.Join(sys, "class/block/ublkb3/ublkb3p1/dev"), "259:4\n")
	for pid, target := range map[string]string{
		"10": "/dev/ublkb3", "11": "/dev/ublkb3p1", "12": "/dev/ublkb33", "13": "socket:[1]", "self": "/dev/ublkb3",
		strconv.Itoa(os.Getpid()): "/dev/ublkb3",
	} {
		put(t, filepath.Join(proc, pid, "comm"), "program"+pid+"\n")
		if err := os.MkdirAll(filepath.Join(proc, pid, "fd"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, filepath.Join(proc, pid, "fd", "7")); err != nil {
			t.Fatal(err)
		}
	}
	put(t, filepath.Join(proc, "14/comm"), "ended\n")
	got := readUsageAt(proc, sys).openers("/dev/ublkb3")
	slices.Sort(got)
	want := []string{"ublkb3 open in program10 (process 10)", "ublkb3 open in program11 (process 11)"}
	if !slices.Equal(got, want) {
		t.Errorf("openers %q, not %q", got, want)
	}
	if got := readUsageAt(proc, sys).openers("/dev/ublkb4"); len(got) > 0 {
		t.Errorf("a device that nobody has open is open: %q", got)
	}
}

func TestHoldersOfNothing(t *testing.T) {
	if got := readUsage().holders("/dev/ublkb999999"); got != nil {
		t.Errorf("a device that is not there is held by %q", got)
	}
}

func TestDiskIDOfSysfsLink(t *testing.T) {
	for link, want := range map[string]int{
		"../../devices/virtual/block/ublkb0":             0,
		"../../devices/virtual/block/ublkb12/ublkb12p1":  12,
		"../../devices/pci0000:00/virtio1/block/vda":     -1,
		"../../devices/virtual/block/notublkb3":          -1,
		"../../devices/virtual/block/ublkb9999999999999": 9999999999999,
	} {
		id, ok := diskIDOf(link)
		if !ok {
			id = -1
		}
		if id != want {
			t.Errorf("%s: %d, not %d", link, id, want)
		}
	}
}
