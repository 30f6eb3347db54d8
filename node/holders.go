package node

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// usage is what block devices are used for, as far as that can be found out: mounts of this
// daemon's mount namespace, swap areas, and device-mapper or RAID devices on top. No answer does
// not mean no user.
type usage struct {
	proc   string
	sys    string
	mounts map[string][]string // mount points by major:minor
	swaps  map[string]bool     // by name
}

// readUsage reads the tables of mounts and swap areas once, for any number of devices.
func readUsage() usage { return readUsageAt("/proc", "/sys") }

func readUsageAt(proc, sys string) usage {
	u := usage{proc: proc, sys: sys, mounts: make(map[string][]string), swaps: make(map[string]bool)}
	mounts, _ := readMountinfo(proc)
	for _, m := range mounts {
		// In a sandbox of systemd some are there twice: below a path that is bound to itself, and above.
		if n := number(m); !slices.Contains(u.mounts[n], m.Mountpoint) {
			u.mounts[n] = append(u.mounts[n], m.Mountpoint)
		}
	}
	swaps, _ := os.ReadFile(filepath.Join(proc, "swaps"))
	for line := range strings.Lines(string(swaps)) {
		name, _, _ := strings.Cut(line, " ")
		u.swaps[filepath.Base(name)] = true
	}
	return u
}

// holders returns what has the block device at path, or a partition of it, in use.
func (u usage) holders(path string) []string {
	disk := filepath.Base(path)
	dir := filepath.Join(u.sys, "class/block", disk)
	found := u.holdersOf(disk, filepath.Join(dir, "dev"))
	parts, _ := filepath.Glob(filepath.Join(dir, disk+"*", "dev"))
	for _, p := range parts {
		found = append(found, u.holdersOf(filepath.Base(filepath.Dir(p)), p)...)
	}
	return found
}

// mountsOf returns where the block device at path and its partitions are mounted.
func (u usage) mountsOf(path string) (points []string) {
	disk := filepath.Base(path)
	dir := filepath.Join(u.sys, "class/block", disk)
	parts, _ := filepath.Glob(filepath.Join(dir, disk+"*", "dev"))
	for _, file := range append(parts, filepath.Join(dir, "dev")) {
		if number, err := os.ReadFile(file); err == nil {
			points = append(points, u.mounts[string(bytes.TrimSpace(number))]...)
		}
	}
	return points
}

// holdersOf is about one disk or partition, whose number is in a file.
func (u usage) holdersOf(name, numberFile string) []string {
	number, err := os.ReadFile(numberFile)
	if err != nil {
		return nil
	}
	var found []string
	for _, point := range u.mounts[string(bytes.TrimSpace(number))] {
		found = append(found, name+" mounted on "+point)
	}
	if u.swaps[name] {
		found = append(found, name+" used as swap")
	}
	entries, _ := os.ReadDir(filepath.Join(u.sys, "class/block", name, "holders"))
	for _, e := range entries {
		found = append(found, name+" below "+e.Name())
	}
	return found
}

// diskID returns the number of the ublk device that path is, is a partition of, or is a file on.
func diskID(path string) (int, bool) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, false
	}
	number := st.Dev
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		number = st.Rdev
	}
	link, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(number), unix.Minor(number)))
	if err != nil {
		return 0, false
	}
	return diskIDOf(link)
}

var diskInLink = regexp.MustCompile(`/ublkb([0-9]+)(/|$)`)

func diskIDOf(sysfsLink string) (int, bool) {
	m := diskInLink.FindStringSubmatch(sysfsLink)
	if m == nil {
		return 0, false
	}
	id, err := strconv.Atoi(m[1])
	return id, err == nil
}
