package ebpf

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	cilium "github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// DefaultPins is where programs and maps are pinned.
const DefaultPins = "/sys/fs/bpf/coppice"

// LoadConfig says how much is measured at most. Its zero value means the defaults.
type LoadConfig struct {
	Pins    string // directory in a bpf file system; "" for [DefaultPins]
	Devices int    // disks measured at a time, 1 to 4096; 0 means 64
	Tags    int    // requests of all of them together, 1 to 2^20; 0 means 65536
	// Readers has it counted who reads, too: see [OpenReaders]. Without, that goes on where it was begun.
	Readers bool
}

const (
	defaultDevices = 64
	defaultTags    = 1 << 16
	maxTags        = 1 << 20
)

func (c *LoadConfig) setDefaults() error {
	if c.Pins == "" {
		c.Pins = DefaultPins
	}
	if c.Devices == 0 {
		c.Devices = defaultDevices
	}
	if c.Tags == 0 {
		c.Tags = defaultTags
	}
	var errs []error
	if c.Devices < 1 || c.Devices > minors {
		errs = append(errs, fmt.Errorf("%d devices are not within 1 to %d", c.Devices, minors))
	}
	if c.Tags < 1 || c.Tags > maxTags {
		errs = append(errs, fmt.Errorf("%d tags are not within 1 to %d", c.Tags, maxTags))
	}
	return errors.Join(errs...)
}

// shardsFor returns how many shards CPUs share.
func shardsFor(cpus int) int {
	n := 1
	for n < min(cpus, MaxShards) {
		n *= 2
	}
	return n
}

// pointOf is where each program is attached.
var pointOf = map[string]string{latencyProgCompleteRequest: "block_rq_complete"}

// handedNames are the names of the maps that are handed over.
var handedNames = [handedMaps]string{mapDevices: latencyMapDevices, mapMarks: latencyMapMarks, mapHistograms: latencyMapHistograms}

// Prefixes of the names of pins, whose rest is the name of a program or map in c/latency.bpf.c.
const (
	linkPin    = "link_"
	programPin = "program_"
	mapPin     = "map_"
)

// Loaded are programs that are attached and pinned, as this process sees them.
type Loaded struct {
	Maps Maps
	Dir  string // of the pins
	New  bool   // they were not there before
	// NoPageCache says why it is not counted what programs have through the page cache; nil where it is, and where readers were not asked for.
	NoPageCache error
}

// Close lets go what this process has of them. They stay pinned.
func (l *Loaded) Close() error { return l.Maps.Close() }

// Load has the programs attached and pinned, unless the same ones are already, with maps of the same sizes. Others, of another version or with other sizes, are removed: who has
// their maps measures nothing any more. It fails with a [LackError] where the machine cannot. It needs CAP_BPF and CAP_PERFMON.
func Load(cfg LoadConfig) (*Loaded, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, fmt.Errorf("load eBPF programs: %w", err)
	}
	l, err := load(cfg)
	if err == nil {
		return l, nil
	}
	return nil, lackOr(fmt.Errorf("load eBPF programs: %w", err), Probe)
}

// lackOr returns what the machine lacks, where it does, and else err. That of a verifier which has read a program, and said why it refuses that, comes first: nothing that is lacking
// makes it do so.
func lackOr(err error, probe func() []Lack) error {
	lacks := probe()
	if len(lacks) == 0 {
		return err
	}
	lack := &LackError{lacks}
	var refused *cilium.VerifierError
	if errors.As(err, &refused) && len(refused.Log) > 0 {
		return fmt.Errorf("%w\n%w", err, lack)
	}
	return lack
}

func load(cfg LoadConfig) (*Loaded, error) {
	cpus, err := cilium.PossibleCPU()
	if err != nil {
		return nil, err
	}
	shards := shardsFor(cpus)
	unlock, err := lockPins(cfg.Pins)
	if err != nil {
		return nil, err
	}
	defer unlock()
	l := &Loaded{Dir: filepath.Join(cfg.Pins, cfg.name(shards))}
	if err := l.latency(cfg, shards); err != nil {
		return nil, err
	}
	if cfg.Readers {
		if l.NoPageCache, err = attachReaders(cfg, l.Dir); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	return l, removeOthers(cfg.Pins, append(readerDirs(cfg, l.Dir), l.Dir))
}

// latency has requests measured, unless they are.
func (l *Loaded) latency(cfg LoadConfig, shards int) (err error) {
	if l.Maps, err = openPinned(l.Dir, shards); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.RemoveAll(l.Dir); err != nil { // what a loader that was killed has left
		return err
	}
	if err := attach(cfg, l.Dir, shards); err != nil {
		return errors.Join(err, os.RemoveAll(l.Dir))
	}
	l.New = true
	l.Maps, err = openPinned(l.Dir, shards)
	return err
}

// name tells programs and sizes from others.
func (c *LoadConfig) name(shards int) string {
	h := sha256.New()
	h.Write(_LatencyBytes)
	fmt.Fprintf(h, "%d %d %d", c.Devices, c.Tags, shards)
	const length = 8
	return "latency_" + hex.EncodeToString(h.Sum(nil)[:length])
}

// lockPins makes the directory of the pins, and keeps other loaders from it.
func lockPins(dir string) (unlock func(), err error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	const patience = 10 * time.Second
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if time.Since(began) > patience {
			return nil, errors.Join(fmt.Errorf("lock %s, which another loader has: %w", dir, err), f.Close())
		}
	}
}

// removeOthers removes pins of other versions.
func removeOthers(pins string, keep []string) error {
	list, err := os.ReadDir(pins)
	for _, e := range list {
		if path := filepath.Join(pins, e.Name()); !slices.Contains(keep, path) {
			err = errors.Join(err, os.RemoveAll(path))
		}
	}
	return err
}

// attach loads the programs, attaches and pins them. What it has pinned when it fails is the caller's to remove.
func attach(cfg LoadConfig, dir string, shards int) error {
	objects, err := newLatency(cfg, shards)
	if err != nil {
		return err
	}
	defer func() { _ = objects.Close() }() // what is pinned stays
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for name, m := range objects.maps() {
		if err := m.Pin(filepath.Join(dir, mapPin+name)); err != nil {
			return err
		}
	}
	for name, p := range objects.programs() {
		if err := p.Pin(filepath.Join(dir, programPin+name)); err != nil {
			return err
		}
		// The links are what [openPinned] goes by: they come last.
		if err := attachPinned(p, dir, name, "tracepoint "+pointOf[name]); err != nil {
			return err
		}
	}
	return nil
}

// attachPinned attaches a program to where it is for, and pins the link.
func attachPinned(p *cilium.Program, dir, name, where string) error {
	l, err := link.AttachTracing(link.TracingOptions{Program: p})
	if err != nil {
		return fmt.Errorf("attach to %s: %w", where, err)
	}
	return errors.Join(l.Pin(filepath.Join(dir, linkPin+name)), l.Close())
}

// withVerifier adds what the verifier said to an error of loading.
func withVerifier(err error) error {
	var v *cilium.VerifierError
	if errors.As(err, &v) {
		return fmt.Errorf("%w\n%s", err, fmt.Sprintf("%+v", v))
	}
	return err
}

// newLatency loads the programs, with maps as large as is asked for.
func newLatency(cfg LoadConfig, shards int) (*latencyObjects, error) {
	spec, err := loadLatency()
	if err != nil {
		return nil, err
	}
	spec.Maps[latencyMapMarks].MaxEntries = uint32(cfg.Tags)
	spec.Maps[latencyMapHistograms].MaxEntries = uint32(cfg.Devices * shards * classes)
	if err := spec.Variables[latencyVarShardMask].Set(uint32(shards - 1)); err != nil {
		return nil, err
	}
	var objects latencyObjects
	if err := spec.LoadAndAssign(&objects, nil); err != nil {
		return nil, withVerifier(err)
	}
	return &objects, nil
}

func (o *latencyObjects) maps() map[string]*cilium.Map {
	return map[string]*cilium.Map{latencyMapDevices: o.Devices, latencyMapMarks: o.Marks, latencyMapHistograms: o.Histograms}
}

func (o *latencyObjects) programs() map[string]*cilium.Program {
	return map[string]*cilium.Program{latencyProgCompleteRequest: o.CompleteRequest}
}

// openPinned opens the maps if all is there.
func openPinned(dir string, shards int) (Maps, error) {
	m := Maps{Shards: shards}
	for name := range pointOf {
		if _, err := os.Stat(filepath.Join(dir, linkPin+name)); err != nil {
			return m, err
		}
	}
	for i, name := range handedNames {
		f, err := openMap(filepath.Join(dir, mapPin+name))
		if err != nil {
			return m, errors.Join(err, m.Close())
		}
		m.Files[i] = f
	}
	if _, err := m.shape(); err != nil {
		return m, errors.Join(err, m.Close())
	}
	return m, nil
}

func openMap(path string) (*os.File, error) {
	m, err := cilium.LoadPinnedMap(path, nil)
	if err != nil {
		return nil, fmt.Errorf("open pinned map: %w", err)
	}
	defer func() { _ = m.Close() }()
	fd, err := unix.FcntlInt(uintptr(m.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Unload detaches the programs and removes all pins in a directory ("": [DefaultPins]). It reports whether there were any.
func Unload(pins string) (bool, error) {
	if pins == "" {
		pins = DefaultPins
	}
	_, err := os.Stat(pins)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = os.RemoveAll(pins)
	}
	if err != nil {
		return false, fmt.Errorf("unload eBPF programs: %w", err)
	}
	return true, nil
}

// ProgramStatus is what the kernel knows of a program.
type ProgramStatus struct {
	Name  string `json:"name"`
	Point string `json:"tracepoint"`
	// Runs and Nanos are since it was loaded, while sysctl kernel.bpf_stats_enabled is 1.
	Runs  uint64 `json:"runs"`
	Nanos uint64 `json:"nanos"`
	// Bytes are those of its machine code.
	Bytes uint64 `json:"bytes"`
}

// Status returns the programs that are pinned in a directory ("": [DefaultPins]): none where they are not loaded. It needs CAP_SYS_ADMIN.
func Status(pins string) ([]ProgramStatus, error) {
	if pins == "" {
		pins = DefaultPins
	}
	paths, err := filepath.Glob(filepath.Join(pins, "*_*", programPin+"*"))
	if err != nil {
		return nil, err
	}
	list := []ProgramStatus{}
	for _, path := range paths {
		s, err := status(path)
		if err != nil {
			return nil, fmt.Errorf("look at eBPF program %s: %w", path, err)
		}
		list = append(list, s)
	}
	return list, nil
}

func status(path string) (ProgramStatus, error) {
	p, err := cilium.LoadPinnedProgram(path, nil)
	if err != nil {
		return ProgramStatus{}, err
	}
	defer func() { _ = p.Close() }()
	info, err := p.Info()
	if err != nil {
		return ProgramStatus{}, err
	}
	name := filepath.Base(path)[len(programPin):]
	s := ProgramStatus{Name: name, Point: pointOf[name]}
	for _, at := range slices.Concat(readerPoints, cachePoints) {
		if at.program == name {
			s.Point = at.point
		}
	}
	if size, err := info.JitedSize(); err == nil {
		s.Bytes = uint64(size)
	}
	if stats, err := p.Stats(); err == nil {
		s.Runs, s.Nanos = stats.RunCount, uint64(stats.Runtime.Nanoseconds())
	}
	return s, nil
}
