package node

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// FileSystem is a mounted file system.
type FileSystem struct {
	Number string   // of its block device, "MAJOR:MINOR", as in mountinfo
	Type   string   // ext4, xfs, ...
	Points []string // where it is mounted, in this mount namespace
}

// FileSystemsOn returns the file systems that are mounted, in the caller's mount namespace, from the block
// device at path, its partitions and what device-mapper or RAID made of them. It also returns the paths of the device and its
// partitions. It fails where there is no such device here.
func FileSystemsOn(path string) (mounted []FileSystem, nodes []string, err error) {
	return fileSystemsAt("/proc", "/sys", path)
}

func fileSystemsAt(proc, sys, path string) (mounted []FileSystem, nodes []string, err error) {
	disk := filepath.Base(path)
	class := filepath.Join(sys, "class/block")
	if _, err := os.Stat(filepath.Join(class, disk, "dev")); err != nil {
		return nil, nil, fmt.Errorf("find what is mounted from %s: %w", path, err)
	}
	names := []string{disk}
	parts, _ := filepath.Glob(filepath.Join(class, disk, disk+"*", "dev"))
	for _, p := range parts {
		names = append(names, filepath.Base(filepath.Dir(p)))
	}
	for _, name := range names {
		nodes = append(nodes, filepath.Join(filepath.Dir(path), name))
	}
	for i := 0; i < len(names); i++ { // grows
		above, _ := os.ReadDir(filepath.Join(class, names[i], "holders"))
		for _, e := range above {
			if !slices.Contains(names, e.Name()) {
				names = append(names, e.Name())
			}
		}
	}
	table, err := readMounts(proc)
	if err != nil {
		return nil, nil, fmt.Errorf("find what is mounted from %s: %w", path, err)
	}
	for _, name := range names {
		number, err := os.ReadFile(filepath.Join(class, name, "dev"))
		if err != nil {
			return nil, nil, fmt.Errorf("find what is mounted from %s: %w", path, err)
		}
		mounted = append(mounted, table.from(name, string(bytes.TrimSpace(number)))...)
	}
	return mounted, nodes, nil
}

// mountTable has the mounted file systems in order of their first mount.
type mountTable []mountEntry

type mountEntry struct {
	FileSystem
	source string
}

func readMounts(proc string) (mountTable, error) {
	mounts, err := readMountinfo(proc)
	var t mountTable
	for _, m := range mounts {
		i := slices.IndexFunc(t, func(e mountEntry) bool { return e.Number == number(m) })
		if i >= 0 {
			t[i].Points = append(t[i].Points, m.Mountpoint)
			continue
		}
		t = append(t, mountEntry{FileSystem{number(m), m.FSType, []string{m.Mountpoint}}, m.Source})
	}
	return t, err
}

// readMountinfo returns what is mounted in this mount namespace (proc_pid_mountinfo(5)).
func readMountinfo(proc string) ([]*mountinfo.Info, error) {
	f, err := os.Open(filepath.Join(proc, "self/mountinfo"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return mountinfo.GetMountsFromReader(f, nil)
}

// number is that of the block device which m is mounted from, as sysfs has it: "MAJOR:MINOR".
func number(m *mountinfo.Info) string { return fmt.Sprintf("%d:%d", m.Major, m.Minor) }

// from returns what is mounted from a block device. File systems over several devices (btrfs) have a number of their
// own, with major 0, and are known by their source.
func (t mountTable) from(name, number string) []FileSystem {
	var found []FileSystem
	for _, e := range t {
		if e.Number == number || strings.HasPrefix(e.Number, "0:") && e.source == "/dev/"+name {
			found = append(found, e.FileSystem)
		}
	}
	return found
}
