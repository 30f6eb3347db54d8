package node

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// openers returns which other processes have the block device at path, or a partition of it, open. To the kernel they are
// no obstacle: it takes the device away, and they get errors. Processes that this one may not look into, and those in other
// process namespaces than its own and below, are not seen.
func (u usage) openers(path string) []string {
	names := u.nodeNames(path)
	self := fmt.Sprint(os.Getpid())
	processes, _ := filepath.Glob(filepath.Join(u.proc, "[0-9]*"))
	var found []string
	for _, process := range processes {
		if pid := filepath.Base(process); pid == self || !holdsOpen(process, names) {
			continue
		}
		program, _ := os.ReadFile(filepath.Join(process, "comm"))
		found = append(found, fmt.Sprintf("%s open in %s (process %s)", filepath.Base(path), strings.TrimSpace(string(program)), filepath.Base(process)))
	}
	return found
}

// nodeNames are the device nodes of a disk and its partitions.
func (u usage) nodeNames(path string) []string {
	names := []string{path}
	parts, _ := filepath.Glob(filepath.Join(u.sys, "class/block", filepath.Base(path), filepath.Base(path)+"*", "dev"))
	for _, p := range parts {
		names = append(names, filepath.Join(filepath.Dir(path), filepath.Base(filepath.Dir(p))))
	}
	return names
}

// holdsOpen only reads links: looking at what they lead to might hang.
func holdsOpen(process string, names []string) bool {
	files, err := os.ReadDir(filepath.Join(process, "fd"))
	if err != nil {
		return false // it has ended
	}
	return slices.ContainsFunc(files, func(f os.DirEntry) bool {
		target, err := os.Readlink(filepath.Join(process, "fd", f.Name()))
		return err == nil && slices.Contains(names, target)
	})
}

const (
	// openersPatience is how long those are waited for who have a device open for a moment, as udev does.
	openersPatience = time.Second
	openersPause    = 50 * time.Millisecond
)

// lastingOpeners returns who keeps the device at path open.
func lastingOpeners(path string) []string {
	for began := time.Now(); ; time.Sleep(openersPause) {
		found := readUsage().openers(path)
		if len(found) == 0 || time.Since(began) > openersPatience {
			return found
		}
	}
}
