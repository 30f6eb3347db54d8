package node

import (
	"bufio"
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

// readUsageAt takes mountinfo's field 3, major:minor, and field 5, the mount
// point (proc_pid_mountinfo(5)).
func readUsageAt(proc, sys string) usage {
	u := usage{proc: proc, sys: sys, mounts: make(map[string][]string), swaps: make(map[string]bool)}
	eachLine(filepath.Join(proc, "self/mountinfo"), func(fields []string) {
		if len(fields) < 5 {
			return
		}
		// In a sandbox of systemd some are there twice: below a path that is bound to itself, and above.
		if point := unescapeOctal(fields[4]); !slices.Contains(u.mounts[fields[2]], point) {
			u.mounts[fields[2]] = append(u.mounts[fields[2]], point)
		}
	})
	eachLine(filepath.Join(proc, "swaps"), func(fields []string) {
		if len(fields) > 0 {
			u.swaps[filepath.Base(fields[0])] = true
		}
	})
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

func eachLine(path string, do func(fields []string)) {
	data, err := os.ReadFile(path)
	if err != nil {
		return
	}
	sc := bufio.NewScanner(bytes.NewReader(data))
	for sc.Scan() {
		do(strings.Fields(sc.Text()))
	}
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

// unescapeOctal undoes the \ooo of mountinfo.
func unescapeOctal(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			var c int
			if n, err := fmt.Sscanf(s[i+1:i+4], "%3o", &c); n == 1 && err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
