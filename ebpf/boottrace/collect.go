package boottrace

import (
	"cmp"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"coppice/ebpf"
	"coppice/union"
)

// Collector takes what the kernel has recorded of one device, and makes a trace of it. It is not for use by several goroutines.
type Collector struct {
	disk ebpf.DiskID
	all  []ebpf.Traced
	more uint64 // that there was no room for
}

// NewCollector makes one for a disk.
func NewCollector(disk ebpf.DiskID) *Collector { return &Collector{disk: disk} }

// Add takes a request, unless it is another disk's. It never fails; the error is that of a callback.
func (c *Collector) Add(r ebpf.Traced) error {
	switch {
	case r.Disk != c.disk:
	case len(c.all) == MaxEvents:
		c.more++
	default:
		c.all = append(c.all, r)
	}
	return nil
}

// Len returns how many requests were taken.
func (c *Collector) Len() int { return len(c.all) }

// Facts are what has to be known beside the events.
type Facts struct {
	// Trace has what describes root, device and kernel, and how many events the kernel has lost.
	Trace
	// Now is the time, and Clock the kernel's own (CLOCK_MONOTONIC), at one moment.
	Now   time.Time
	Clock time.Duration
	// Leaf goes through what the layers of the device hold, now, as byte ranges, and is nil where that is not known.
	Leaf func(yield func(from, to int64) bool)
	// Cgroups has the paths of cgroups, by their numbers.
	Cgroups map[uint64]string
}

// Trace makes the trace. What nobody said the source of, and what the layers hold without its having been written while it was recorded, came from the layers: it is noted as that.
func (c *Collector) Trace(f Facts) *Trace {
	t := f.Trace
	t.Lost += c.more
	t.Processes, t.Cgroups, t.Events = nil, nil, nil
	slices.SortStableFunc(c.all, func(a, b ebpf.Traced) int { return cmp.Compare(a.Began, b.Began) })
	var began time.Duration
	if len(c.all) > 0 {
		began = c.all[0].Began
	}
	t.Began, t.Uptime = f.Now.Add(began-f.Clock), began
	processes, cgroups := table{most: maxName}, table{most: maxPath}
	for _, r := range c.all {
		e := Event{
			At: r.Began - began, Took: r.Took, Off: r.Off, Len: r.Len, Failed: r.Failed, From: union.Origins(r.Mark), PID: r.PID,
			Process: processes.place(r.Comm), Cgroup: cgroups.place(f.Cgroups[r.Cgroup]),
		}
		if r.Write {
			e.Op = Write
		}
		t.Processes, t.Cgroups = processes.names, cgroups.names
		if !t.takes(e) { // which the kernel does not make
			t.Lost++
			continue
		}
		t.Events = append(t.Events, e)
	}
	t.noteLeaf(f.Leaf)
	return &t
}

// noteLeaf notes the source of reads of what was in the layers all the time.
func (t *Trace) noteLeaf(leaf func(yield func(from, to int64) bool)) {
	if leaf == nil {
		return
	}
	var held, written extents
	for from, to := range leaf {
		held.add(from, to)
	}
	for _, e := range t.Events {
		if e.Op == Write {
			written.add(e.Off, e.Off+e.Len)
		}
	}
	for i := range t.Events {
		e := &t.Events[i]
		if e.Op == Read && e.From == 0 && held.covers(e.Off, e.Off+e.Len) && !written.touches(e.Off, e.Off+e.Len) {
			e.From = union.FromLeaf
		}
	}
}

// table gives names places.
type table struct {
	most   int // bytes of a name
	names  []string
	places map[string]int
}

// place returns the place of a name. A name beyond the bounds is one that is not known.
func (t *table) place(name string) int {
	if t.places == nil {
		t.places = map[string]int{"": 0}
		t.names = []string{""}
	}
	if len(name) > t.most {
		name = ""
	}
	i, ok := t.places[name]
	if !ok && len(t.names) < maxNames {
		i = len(t.names)
		t.places[name] = i
		t.names = append(t.names, name)
	}
	return i
}

// CgroupPaths returns the paths of all cgroups below the mount point of their unified hierarchy, by their numbers, that of the root included: "/". Where there is no such hierarchy, there are none.
func CgroupPaths(mount string) map[uint64]string {
	paths := make(map[uint64]string)
	_ = filepath.WalkDir(mount, func(path string, entry fs.DirEntry, err error) error { // those that are removed meanwhile are not known
		if err != nil || !entry.IsDir() || len(paths) == maxNames {
			return nil
		}
		info, err := os.Stat(path)
		if err != nil {
			return nil
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			paths[st.Ino] = "/" + strings.TrimPrefix(strings.TrimPrefix(path, mount), "/")
		}
		return nil
	})
	return paths
}
