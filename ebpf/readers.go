package ebpf

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	cilium "github.com/cilium/ebpf"
)

// How many are told apart at a time: whom there is no room for is the one that was heard of least lately. The kernel keeps up to 128 free places for each CPU, so that fewer
// would be forgotten early.
const (
	maxProcesses = 16384
	maxCgroups   = 16384
	maxTotals    = 8192
	maxCached    = 4096
)

// optionalPoint is where a program is attached that others do without.
type optionalPoint struct{ program, point string }

var readerPoints = []optionalPoint{{readersProgCountRequest, "block_rq_complete"}, {readersProgNoteAsker, "block_rq_issue"}}

// cachePoints are functions of the kernel. Where they cannot be traced, as on arm64 before Linux 6.4, nobody knows what the page cache is good for, and all else works.
var cachePoints = []optionalPoint{{pagecacheProgCountRead, "filemap_read"}, {pagecacheProgCountFault, "filemap_fault"}}

// Prefixes of directories below those of the pins.
const (
	readersDir   = "readers_"
	pagecacheDir = "pagecache_"
)

// readerDirs are where what counts who reads is pinned, and what counts what programs have through the page cache, for the maps that are pinned in shared.
func readerDirs(cfg LoadConfig, shared string) []string {
	return []string{
		filepath.Join(cfg.Pins, nameOf(readersDir, _ReadersBytes, shared, strconv.Itoa(cfg.Tags))), filepath.Join(cfg.Pins, nameOf(pagecacheDir, _PagecacheBytes)),
	}
}

// attachReaders has it counted who reads. What cannot be counted of the page cache is left out: left says why.
func attachReaders(cfg LoadConfig, shared string) (left, err error) {
	dirs := readerDirs(cfg, shared)
	if err := attachOnce(dirs[0], readerPoints, func() (*cilium.Collection, error) { return newReaders(cfg, shared) }); err != nil {
		return nil, err
	}
	return attachOnce(dirs[1], cachePoints, newPagecache), nil
}

// nameOf tells programs, and what they were loaded with, from others.
func nameOf(prefix string, programs []byte, with ...string) string {
	h := sha256.New()
	h.Write(programs)
	fmt.Fprintf(h, "%q %d %d %d %d", with, maxProcesses, maxCgroups, maxTotals, maxCached)
	const length = 8
	return prefix + hex.EncodeToString(h.Sum(nil)[:length])
}

// attachOnce attaches and pins programs, unless they are.
func attachOnce(dir string, points []optionalPoint, load func() (*cilium.Collection, error)) error {
	last := filepath.Join(dir, linkPin+points[len(points)-1].program)
	if _, err := os.Stat(last); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.RemoveAll(dir); err != nil { // what a loader that was killed has left
		return err
	}
	c, err := load()
	if err != nil {
		return err
	}
	defer c.Close() // what is pinned stays
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := pinAll(c, dir, points); err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	return nil
}

// pinAll pins what a collection has; the links come last.
func pinAll(c *cilium.Collection, dir string, points []optionalPoint) error {
	for name, m := range c.Maps {
		if strings.HasPrefix(name, ".") { // constants
			continue
		}
		if err := m.Pin(filepath.Join(dir, mapPin+name)); err != nil {
			return err
		}
	}
	for _, at := range points {
		if err := c.Programs[at.program].Pin(filepath.Join(dir, programPin+at.program)); err != nil {
			return err
		}
		if err := attachPinned(c.Programs[at.program], dir, at.program, at.point); err != nil {
			return err
		}
	}
	return nil
}

// newReaders loads the programs that count who reads, on the maps that are pinned in a directory.
func newReaders(cfg LoadConfig, shared string) (*cilium.Collection, error) {
	spec, err := loadReaders()
	if err != nil {
		return nil, err
	}
	replaced := make(map[string]*cilium.Map)
	for _, name := range []string{readersMapDevices, readersMapMarks} {
		m, err := cilium.LoadPinnedMap(filepath.Join(shared, mapPin+name), nil)
		if err != nil {
			return nil, fmt.Errorf("open pinned map: %w", err)
		}
		defer func() { _ = m.Close() }()
		replaced[name], spec.Maps[name].MaxEntries = m, m.MaxEntries()
	}
	spec.Maps[readersMapAskers].MaxEntries = uint32(cfg.Tags)
	spec.Maps[readersMapProcesses].MaxEntries = maxProcesses
	spec.Maps[readersMapCgroups].MaxEntries = maxCgroups
	spec.Maps[readersMapTotals].MaxEntries = maxTotals
	return collect(spec, replaced)
}

func newPagecache() (*cilium.Collection, error) {
	spec, err := loadPagecache()
	if err != nil {
		return nil, err
	}
	spec.Maps[pagecacheMapCached].MaxEntries = maxCached
	return collect(spec, nil)
}

func collect(spec *cilium.CollectionSpec, replaced map[string]*cilium.Map) (*cilium.Collection, error) {
	c, err := cilium.NewCollectionWithOptions(spec, cilium.CollectionOptions{MapReplacements: replaced})
	return c, withVerifier(err)
}

// Did is what somebody has had of a disk. All counters grow.
type Did struct {
	Reads       uint64 `json:"reads"`
	ReadBytes   uint64 `json:"read_bytes"`
	Writes      uint64 `json:"writes"`
	WriteBytes  uint64 `json:"write_bytes"`
	FilledBytes uint64 `json:"filled_bytes"` // those of ReadBytes that went into the page cache
	// Misses are reads with data that this machine did not have, by the farthest place that gave some: peer, appliance, root.
	Misses    map[string]uint64 `json:"misses"`
	MissBytes map[string]uint64 `json:"miss_bytes"` // all that these read
}

// farSources are the sources that a miss can have, by what the programs count them as.
var farSources = sources[len(sources)-len(readersDid{}.Misses):]

func newDid(d readersDid) Did {
	v := Did{d.Reads, d.ReadBytes, d.Writes, d.WriteBytes, d.FilledBytes, make(map[string]uint64), make(map[string]uint64)}
	for i, name := range farSources {
		v.Misses[name], v.MissBytes[name] = d.Misses[i], d.MissBytes[i]
	}
	return v
}

// Less returns what is left of d without other.
func (d Did) Less(other Did) Did {
	d.Reads, d.ReadBytes = less(d.Reads, other.Reads), less(d.ReadBytes, other.ReadBytes)
	d.Writes, d.WriteBytes = less(d.Writes, other.Writes), less(d.WriteBytes, other.WriteBytes)
	d.FilledBytes = less(d.FilledBytes, other.FilledBytes)
	d.Misses, d.MissBytes = lessEach(d.Misses, other.Misses), lessEach(d.MissBytes, other.MissBytes)
	return d
}

func less(n, m uint64) uint64 { return max(n, m) - m }

func lessEach(n, m map[string]uint64) map[string]uint64 {
	all := make(map[string]uint64, len(n))
	for key := range n {
		all[key] = less(n[key], m[key])
	}
	return all
}

// Process is a process that has used a disk.
type Process struct {
	PID     uint32 `json:"pid"`        // in the first namespace; 0: not known
	Started uint64 `json:"started_ns"` // after the kernel: tells it from others of the same number
	Name    string `json:"name"`       // its command, at most 15 characters of it
	Did
}

// Cgroup is a cgroup whose processes have used a disk.
type Cgroup struct {
	ID   uint64 `json:"id"`             // inode number of its directory; 0: not known
	Path string `json:"path,omitempty"` // absent where there is no such cgroup any more
	Did
}

// Cached is what programs had of a disk, or of file systems on it, through the page cache.
type Cached struct {
	ReadBytes uint64 `json:"read_bytes"` // by read() and its like
	Faults    uint64 `json:"faults"`     // pages of mapped files that were touched
}

// DiskReaders is who has used a disk, since the programs were loaded or the disk was measured first.
type DiskReaders struct {
	Total     Did       `json:"total"`
	Processes []Process `json:"processes"` // who has read most first
	Cgroups   []Cgroup  `json:"cgroups"`
	// What was done by those that there was no room for any more.
	ForgottenProcesses Did     `json:"forgotten_processes"`
	ForgottenCgroups   Did     `json:"forgotten_cgroups"`
	Cached             *Cached `json:"cached,omitempty"` // nil where that is not counted
}

// Readers is what the kernel knows of who uses disks. It is not for use by several goroutines.
type Readers struct {
	processes, cgroups, totals *cilium.Map
	cached                     *cilium.Map // nil where that is not counted
}

// ErrNoReaders tells that nobody counts who reads.
var ErrNoReaders = errors.New("no eBPF programs that count who reads are loaded")

// OpenReaders opens what was loaded with its pins in a directory ("": [DefaultPins]). It needs root, or CAP_BPF and access to the directory.
func OpenReaders(pins string) (*Readers, error) {
	if pins == "" {
		pins = DefaultPins
	}
	r := &Readers{}
	err := r.open(pins)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("look at who reads: %w", err), r.Close())
	}
	return r, nil
}

func (r *Readers) open(pins string) error {
	dirs, err := os.ReadDir(pins)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, entry := range dirs {
		dir := filepath.Join(pins, entry.Name())
		into := map[string]**cilium.Map{}
		switch {
		case strings.HasPrefix(entry.Name(), readersDir):
			into = map[string]**cilium.Map{readersMapProcesses: &r.processes, readersMapCgroups: &r.cgroups, readersMapTotals: &r.totals}
		case strings.HasPrefix(entry.Name(), pagecacheDir):
			into = map[string]**cilium.Map{pagecacheMapCached: &r.cached}
		}
		for name, m := range into {
			if *m, err = cilium.LoadPinnedMap(filepath.Join(dir, mapPin+name), &cilium.LoadPinOptions{ReadOnly: true}); err != nil {
				return fmt.Errorf("open pinned map: %w", err)
			}
		}
	}
	if r.totals == nil {
		return ErrNoReaders
	}
	return nil
}

// Close lets the maps go. To close twice is harmless.
func (r *Readers) Close() error {
	var errs []error
	for _, m := range []*cilium.Map{r.processes, r.cgroups, r.totals, r.cached} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	*r = Readers{}
	return errors.Join(errs...)
}

// Of returns who has used some disks, by disk. What happens meanwhile may be in it in part. Names of cgroups are the caller's to add.
func (r *Readers) Of(disks []DiskID) (map[DiskID]*DiskReaders, error) {
	all := make(map[DiskID]*DiskReaders, len(disks))
	bySeq := make(map[uint64]*DiskReaders, len(disks))
	for _, id := range disks {
		d := &DiskReaders{Total: newDid(readersDid{}), Processes: []Process{}, Cgroups: []Cgroup{}}
		all[id], bySeq[id.Seq] = d, d
		var total readersDid
		if err := r.totals.Lookup(id.Seq, &total); err == nil {
			d.Total = newDid(total)
		} else if !errors.Is(err, cilium.ErrKeyNotExist) {
			return nil, fmt.Errorf("look at who reads: %w", err)
		}
		d.ForgottenProcesses, d.ForgottenCgroups = d.Total, d.Total
	}
	var value readersDid
	var process readersProcess
	entries := r.processes.Iterate()
	for entries.Next(&process, &value) {
		if d := bySeq[process.Diskseq]; d != nil {
			did := newDid(value)
			d.Processes = append(d.Processes, Process{process.Pid, process.Started, text(value.Comm[:]), did})
			d.ForgottenProcesses = d.ForgottenProcesses.Less(did)
		}
	}
	err := entries.Err()
	var cgroup readersCgroupOfDisk
	entries = r.cgroups.Iterate()
	for entries.Next(&cgroup, &value) {
		if d := bySeq[cgroup.Diskseq]; d != nil {
			did := newDid(value)
			d.Cgroups = append(d.Cgroups, Cgroup{ID: cgroup.Id, Did: did})
			d.ForgottenCgroups = d.ForgottenCgroups.Less(did)
		}
	}
	if err = errors.Join(err, entries.Err()); err != nil && !errors.Is(err, cilium.ErrIterationAborted) { // which only tells that there is much coming and going
		return nil, fmt.Errorf("look at who reads: %w", err)
	}
	for _, d := range all {
		slices.SortFunc(d.Processes, func(a, b Process) int {
			return cmp.Or(cmp.Compare(b.ReadBytes+b.WriteBytes, a.ReadBytes+a.WriteBytes), cmp.Compare(a.PID, b.PID))
		})
		slices.SortFunc(d.Cgroups, func(a, b Cgroup) int {
			return cmp.Or(cmp.Compare(b.ReadBytes+b.WriteBytes, a.ReadBytes+a.WriteBytes), cmp.Compare(a.ID, b.ID))
		})
	}
	return all, nil
}

// text is a string of C's.
func text(p []int8) string {
	var b strings.Builder
	for _, c := range p {
		if c == 0 {
			break
		}
		b.WriteByte(byte(c))
	}
	return b.String()
}

// Cached returns what programs had through the page cache of a disk, such as "ublkb0", and of its partitions, as a directory like /sys lists them; nil where that is not counted.
func (r *Readers) Cached(sys, disk string) (*Cached, error) {
	if r.cached == nil {
		return nil, nil
	}
	dir := filepath.Join(sys, "block", disk)
	files, err := filepath.Glob(filepath.Join(dir, "*", "dev"))
	if err != nil {
		return nil, err
	}
	sum := &Cached{}
	for _, file := range append(files, filepath.Join(dir, "dev")) {
		dev, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("look at disk: %w", err)
		}
		number, err := kernelDev(strings.TrimSpace(string(dev)))
		if err != nil {
			return nil, fmt.Errorf("look at disk: %s: %w", file, err)
		}
		var c pagecacheCached
		if err := r.cached.Lookup(number, &c); err == nil {
			sum.ReadBytes += c.ReadBytes
			sum.Faults += c.Faults
		} else if !errors.Is(err, cilium.ErrKeyNotExist) {
			return nil, fmt.Errorf("look at the page cache: %w", err)
		}
	}
	return sum, nil
}

// kernelDev is a device number, such as 259:3, as the kernel has it inside.
func kernelDev(text string) (uint32, error) {
	major, minor, ok := strings.Cut(text, ":")
	a, errA := strconv.ParseUint(major, 10, 12)
	b, errB := strconv.ParseUint(minor, 10, 20)
	if !ok || errA != nil || errB != nil {
		return 0, fmt.Errorf("%q is no device number", text)
	}
	return uint32(a<<20 | b), nil
}
