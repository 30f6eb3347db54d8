package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"coppice/ebpf/boottrace"
	"coppice/idxshare"
	"coppice/image"
	"coppice/node"
)

// tracedFiles says whether and how to tell which files were read.
type tracedFiles struct {
	Files bool   `help:"Also show which files of the root were read most, by the index of its files."`
	On    string `placeholder:"NAME|REF|FILE" help:"With --files: device, image or file whose index is asked (what the trace is of)."`
	Top   int    `default:"20" placeholder:"N" help:"With --files: how many to show, 0 for all (${default})."`
}

// traceFiles is what was read, by whose it is.
type traceFiles struct {
	Read []tracedFile `json:"read"` // most bytes first
	// Left is what Read has no room for.
	Left      int   `json:"left"`
	LeftBytes int64 `json:"left_bytes"`
}

// tracedFile is what was read of a file, or of what is no file's.
type tracedFile struct {
	What      string        `json:"what"` // data, directory, tree or xattr of a file; metadata, free, unknown or outside
	Partition int           `json:"partition"`
	Inode     uint64        `json:"inode,omitempty"`
	Paths     []jsonPath    `json:"paths,omitempty"`
	SizeBytes int64         `json:"size_bytes,omitempty"` // of the file
	Reads     uint64        `json:"reads"`
	Bytes     int64         `json:"bytes"` // what was read twice counts twice
	First     time.Duration `json:"first_nanos"`
	Processes []string      `json:"processes"` // that read it, most bytes first

	name string
}

// maxTracedProcesses is how many processes of a file are told.
const maxTracedProcesses = 8

// tracedKey is whose bytes are.
type tracedKey struct {
	what   string
	volume int
	inode  uint64
}

type tracedTotal struct {
	reads   uint64
	bytes   int64
	first   time.Duration
	by      map[int]int64 // bytes by process
	counted int           // the event that counted last
}

// of finds out which files were read. The trace is what show was asked for.
func (f tracedFiles) of(env *environment, trace string, source sourceFlags, t *boottrace.Trace) (found *traceFiles, err error) {
	on := f.On
	if on == "" {
		if _, err := os.Stat(trace); err == nil {
			return nil, &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("show files of %s: a trace in a file does not say where the index of its root is", trace),
				Hint: "give the image, a device that stands on it, or a file that coppice index build has written: --on NAME|REF|FILE"}
		}
		on = trace
	}
	err = indexOn{sourceFlags: source, On: on}.with(env, func(x *askedIndex) error {
		h := x.Header()
		if t.Root != (image.Digest{}) && h.Source != t.Root.String() || h.Size != t.ContentBytes {
			return &node.Error{Code: node.CodeOtherRoot, Message: fmt.Sprintf("show files of %s: the index is of %s, %d bytes, the trace of %s, %d bytes", trace, h.Source, h.Size, t.Root, t.ContentBytes),
				Hint: "give the index of the root that the device stood on: --on NAME|REF|FILE"}
		}
		found, err = f.find(env.ctx, x, t)
		return err
	})
	return found, err
}

// find asks whose all bytes are that were read of the root.
func (f tracedFiles) find(ctx context.Context, x *askedIndex, t *boottrace.Trace) (*traceFiles, error) {
	totals := map[tracedKey]*tracedTotal{}
	n, view := 0, x.View()
	for e := range t.RootReads() {
		n++
		err := view.Owners(ctx, e.Off, e.Off+e.Len, func(o idxshare.Owner) error {
			key := tracedKey{what: o.What.String(), volume: o.Volume}
			if o.What == idxshare.Owned {
				key.what, key.inode = o.Extent.Kind.String(), o.Extent.Inode
			}
			total := totals[key]
			if total == nil {
				total = &tracedTotal{first: e.At, by: map[int]int64{}}
				totals[key] = total
			}
			if total.counted != n {
				total.counted = n
				total.reads++
			}
			total.bytes += o.To - o.From
			total.by[e.Process] += o.To - o.From
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	keys := slices.SortedFunc(maps.Keys(totals), func(a, b tracedKey) int {
		return cmp.Or(cmp.Compare(totals[b].bytes, totals[a].bytes), cmp.Compare(totals[a].first, totals[b].first), cmp.Compare(a.inode, b.inode), cmp.Compare(a.what, b.what), cmp.Compare(a.volume, b.volume))
	})
	found := &traceFiles{Read: []tracedFile{}}
	for i, key := range keys {
		total := totals[key]
		if f.Top > 0 && i >= f.Top {
			found.Left++
			found.LeftBytes += total.bytes
			continue
		}
		file, err := toTraced(ctx, x, key, total, t.Processes)
		if err != nil {
			return nil, err
		}
		found.Read = append(found.Read, file)
	}
	return found, nil
}

func toTraced(ctx context.Context, x *askedIndex, key tracedKey, total *tracedTotal, processes []string) (tracedFile, error) {
	f := tracedFile{What: key.what, Inode: key.inode, Reads: total.reads, Bytes: total.bytes, First: total.first, Processes: []string{}, name: "(" + key.what + ")"}
	if key.what != idxshare.Outside.String() {
		f.Partition = partitionOf(key.volume, x.Volumes())
	}
	if f.Partition > 0 {
		f.name = fmt.Sprintf("%d:%s", f.Partition, f.name)
	}
	by := slices.SortedFunc(maps.Keys(total.by), func(a, b int) int { return cmp.Or(cmp.Compare(total.by[b], total.by[a]), cmp.Compare(a, b)) })
	for _, p := range by[:min(len(by), maxTracedProcesses)] {
		f.Processes = append(f.Processes, processes[p])
	}
	if key.inode == 0 {
		return f, nil
	}
	view := x.View()
	file, err := view.File(ctx, key.volume, key.inode)
	if err != nil && !errors.Is(err, idxshare.ErrNotFound) {
		return f, err
	}
	if file != nil {
		f.SizeBytes = file.Size
	}
	paths, err := view.Paths(ctx, key.volume, key.inode)
	for _, path := range paths {
		f.Paths = append(f.Paths, toJSONPath(path))
	}
	if len(paths) > 0 {
		f.name = quoteForShell(string(paths[0]))
		if len(x.Volumes()) > 1 {
			f.name = fmt.Sprintf("%d:%s", f.Partition, f.name)
		}
		if key.what != idxshare.ExtentData.String() && key.what != idxshare.ExtentDirectory.String() {
			f.name += " (" + key.what + ")"
		}
	}
	return f, err
}

// write writes a table for people; nothing, where none was asked for.
func (r *traceFiles) write(w io.Writer) {
	if r == nil {
		return
	}
	var lines [][]string
	for _, f := range r.Read {
		size := ""
		if f.Inode != 0 {
			size = showBytes(f.SizeBytes)
		}
		var by []string
		for _, p := range f.Processes {
			by = append(by, showName(p))
		}
		lines = append(lines, []string{f.name, strconv.FormatUint(f.Reads, 10), showBytes(f.Bytes), size, showShort(f.First), strings.Join(by, ", ")})
	}
	fmt.Fprintln(w)
	table(w, []string{"FILE", "READS", "BYTES", "SIZE", "FIRST", "BY"}, lines)
	if r.Left > 0 {
		fmt.Fprintf(w, "and %s, of which %s were read\n", count(r.Left, "other"), showBytes(r.LeftBytes))
	}
}
