package ebpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// minors is how many entries the table of disks has (MINORS in c/latency.bpf.c).
const minors = 4096

// classes is how many histograms a disk has in each shard.
const classes = len(operations) * len(sources)

// Errors of [Tables.Enter].
var (
	// ErrFull tells that there are more disks, or more tags, than the maps were made for.
	ErrFull = errors.New("the maps are full")
	// ErrSameMinor tells that the place of a disk in the table is another one's.
	ErrSameMinor = errors.New("another disk has this place in the table")
)

// Tables is the memory that the programs share with who serves disks. One process at a time has it.
type Tables struct {
	shards int
	slots  int

	mu      sync.Mutex // guards what follows, and writing to the table
	maps    Maps
	memory  [][]byte // as it is mapped; nil once closed
	devices []latencyDevice
	marks   []uint64
	all     []latencyHistogram
	disks   map[int]*Disk // by place in the table: those that this process has entered
}

// Open maps what [Receive] returned, which is the Tables' from then on, also where it fails.
func Open(m Maps) (*Tables, error) {
	t := &Tables{maps: m, disks: make(map[int]*Disk)}
	if err := t.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("map the memory of the eBPF programs: %w", err), t.Close())
	}
	return t, nil
}

func (t *Tables) open() error {
	shape, err := t.maps.shape()
	if err != nil {
		return err
	}
	t.shards, t.slots = t.maps.Shards, shape.histograms/classes/t.maps.Shards
	devices, err := t.mapped(mapDevices, shape.devices)
	if err != nil {
		return err
	}
	marks, err := t.mapped(mapMarks, shape.tags)
	if err != nil {
		return err
	}
	all, err := t.mapped(mapHistograms, shape.histograms)
	if err != nil {
		return err
	}
	t.devices = unsafe.Slice((*latencyDevice)(devices), shape.devices)
	t.marks = unsafe.Slice((*uint64)(marks), shape.tags)
	t.all = unsafe.Slice((*latencyHistogram)(all), shape.histograms)
	return nil
}

// mapped maps one of the maps. All are written to: histograms when a disk takes the place of another one.
func (t *Tables) mapped(which, entries int) (unsafe.Pointer, error) {
	p, err := unix.Mmap(int(t.maps.Files[which].Fd()), 0, entries*int(valueBytes[which]), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mmap %d entries of %d bytes: %w", entries, valueBytes[which], err)
	}
	t.memory = append(t.memory, p)
	return unsafe.Pointer(unsafe.SliceData(p)), nil
}

// Close gives the memory back; to close twice is harmless. The disks stay in the table, and are measured on, until [Disk.Leave], or until somebody else has the maps.
func (t *Tables) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	errs := []error{t.maps.Close()}
	for _, p := range t.memory {
		errs = append(errs, unix.Munmap(p))
	}
	t.maps, t.memory, t.devices, t.marks, t.all = Maps{}, nil, nil, nil, nil
	return errors.Join(errs...)
}

// Maps returns the maps for who has them next, such as a program that this process executes. They stay the Tables'.
func (t *Tables) Maps() Maps {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.maps
}

// DiskID tells a disk from all others that there were since the machine was started.
type DiskID struct {
	Minor int
	Seq   uint64 // what the kernel calls diskseq
}

// minorBits is how many bits the kernel has for a minor number (MINORBITS in include/linux/kdev_t.h).
const minorBits = 20

// DiskIDOf looks a disk up, such as "ublkb0", in a directory like /sys.
func DiskIDOf(sys, name string) (DiskID, error) {
	read := func(file string) (string, error) {
		b, err := os.ReadFile(filepath.Join(sys, "block", name, file))
		return strings.TrimSpace(string(b)), err
	}
	dev, err := read("dev")
	if err != nil {
		return DiskID{}, fmt.Errorf("identify disk: %w", err)
	}
	seq, err := read("diskseq")
	if err != nil {
		return DiskID{}, fmt.Errorf("identify disk: %w", err)
	}
	_, minor, _ := strings.Cut(dev, ":")
	counted, err := read("queue/iostats")
	if err != nil {
		return DiskID{}, fmt.Errorf("identify disk: %w", err)
	}
	if counted != "1" {
		return DiskID{}, fmt.Errorf("identify disk %s: the kernel does not note when its requests begin: echo 1 >/sys/block/%s/queue/iostats", name, name)
	}
	id := DiskID{Minor: -1}
	if n, err := strconv.ParseUint(minor, 10, minorBits); err == nil {
		id.Minor = int(n)
	}
	if id.Seq, err = strconv.ParseUint(seq, 10, 64); err != nil || id.Seq == 0 || id.Minor < 0 {
		return DiskID{}, fmt.Errorf("identify disk %s: %q and %q are no numbers of a disk", name, dev, seq)
	}
	return id, nil
}

// Disk is one that is measured.
type Disk struct {
	t     *Tables
	place int
	entry latencyDevice // as it is in the table
}

// Enter has a disk measured. One that a process before this one has entered, with as many queues of as many tags, goes on with its numbers.
// It fails with [ErrFull] or [ErrSameMinor], and then the disk is not measured.
func (t *Tables) Enter(id DiskID, queues, depth int) (*Disk, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.devices == nil:
		return nil, errors.New("enter disk: the maps are closed")
	case queues < 1 || depth < 1 || queues > len(t.marks)/depth:
		return nil, fmt.Errorf("enter disk with %d queues of %d tags: %w: they have room for %d tags", queues, depth, ErrFull, len(t.marks))
	}
	d := &Disk{t: t, place: id.Minor & (minors - 1)}
	if t.disks[d.place] != nil {
		return nil, fmt.Errorf("enter disk of minor number %d: %w", id.Minor, ErrSameMinor)
	}
	d.entry = latencyDevice{Diskseq: id.Seq, Queues: uint32(queues), Depth: uint32(depth)}
	if !d.adopt() {
		if err := d.allocate(); err != nil {
			return nil, fmt.Errorf("enter disk with %d queues of %d tags: %w", queues, depth, err)
		}
	}
	t.disks[d.place] = d
	return d, nil
}

// adopt takes over the entry that there is, if it is of the same disk, is sound, and is in nobody's way.
func (d *Disk) adopt() bool {
	was := d.t.devices[d.place]
	if was.Diskseq != d.entry.Diskseq || was.Queues != d.entry.Queues || was.Depth != d.entry.Depth {
		return false
	}
	d.entry = was
	if int64(was.Slot) >= int64(d.t.slots) || int64(was.Base)+int64(was.Queues)*int64(was.Depth) > int64(len(d.t.marks)) {
		return false
	}
	for _, other := range d.t.disks {
		if other.entry.Slot == was.Slot || was.overlaps(&other.entry) {
			return false
		}
	}
	return true
}

// tags returns where the tags of an entry are.
func (e *latencyDevice) tags() (from, to int64) {
	return int64(e.Base), int64(e.Base) + int64(e.Queues)*int64(e.Depth)
}

func (e *latencyDevice) overlaps(other *latencyDevice) bool {
	from, to := e.tags()
	otherFrom, otherTo := other.tags()
	return from < otherTo && otherFrom < to
}

// allocate finds a slot and tags, and makes the entry. What another process has entered has to go where the room is needed.
func (d *Disk) allocate() error {
	t := d.t
	t.clear(d.place)
	if !d.findRoom() {
		t.dropOthers()
		if !d.findRoom() {
			return fmt.Errorf("%w: they have room for %d disks and %d tags: load the programs for more (coppice ebpf load --devices, --tags)",
				ErrFull, t.slots, len(t.marks))
		}
	}
	from, to := d.entry.tags()
	clear(t.marks[from:to])
	clear(t.all[int(d.entry.Slot)*t.shards*classes:][:t.shards*classes])
	e := &t.devices[d.place]
	e.Slot, e.Base, e.Queues, e.Depth = d.entry.Slot, d.entry.Base, d.entry.Queues, d.entry.Depth
	atomic.StoreUint64(&e.Diskseq, d.entry.Diskseq) // from now on the programs read the rest
	return nil
}

// findRoom sets the first slot and the first tags that no entry has.
func (d *Disk) findRoom() bool {
	t := d.t
	slots := make([]bool, t.slots)
	var taken []*latencyDevice
	for i := range t.devices {
		e := &t.devices[i]
		if e.Diskseq == 0 {
			continue
		}
		taken = append(taken, e)
		if int64(e.Slot) < int64(t.slots) {
			slots[e.Slot] = true
		}
	}
	slot := 0
	for slot < t.slots && slots[slot] {
		slot++
	}
	if slot == t.slots {
		return false
	}
	d.entry.Slot = uint32(slot)
	for base := int64(0); ; {
		d.entry.Base = uint32(base)
		_, to := d.entry.tags()
		if to > int64(len(t.marks)) {
			return false
		}
		next := base
		for _, e := range taken {
			if d.entry.overlaps(e) {
				_, end := e.tags()
				next = max(next, end)
			}
		}
		if next == base {
			return true
		}
		base = next
	}
}

// clear takes an entry out of the table.
func (t *Tables) clear(place int) { atomic.StoreUint64(&t.devices[place].Diskseq, 0) }

// dropOthers takes out what this process has not entered: disks of a process before it, most of which are gone.
func (t *Tables) dropOthers() {
	for i := range t.devices {
		if t.disks[i] == nil {
			t.clear(i)
		}
	}
}

// Marks returns a word for each tag of a queue, where who serves it says where the data of a request came from, before it completes the request. It
// may be used until [Tables.Close].
func (d *Disk) Marks(queue int) []uint64 {
	d.t.mu.Lock()
	defer d.t.mu.Unlock()
	if queue < 0 || queue >= int(d.entry.Queues) || d.t.marks == nil {
		return nil
	}
	depth := int(d.entry.Depth)
	base := int(d.entry.Base) + queue*depth
	return d.t.marks[base : base+depth : base+depth]
}

// Leave ends the measuring of the disk. To leave twice is harmless.
func (d *Disk) Leave() {
	d.t.mu.Lock()
	defer d.t.mu.Unlock()
	if d.t.disks[d.place] != d {
		return
	}
	delete(d.t.disks, d.place)
	if d.t.devices != nil {
		d.t.clear(d.place)
	}
}

// Latencies returns what was measured since the disk was entered: operations and sources of which there was a request. It waits for nothing.
func (d *Disk) Latencies() []Latency {
	d.t.mu.Lock()
	defer d.t.mu.Unlock()
	if d.t.all == nil {
		return nil
	}
	list := []Latency{}
	for op, opName := range operations {
		for from, source := range sources {
			l := Latency{Op: opName, Source: source}
			var counts [buckets]uint64
			for shard := range d.t.shards {
				l.add(&d.t.all[((int(d.entry.Slot)*d.t.shards+shard)*len(operations)+op)*len(sources)+from], &counts)
			}
			if l.fill(&counts); l.Count > 0 {
				list = append(list, l)
			}
		}
	}
	return list
}
