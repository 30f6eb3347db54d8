package boottrace

import (
	"cmp"
	"slices"
	"time"

	"coppice/ebpf"
	"coppice/image"
)

// Summary is what a trace comes to.
type Summary struct {
	Root         image.Digest  `json:"content_root"`
	ContentBytes int64         `json:"content_bytes"`
	ChunkSize    int           `json:"chunk_size"`
	DeviceBytes  int64         `json:"device_bytes"`
	Kernel       string        `json:"kernel"`
	Began        time.Time     `json:"began"`
	Uptime       time.Duration `json:"uptime_nanos"`   // of the kernel, then
	Lasted       time.Duration `json:"duration_nanos"` // until the last event was completed
	Lost         uint64        `json:"lost"`           // events
	Reads        Part          `json:"reads"`
	Writes       Part          `json:"writes"`
	// Chunks is how many chunks of the root were read, Prefetch how many of them another node would read before it is asked for them.
	Chunks   int         `json:"chunks"`
	Prefetch int         `json:"prefetch_chunks"`
	Sources  []NamedPart `json:"sources"`   // reads by where their data came from, those from several under the farthest
	Process  []NamedPart `json:"processes"` // reads, most bytes first
	Cgroup   []NamedPart `json:"cgroups"`
}

// Part is some of the requests.
type Part struct {
	Count  uint64        `json:"count"`
	Bytes  int64         `json:"bytes"`
	Failed uint64        `json:"failed"`
	First  time.Duration `json:"first_nanos"` // when the first one was made, and the last, since the trace began
	Last   time.Duration `json:"last_nanos"`
	Took   time.Duration `json:"took_nanos"` // all together
}

// NamedPart is the part of those that have something in common.
type NamedPart struct {
	Name string `json:"name"`
	Part
}

func (p *Part) add(e Event) {
	if p.Count == 0 {
		p.First = e.At
	}
	p.Count++
	p.Bytes += e.Len
	p.Last = e.At
	p.Took += e.Took
	if e.Failed {
		p.Failed++
	}
}

// Summary adds everything up.
func (t *Trace) Summary() Summary {
	s := Summary{
		Root: t.Root, ContentBytes: t.ContentBytes, ChunkSize: t.ChunkSize, DeviceBytes: t.DeviceBytes, Kernel: t.Kernel, Began: t.Began, Uptime: t.Uptime,
		Lost: t.Lost, Prefetch: len(t.Prefetch().Chunks),
	}
	names := ebpf.Sources()
	sources, processes, cgroups := make([]Part, len(names)), make([]Part, len(t.Processes)), make([]Part, len(t.Cgroups))
	chunks := make(map[int64]bool)
	for _, e := range t.Events {
		s.Lasted = max(s.Lasted, e.At+e.Took)
		if e.Op == Write {
			s.Writes.add(e)
			continue
		}
		s.Reads.add(e)
		sources[e.farthest()].add(e)
		processes[e.Process].add(e)
		cgroups[e.Cgroup].add(e)
		for chunk := e.Off / int64(t.ChunkSize); chunk*int64(t.ChunkSize) < min(e.Off+e.Len, t.ContentBytes); chunk++ {
			chunks[chunk] = true
		}
	}
	s.Chunks = len(chunks)
	s.Sources = named(names, sources)
	s.Process, s.Cgroup = byBytes(named(t.Processes, processes)), byBytes(named(t.Cgroups, cgroups))
	return s
}

// named returns the parts of which there is something.
func named(names []string, parts []Part) []NamedPart {
	list := []NamedPart{}
	for i, p := range parts {
		if p.Count > 0 {
			list = append(list, NamedPart{names[i], p})
		}
	}
	return list
}

func byBytes(list []NamedPart) []NamedPart {
	slices.SortStableFunc(list, func(a, b NamedPart) int { return cmp.Compare(b.Bytes, a.Bytes) })
	return list
}
