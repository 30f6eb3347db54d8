package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"coppice/ebpf"
	"coppice/node"
)

type ebpfCmd struct {
	Load   ebpfLoadCmd   `cmd:"" help:"Load the programs that measure requests in the kernel, and give the daemon their memory; needs CAP_BPF and CAP_PERFMON."`
	Unload ebpfUnloadCmd `cmd:"" help:"Remove them."`
	Show   ebpfShowCmd   `cmd:"" help:"Show which are loaded, and what they cost."`
}

type ebpfPins struct {
	Pins string `placeholder:"DIR" default:"/sys/fs/bpf/coppice" type:"path" help:"Where they are pinned, in a bpf file system (${default})."`
}

type ebpfLoadCmd struct {
	output
	ebpfPins
	Devices int  `default:"64" help:"How many devices can be measured at a time (${default})."`
	Tags    int  `default:"65536" help:"How many requests all of them together can have (${default})."`
	Readers bool `help:"Count who reads, too, until they are unloaded: see coppice readers."`
}

type ebpfLoadReport struct {
	Dir     string `json:"dir"`
	New     bool   `json:"new"` // they were not loaded before
	Devices int    `json:"devices"`
	// NoPageCache says why it is not counted what programs have through the page cache.
	NoPageCache string `json:"no_page_cache,omitempty"`
}

// Run loads the programs. They stay where no daemon takes their memory.
func (c *ebpfLoadCmd) Run(env *environment) error {
	l, err := ebpf.Load(ebpf.LoadConfig{Pins: c.Pins, Devices: c.Devices, Tags: c.Tags, Readers: c.Readers})
	var lack *ebpf.LackError
	if errors.As(err, &lack) {
		return &node.Error{Code: node.CodeFailed, Message: err.Error(), Hint: lack.ToDo()}
	}
	if err != nil {
		return err
	}
	rep, err := env.client().Measure(env.ctx, l.Maps)
	if err := errors.Join(err, l.Close()); err != nil {
		return fmt.Errorf("the programs are loaded, and nobody uses them: %w", err)
	}
	said := ebpfLoadReport{Dir: l.Dir, New: l.New, Devices: rep.Devices}
	if l.NoPageCache != nil {
		said.NoPageCache = l.NoPageCache.Error()
	}
	return c.print(env.out, said, func(w io.Writer) {
		fmt.Fprintf(w, "requests of %s are measured; programs pinned in %s\n", count(uint64(rep.Devices), "device"), l.Dir)
		if said.NoPageCache != "" {
			fmt.Fprintf(w, "not counted here: what the page cache serves (%s)\n", said.NoPageCache)
		}
	})
}

type ebpfUnloadCmd struct {
	output
	ebpfPins
}

type ebpfUnloadReport struct {
	Unloaded bool `json:"unloaded"` // false: there was nothing
}

// Run has the daemon, if there is one, let the programs' memory go, and removes them.
func (c *ebpfUnloadCmd) Run(env *environment) error {
	client := env.client()
	client.Wait = 0
	_, err := client.EndMeasure(env.ctx)
	if node.CodeOf(err) == node.CodeNoDaemon {
		err = nil
	}
	there, removed := ebpf.Unload(c.Pins)
	if err := errors.Join(removed, err); err != nil {
		return err
	}
	return c.print(env.out, ebpfUnloadReport{there}, func(w io.Writer) {
		if there {
			fmt.Fprintln(w, "programs removed")
		} else {
			fmt.Fprintf(w, "no programs are pinned in %s\n", c.Pins)
		}
	})
}

type ebpfShowCmd struct {
	output
	ebpfPins
}

// Run shows the programs.
func (c *ebpfShowCmd) Run(env *environment) error {
	list, err := ebpf.Status(c.Pins)
	if err != nil {
		return err
	}
	return c.print(env.out, list, func(w io.Writer) {
		if len(list) == 0 {
			fmt.Fprintf(w, "no programs are pinned in %s\n", c.Pins)
			return
		}
		var lines [][]string
		for _, p := range list {
			each := "not counted: sysctl kernel.bpf_stats_enabled=1"
			if p.Runs > 0 {
				each = time.Duration(p.Nanos / p.Runs).String()
			}
			lines = append(lines, []string{p.Name, p.Point, strconv.FormatUint(p.Runs, 10), each})
		}
		table(w, []string{"PROGRAM", "TRACEPOINT", "RUNS", "EACH"}, lines)
	})
}

type latencyCmd struct {
	output
	Name string `arg:"" help:"Name of the device."`
}

// Run shows what was measured.
func (c *latencyCmd) Run(env *environment) error {
	rep, err := env.client().Latency(env.ctx, c.Name)
	if err != nil {
		return err
	}
	return c.print(env.out, rep, func(w io.Writer) { writeLatency(w, rep) })
}

func writeLatency(w io.Writer, rep node.LatencyReport) {
	if len(rep.Latencies) == 0 {
		fmt.Fprintln(w, "no requests yet")
		return
	}
	var lines [][]string
	for _, l := range rep.Latencies {
		line := []string{l.Op, l.Source, strconv.FormatUint(l.Count, 10), strconv.FormatUint(l.Mixed, 10), strconv.FormatUint(l.Errors, 10),
			showShort(time.Duration(l.Seconds / float64(l.Count) * float64(time.Second)))}
		for _, percent := range []float64{50, 90, 99, 100} {
			line = append(line, showBound(&l, percent))
		}
		lines = append(lines, line)
	}
	table(w, []string{"OPERATION", "FROM", "REQUESTS", "MIXED", "ERRORS", "MEAN", "50%", "90%", "99%", "ALL"}, lines)
}

// longest is where the last bucket begins.
const longest = 16 * time.Second

func showBound(l *ebpf.Latency, percent float64) string {
	d := l.Percentile(percent)
	if d > longest {
		return ">" + longest.String()
	}
	return "<" + showShort(d)
}

// showShort rounds to three digits or so.
func showShort(d time.Duration) string {
	for _, unit := range []time.Duration{time.Second, time.Millisecond, time.Microsecond} {
		if d >= 100*unit {
			return d.Round(unit).String()
		}
		if d >= unit {
			return d.Round(unit / 100).String()
		}
	}
	return d.String()
}
