package node

import (
	"path/filepath"
	"reflect"
	"testing"
)

func TestFileSystemsOnDiskPartitionsAndAbove(t *testing.T) {
	dir := t.TempDir()
	proc, sys := filepath.Join(dir, "proc"), filepath.Join(dir, "sys")
	block := filepath.Join(sys, "class/block")
	for name, number := range map[string]string{
		"ublkb3": "259:3", "ublkb3p1": "259:4", "ublkb3p2": "259:5", "dm-0": "253:0", "ublkb3/ublkb3p1": "259:4", "ublkb3/ublkb3p2": "259:5", "ublkb33": "259:33",
	} {
		put(t, filepath.Join(block, name, "dev"), number+"\n")
	}
	put(t, filepath.Join(block, "ublkb3p2/holders/dm-0/dev"), "253:0\n")
	put(t, filepath.Join(proc, "self/mountinfo"), `22 1 0:20 / /proc rw - proc proc rw
40 1 259:4 / /srv/my\040disk rw,relatime shared:1 - ext4 /dev/ublkb3p1 rw
41 1 259:33 / /other rw - ext4 /dev/ublkb33 rw
42 1 253:0 / /lvm rw - xfs /dev/mapper/vg-lv rw
43 1 259:4 /sub /bind rw shared:1 master:2 - ext4 /dev/ublkb3p1 rw
44 1 0:50 / /btrfs rw - btrfs /dev/ublkb3 rw
45 1 0:51 / /tmp rw - tmpfs tmpfs rw
`)
	got, nodes, err := fileSystemsAt(proc, sys, "/dev/ublkb3")
	if err != nil {
		t.Fatal(err)
	}
	want := []FileSystem{
		{"0:50", "btrfs", []string{"/btrfs"}},
		{"259:4", "ext4", []string{"/srv/my disk", "/bind"}},
		{"253:0", "xfs", []string{"/lvm"}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("file systems %+v", got)
	}
	if want := []string{"/dev/ublkb3", "/dev/ublkb3p1", "/dev/ublkb3p2"}; !reflect.DeepEqual(nodes, want) {
		t.Errorf("nodes %q", nodes)
	}
	if _, _, err := fileSystemsAt(proc, sys, "/dev/ublkb4"); err == nil {
		t.Error("a device that is not there has no file systems")
	}
}
