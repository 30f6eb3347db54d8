package boottrace

import (
	"errors"
	"fmt"
	"iter"
	"math/bits"
	"time"

	"coppice/cache/prefetch"
	"coppice/ebpf"
	"coppice/image"
	"coppice/union"
)

// ErrBadTrace is in the errors about bytes that are no trace.
var ErrBadTrace = errors.New("not a trace of a device's requests")

// Op is what a request does.
type Op uint8

// The operations.
const (
	Read  Op = iota
	Write    // or discards, or zeroes: from then on the blocks are the leaf's
	ops
)

// Event is a request of the device.
type Event struct {
	At   time.Duration // when it was made, since Trace.Began
	Took time.Duration // until it was completed
	Off  int64         // in bytes, a multiple of 512
	Len  int64         // in bytes, at least 512, a multiple of it
	Op   Op
	// Failed tells that it was completed with an error.
	Failed bool
	// From is where the data came from; 0: nobody said.
	From union.Origins
	// PID is the process that made it, as the kernel numbers it outside of containers; 0: not known.
	PID int32
	// Process and Cgroup are places in the tables of the trace.
	Process, Cgroup int
}

// Trace is what a device was asked for while that was recorded.
type Trace struct {
	Root         image.Digest // content root; zero where the device stands on a raw disk
	ContentBytes int64        // of the root
	ChunkSize    int          // of the root, in bytes
	DeviceBytes  int64
	Kernel       string // release of the one that recorded
	// Began is the time that the events count from, and Uptime how long the kernel had run then.
	Began  time.Time
	Uptime time.Duration
	// Lost is how many events of any disk had no room, so that they are not here.
	Lost uint64
	// Processes are names, as the kernel cuts them off, and Cgroups paths below the root of the hierarchy. "" is one that is not known.
	Processes, Cgroups []string
	// Events are in order of when they were made.
	Events []Event
}

// sector is what disks count in.
const sector = 512

// Bounds of a trace.
const (
	// MaxEvents is how many events a trace can have.
	MaxEvents = 1 << 21

	maxNames     = 1 << 16 // in each table
	maxName      = 15      // bytes of a process's name: TASK_COMM_LEN less one
	maxPath      = 4096    // bytes of a cgroup's path
	maxRelease   = 64      // bytes of a kernel's release
	maxBytes     = 1 << 60 // of device and root
	maxTime      = 1 << 61 // ns
	maxRead      = 4 << 20 // bytes of a read, more than any of ublk's
	minChunkSize = 4 << 10
)

func (t *Trace) validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrBadTrace}, args...)...)
	}
	switch {
	case t.ChunkSize < minChunkSize || t.ChunkSize > image.MaxChunkSize || bits.OnesCount(uint(t.ChunkSize)) != 1:
		return bad("chunks of %d bytes", t.ChunkSize)
	case t.ContentBytes < 1 || t.ContentBytes > maxBytes || t.DeviceBytes < 1 || t.DeviceBytes > maxBytes:
		return bad("a root of %d bytes, a device of %d", t.ContentBytes, t.DeviceBytes)
	case t.Uptime < 0 || t.Uptime > maxTime || t.Began.UnixNano() < 0:
		return bad("it began at %s, %s after the kernel", t.Began, t.Uptime)
	case len(t.Kernel) > maxRelease:
		return bad("the release of a kernel in %d bytes", len(t.Kernel))
	case len(t.Processes) > maxNames || len(t.Cgroups) > maxNames:
		return bad("%d processes and %d cgroups, at most %d are taken", len(t.Processes), len(t.Cgroups), maxNames)
	case len(t.Events) > MaxEvents:
		return bad("%d events, at most %d are taken", len(t.Events), MaxEvents)
	}
	for _, name := range t.Processes {
		if len(name) > maxName {
			return bad("a process's name of %d bytes", len(name))
		}
	}
	for _, path := range t.Cgroups {
		if len(path) > maxPath {
			return bad("a cgroup's path of %d bytes", len(path))
		}
	}
	at := time.Duration(0)
	for i, e := range t.Events {
		if !t.takes(e) || e.At < at {
			return bad("event %d makes no sense: %+v", i, e)
		}
		at = e.At
	}
	return nil
}

// takes tells whether an event can be of this device.
func (t *Trace) takes(e Event) bool {
	return e.At >= 0 && e.At <= maxTime && e.Took >= 0 && e.Took <= maxTime && e.Off >= 0 && e.Off%sector == 0 && e.Len >= sector && e.Len%sector == 0 &&
		e.Off <= t.DeviceBytes && e.Len <= t.DeviceBytes-e.Off && e.Op < ops && (e.Op != Read || e.Len <= maxRead) && e.PID >= 0 &&
		e.Process >= 0 && e.Process < len(t.Processes) && e.Cgroup >= 0 && e.Cgroup < len(t.Cgroups)
}

// Reads goes through the reads, in order.
func (t *Trace) Reads() iter.Seq[Event] {
	return func(yield func(Event) bool) {
		for _, e := range t.Events {
			if e.Op == Read && !yield(e) {
				return
			}
		}
	}
}

// Sources returns the names of where an event's data came from, the nearest first.
func (e Event) Sources() []string {
	names := ebpf.Sources()
	if e.From == 0 {
		return names[:1]
	}
	var list []string
	for bits, name := range names[1:] {
		if e.From>>bits&1 != 0 {
			list = append(list, name)
		}
	}
	return list
}

// farthest returns the place in [ebpf.Sources] of the farthest source, which is what histograms count by.
func (e Event) farthest() int { return bits.Len8(uint8(e.From)) }

// notRoot are sources of which none needs the root.
const notRoot = union.FromZeros | union.FromLeaf | union.FromBranch

// RootReads goes through the reads of what the root holds, in order, each as a read of that part of it alone: without those that failed, without those whose data was nowhere, or in the leaf or a
// branch, as far as the daemon has said so, and without what had been written when it was read.
func (t *Trace) RootReads() iter.Seq[Event] {
	return func(yield func(Event) bool) {
		var written extents
		for _, e := range t.Events {
			switch {
			case e.Failed:
			case e.Op == Write:
				written.add(e.Off, e.Off+e.Len)
			case e.From == 0 || e.From&^notRoot != 0:
				for from, to := range written.gaps(e.Off, min(e.Off+e.Len, t.ContentBytes)) {
					part := e
					part.Off, part.Len = from, to-from
					if !yield(part) {
						return
					}
				}
			}
		}
	}
}

// Prefetch returns the chunks of the root that were read, as RootReads has them, in the order in which they were first. It has no chunks where nothing was, or where the device stands on a raw disk.
func (t *Trace) Prefetch() *prefetch.Trace {
	list := &prefetch.Trace{Root: t.Root, SizeBytes: t.ContentBytes, ChunkSize: t.ChunkSize, Chunks: []int64{}}
	if t.Root == (image.Digest{}) {
		return list
	}
	known := make(map[int64]bool)
	for e := range t.RootReads() {
		for chunk := e.Off / int64(t.ChunkSize); chunk <= (e.Off+e.Len-1)/int64(t.ChunkSize) && len(list.Chunks) < prefetch.MaxChunks; chunk++ {
			if !known[chunk] {
				known[chunk] = true
				list.Chunks = append(list.Chunks, chunk)
			}
		}
	}
	return list
}
