package node

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// holders returns what has the block device at path, or a partition of it, in use, as far
// as that can be found out: mounts of this daemon's mount namespace, swap areas,
// and device-mapper or RAID devices on top. No answer does not mean no user.
func holders(path string) []string {
	name := filepath.Base(path)
	h := holderSearch{proc: "/proc", sys: "/sys", disk: name}
	return h.find()
}

type holderSearch struct{ proc, sys, disk string }

func (h holderSearch) find() []string {
	numbers := h.numbers()
	if len(numbers) == 0 {
		return nil
	}
	found := h.mounts(numbers)
	found = append(found, h.swaps(numbers)...)
	for name := range numbers {
		found = append(found, h.stacked(name)...)
	}
	return found
}

// numbers returns the major:minor of the disk and its partitions, by name.
func (h holderSearch) numbers() map[string]string {
	dir := filepath.Join(h.sys, "class/block", h.disk)
	m := make(map[string]string)
	add := func(name, file string) {
		if data, err := os.ReadFile(file); err == nil {
			m[name] = string(bytes.TrimSpace(data))
		}
	}
	add(h.disk, filepath.Join(dir, "dev"))
	parts, _ := filepath.Glob(filepath.Join(dir, h.disk+"*", "dev"))
	for _, p := range parts {
		add(filepath.Base(filepath.Dir(p)), p)
	}
	return m
}

// mounts searches mountinfo (proc_pid_mountinfo(5)): field 3 is major:minor, field 5 the
// mount point.
func (h holderSearch) mounts(numbers map[string]string) []string {
	var found []string
	eachLine(filepath.Join(h.proc, "self/mountinfo"), func(fields []string) {
		if len(fields) < 5 {
			return
		}
		for name, number := range numbers {
			if fields[2] == number {
				found = append(found, fmt.Sprintf("%s mounted on %s", name, unescapeOctal(fields[4])))
			}
		}
	})
	return found
}

func (h holderSearch) swaps(numbers map[string]string) []string {
	var found []string
	eachLine(filepath.Join(h.proc, "swaps"), func(fields []string) {
		if len(fields) == 0 {
			return
		}
		if name := filepath.Base(fields[0]); numbers[name] != "" {
			found = append(found, name+" used as swap")
		}
	})
	return found
}

func (h holderSearch) stacked(name string) []string {
	entries, _ := os.ReadDir(filepath.Join(h.sys, "class/block", name, "holders"))
	var found []string
	for _, e := range entries {
		found = append(found, fmt.Sprintf("%s below %s", name, e.Name()))
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
