package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"coppice/ebpf"
	"coppice/ebpf/boottrace"
	"coppice/image"
	"coppice/node"
)

type traceCmd struct {
	Start  traceStartCmd  `cmd:"" help:"Have the kernel record the requests of all devices, also of those that are made later; needs CAP_BPF and CAP_PERFMON."`
	Stop   traceStopCmd   `cmd:"" help:"End that, and forget what was recorded."`
	Record traceRecordCmd `cmd:"" help:"Write what was recorded of a device to a file, and end the recording."`
	Show   traceShowCmd   `cmd:"" help:"Show what is in a trace."`
	Attach traceAttachCmd `cmd:"" help:"Store a trace beside an image, so that all nodes read ahead by it."`
}

type tracePins struct {
	Pins string `placeholder:"DIR" default:"/sys/fs/bpf/coppice-trace" type:"path" help:"Where the programs are pinned, in a bpf file system (${default})."`
}

// traceRing says how to record.
type traceRing struct {
	tracePins
	Ring  size   `default:"8M" placeholder:"SIZE" help:"Memory for requests that nobody has read yet, 80 bytes for each: a power of two (${default})."`
	Marks string `placeholder:"DIR" default:"/sys/fs/bpf/coppice" type:"path" help:"Where coppice ebpf load has pinned what knows where data comes from (${default})."`
}

// start has requests recorded, if they are not already.
func (f traceRing) start() (*ebpf.Recording, error) {
	r, err := ebpf.StartRecording(ebpf.TraceConfig{Pins: f.Pins, RingBytes: int(min(f.Ring, 1<<31-1)), Marks: f.Marks})
	return r, explainTrace(err)
}

// explainTrace says what to do about an error with recording.
func explainTrace(err error) error {
	var lack *ebpf.LackError
	switch {
	case errors.As(err, &lack):
		return &node.Error{Code: node.CodeFailed, Message: err.Error(), Hint: lack.ToDo()}
	case errors.Is(err, ebpf.ErrOtherTrace):
		return &node.Error{Code: node.CodeFailed, Message: err.Error(), Hint: "have that version write its file, or forget what it has: coppice trace stop"}
	}
	return err
}

type traceStartCmd struct {
	output
	traceRing
}

type traceStartReport struct {
	Dir    string `json:"dir"`
	New    bool   `json:"new"`    // it was not recorded before
	Marked bool   `json:"marked"` // with where data comes from
}

// Run starts to record. It goes on when the command has ended.
func (c *traceStartCmd) Run(env *environment) error {
	r, err := c.start()
	if err != nil {
		return err
	}
	rep := traceStartReport{r.Dir, r.New, r.Marked}
	if err := r.Close(); err != nil {
		return err
	}
	return c.print(env.out, rep, func(w io.Writer) {
		switch {
		case !rep.New:
			fmt.Fprintln(w, "requests are being recorded already, as it was started")
		case rep.Marked:
			fmt.Fprintln(w, "requests are recorded, with where their data comes from")
		default:
			fmt.Fprintln(w, "requests are recorded, without where their data comes from: coppice ebpf load has not been run before")
		}
	})
}

type traceStopCmd struct {
	output
	tracePins
}

type traceStopReport struct {
	Stopped bool `json:"stopped"` // false: nothing was recorded
}

// Run ends the recording.
func (c *traceStopCmd) Run(env *environment) error {
	there, err := ebpf.StopRecording(c.Pins)
	if err != nil {
		return err
	}
	return c.print(env.out, traceStopReport{there}, func(w io.Writer) {
		if there {
			fmt.Fprintln(w, "nothing is recorded any more")
		} else {
			fmt.Fprintln(w, "nothing was being recorded")
		}
	})
}

type traceRecordCmd struct {
	output
	traceRing
	Name string        `arg:"" help:"Name of the device."`
	File string        `arg:"" type:"path" help:"File to write; one that exists is replaced."`
	For  time.Duration `placeholder:"DURATION" help:"How long to go on recording. Without it, what has been recorded since coppice trace start is written at once; if nothing has, until interrupted."`
}

type traceRecordReport struct {
	File    string        `json:"file"`
	Bytes   int           `json:"bytes"`
	Events  int           `json:"events"`
	Lost    uint64        `json:"lost"`
	Unasked uint64        `json:"unasked"` // requests, of any device, that are recorded without who made them
	Lasted  time.Duration `json:"duration_nanos"`
}

// cgroupMount is where the unified hierarchy of cgroups is.
const cgroupMount = "/sys/fs/cgroup"

// Run writes the trace. Nothing that has been recorded is taken before it is sure that there is a device and a place for the file.
func (c *traceRecordCmd) Run(env *environment) error {
	d, err := env.client().Inspect(env.ctx, c.Name)
	if err != nil {
		return err
	}
	disk, err := ebpf.DiskIDOf("/sys", filepath.Base(d.Path))
	if err != nil {
		return fmt.Errorf("record %s: %w", c.Name, err)
	}
	if err := canReplace(c.File); err != nil {
		return &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("record %s: %v", c.Name, err), Hint: "give a file in a directory that can be written to; what is recorded stays until then"}
	}
	t, counts, err := c.record(env, d, disk)
	if err != nil {
		return explainTrace(fmt.Errorf("record %s: %w", c.Name, err))
	}
	data, err := t.Encode()
	if err != nil {
		return err
	}
	if err := replaceFile(c.File, data); err != nil {
		return fmt.Errorf("write trace of %s: %w", c.Name, err)
	}
	s := t.Summary()
	rep := traceRecordReport{c.File, len(data), len(t.Events), t.Lost, counts.Unasked, s.Lasted}
	return c.print(env.out, rep, func(w io.Writer) {
		fmt.Fprintf(w, "%s: %s in %s are in %s; %s lost\n", c.Name, count(uint64(rep.Events), "request"), showShort(rep.Lasted), c.File, showLost(rep.Lost))
	})
}

// showLost says how many events are missing, and of what that comes.
func showLost(n uint64) string {
	if n == 0 {
		return "none"
	}
	return strconv.FormatUint(n, 10) + " of any device (the ring was full: take a larger one, --ring)"
}

// canReplace fails where replaceFile would.
func canReplace(path string) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// record takes what the kernel has recorded, and ends the recording.
func (c *traceRecordCmd) record(env *environment, d node.Device, disk ebpf.DiskID) (*boottrace.Trace, ebpf.TraceCounts, error) {
	var counts ebpf.TraceCounts
	r, err := ebpf.OpenRecording(c.Pins)
	if errors.Is(err, fs.ErrNotExist) {
		r, err = c.start()
	}
	if err != nil {
		return nil, counts, err
	}
	defer func() { _ = r.Close() }()
	all := boottrace.NewCollector(disk)
	if err := r.Read(c.until(env, r.New), all.Add); err != nil {
		return nil, counts, err
	}
	facts, err := c.facts(env, d)
	if err != nil {
		return nil, counts, err
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	err = errors.Join(r.Stop(), r.Read(ended, all.Add))
	if err == nil {
		counts, err = r.Counts()
	}
	facts.Lost = counts.Lost
	return all.Trace(facts), counts, err
}

// until is the context that ends when recording is to.
func (c *traceRecordCmd) until(env *environment, fresh bool) context.Context {
	switch {
	case c.For > 0:
		ctx, cancel := context.WithTimeout(env.ctx, c.For)
		context.AfterFunc(ctx, cancel)
		return ctx
	case fresh:
		fmt.Fprintf(env.err, "recording %s until interrupted\n", c.Name)
		return env.ctx
	}
	ctx, cancel := context.WithCancel(env.ctx)
	cancel()
	return ctx
}

// factsTime bounds how long it may take to find out what is to be known beside the events, also when the recording was interrupted.
const factsTime = 30 * time.Second

// rawChunk is what a raw root, which has no chunks, is counted in.
const rawChunk = image.DefaultChunkSize

// facts finds out what is to be known beside the events.
func (c *traceRecordCmd) facts(env *environment, d node.Device) (boottrace.Facts, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(env.ctx), factsTime)
	defer cancel()
	t := boottrace.Trace{ContentBytes: max(d.Root.SizeBytes, 1), ChunkSize: rawChunk, DeviceBytes: d.SizeBytes}
	if d.Root.Verified {
		t.ChunkSize = d.Root.ChunkSize
		if n, err := hex.Decode(t.Root[:], []byte(d.Root.Content)); err != nil || n != len(t.Root) {
			return boottrace.Facts{}, fmt.Errorf("the daemon says that the content root is %.80q", d.Root.Content)
		}
	}
	var uts unix.Utsname
	var clock unix.Timespec
	if err := errors.Join(unix.Uname(&uts), unix.ClockGettime(unix.CLOCK_MONOTONIC, &clock)); err != nil {
		return boottrace.Facts{}, err
	}
	t.Kernel = unix.ByteSliceToString(uts.Release[:])
	f := boottrace.Facts{Trace: t, Now: time.Now(), Clock: time.Duration(clock.Nano()), Cgroups: boottrace.CgroupPaths(cgroupMount)}
	var held [][2]int64
	err := env.client().Changed(ctx, c.Name, func(p node.ChangedPart) error {
		for _, x := range p.Extents {
			held = append(held, [2]int64{x.Off, x.Off + x.Len})
		}
		return nil
	})
	f.Leaf = func(yield func(from, to int64) bool) {
		for _, x := range held {
			if !yield(x[0], x[1]) {
				return
			}
		}
	}
	return f, err
}

type traceShowCmd struct {
	output
	sourceFlags
	Trace string `arg:"" help:"File with a trace, or the image that one is attached to, or the device on such an image."`
	Plot  string `placeholder:"FILE" type:"path" help:"Also draw what was read, by time and offset: FILE ends with .svg or .png, and one that exists is replaced."`
	tracedFiles
}

// traceShowReport is what show prints.
type traceShowReport struct {
	boottrace.Summary
	Files *traceFiles `json:"files,omitempty"` // where asked for
}

// Validate refuses a plot in another format.
func (c *traceShowCmd) Validate() error { return validPlot(c.Plot) }

// Run shows the trace.
func (c *traceShowCmd) Run(env *environment) error {
	t, err := c.read(env)
	if err != nil {
		return err
	}
	if c.Plot != "" {
		if err := drawPlot("the trace", traceHeatMap(t), c.Plot); err != nil {
			return err
		}
	}
	rep := traceShowReport{Summary: t.Summary()}
	if c.Files {
		if rep.Files, err = c.of(env, c.Trace, c.sourceFlags, t); err != nil {
			return err
		}
	}
	return c.print(env.out, rep, func(w io.Writer) {
		writeTrace(w, rep.Summary)
		rep.Files.write(w)
		if c.Plot != "" {
			fmt.Fprintf(w, "plot: %s\n", c.Plot)
		}
	})
}

// read finds what is meant: what is a file, is that.
func (c *traceShowCmd) read(env *environment) (*boottrace.Trace, error) {
	if _, err := os.Stat(c.Trace); err == nil {
		t, _, err := readEvents(c.Trace)
		return t, err
	}
	ref, err := image.ParseRef(c.Trace)
	if err == nil && ref.Kind == image.KindFile && node.ValidName(c.Trace) {
		d, err := env.client().Inspect(env.ctx, c.Trace)
		if err != nil {
			return nil, err
		}
		ref, err = image.ParseRef(d.Root.Path)
		if err != nil || ref.Kind == image.KindFile {
			return nil, &node.Error{Code: node.CodeFailed, Message: fmt.Sprintf("show trace of %s: its root is a raw disk, to which none can be attached", c.Trace),
				Hint: "give a file, as coppice trace record writes it"}
		}
	}
	if err != nil || ref.Kind == image.KindFile {
		return nil, &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("show trace: there is no file %s", c.Trace),
			Hint: "give a file, an image (oci:DIR:NAME:TAG, http://HOST/DIR:NAME:TAG or HOST/REPOSITORY:TAG), or the name of a device"}
	}
	var t *boottrace.Trace
	err = c.withImage(env.ctx, ref, func(im *image.Image) error {
		data, err := image.TraceEvents(env.ctx, im)
		if errors.Is(err, image.ErrNotFound) {
			return &node.Error{Code: node.CodeNotFound, Message: err.Error(), Hint: "coppice trace attach attaches one"}
		}
		if err == nil {
			t, err = boottrace.Decode(data)
		}
		return err
	})
	return t, explainImage(env, ref, err)
}

// readEvents reads a file with a trace.
func readEvents(path string) (*boottrace.Trace, []byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, fmt.Errorf("read trace: %w", err)
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, boottrace.MaxFile+1))
	if err != nil {
		return nil, nil, fmt.Errorf("read trace: %w", err)
	}
	t, err := boottrace.Decode(data)
	if err != nil {
		return nil, nil, &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("read trace %s: %v", path, err), Hint: "give a file that coppice trace record has written"}
	}
	return t, data, nil
}

func writeTrace(w io.Writer, s boottrace.Summary) {
	var r rows
	root := "a raw disk"
	if s.Root != (image.Digest{}) {
		root = s.Root.String()
	}
	r.add("root", "%s, %s in chunks of %s", root, showBytes(s.ContentBytes), showBytes(int64(s.ChunkSize)))
	r.add("recorded", "%s, %s after the kernel started, for %s, on Linux %s", s.Began.UTC().Format(time.RFC3339), showShort(s.Uptime), showShort(s.Lasted), s.Kernel)
	r.add("reads", "%s", showRequests(s.Reads))
	r.add("writes", "%s", showRequests(s.Writes))
	r.add("chunks", "%d of the root were read, %s; %d to prefetch", s.Chunks, showBytes(int64(s.Chunks)*int64(s.ChunkSize)), s.Prefetch)
	r.add("lost", "%s", showLost(s.Lost))
	r.write(w)
	for _, group := range []struct {
		name string
		list []boottrace.NamedPart
	}{{"FROM", s.Sources}, {"PROCESS", s.Process}, {"CGROUP", s.Cgroup}} {
		if len(group.list) == 0 {
			continue
		}
		var lines [][]string
		for _, p := range group.list {
			lines = append(lines, []string{showName(p.Name), strconv.FormatUint(p.Count, 10), showBytes(p.Bytes), showShort(p.First), showShort(p.Last), showShort(p.Took / time.Duration(p.Count))})
		}
		fmt.Fprintln(w)
		table(w, []string{group.name, "READS", "BYTES", "FIRST", "LAST", "MEAN"}, lines)
	}
}

// showName keeps what a process calls itself from moving the cursor.
func showName(name string) string {
	quoted := strconv.Quote(name)
	switch {
	case name == "":
		return "(not known)"
	case quoted == `"`+name+`"`:
		return name
	}
	return quoted
}

func showRequests(p boottrace.Part) string {
	if p.Count == 0 {
		return "none"
	}
	text := fmt.Sprintf("%d of %s, from %s to %s", p.Count, showBytes(p.Bytes), showShort(p.First), showShort(p.Last))
	if p.Failed > 0 {
		text += fmt.Sprintf("; %d failed", p.Failed)
	}
	return text
}

type traceAttachCmd struct {
	output
	sourceFlags
	Image imageRef `arg:"" help:"Image that the trace is of: oci:DIR:NAME:TAG or HOST/REPOSITORY:TAG."`
	File  string   `arg:"" type:"existingfile" help:"File that coppice trace record has written."`
}

type traceAttachReport struct {
	Image       string       `json:"image"`
	ContentRoot image.Digest `json:"content_root"`
	Chunks      int          `json:"chunks"` // that are read ahead
	Events      int          `json:"events"`
}

// Run attaches the trace.
func (c *traceAttachCmd) Run(env *environment) error {
	t, events, err := readEvents(c.File)
	if err != nil {
		return err
	}
	list := t.Prefetch()
	rep := traceAttachReport{c.Image.String(), t.Root, len(list.Chunks), len(t.Events)}
	if rep.Chunks == 0 {
		return &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("attach %s to %s: it has no read of an image", c.File, c.Image), Hint: "record a device on the image that reads of it"}
	}
	err = c.withImage(env.ctx, c.Image.Ref, func(im *image.Image) error {
		o, err := c.options()
		if err != nil {
			return err
		}
		dst, err := c.Image.Target(o)
		if err != nil {
			return err
		}
		err = image.AttachTrace(env.ctx, im, dst, image.Trace{Root: t.Root, Chunks: list.Encode(), Events: events})
		return errors.Join(err, dst.Close())
	})
	if errors.Is(err, image.ErrOther) {
		return &node.Error{Code: node.CodeOtherRoot, Message: err.Error(), Hint: "attach it to the image that the device stood on: coppice trace show " + c.File}
	}
	if err != nil {
		return explainImage(env, c.Image.Ref, err)
	}
	return c.print(env.out, rep, func(w io.Writer) {
		fmt.Fprintf(w, "%s: trace attached, %s to read ahead, %s\n", c.Image, count(uint64(rep.Chunks), "chunk"), count(uint64(rep.Events), "request"))
	})
}
