package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"coppice/cache"
	"coppice/node"
)

type cacheCmd struct {
	Stats cacheStatsCmd `cmd:"" help:"Show what the cache of this machine holds, and what it was good for."`
	Curve cacheCurveCmd `cmd:"" help:"Show what memory misses, and would miss with other thresholds."`
	Warm  cacheWarmCmd  `cmd:"" help:"Bring a device's root into the cache, behind those who read it."`
	Drop  cacheDropCmd  `cmd:"" help:"Forget what is cached."`
	Set   cacheSetCmd   `cmd:"" help:"Change the cache while it is in use."`
	Trace cacheTraceCmd `cmd:"" help:"Write to a file what a device has asked its root for first."`
}

type cacheStatsCmd struct {
	output
}

// Run shows the cache.
func (c *cacheStatsCmd) Run(env *environment) error {
	rep, err := env.client().CacheStats(env.ctx)
	if err != nil {
		return err
	}
	return c.print(env.out, rep, func(w io.Writer) { writeCache(w, rep) })
}

func writeCache(w io.Writer, rep node.CacheReport) {
	m, all := rep.Memory, rep.Readers
	var r rows
	r.add("memory", "%s of %s, %s, %s", showBytes(m.UsedBytes), showBytes(m.ThresholdBytes), count(m.Chunks, "chunk"), rep.Policy)
	r.add("  read", "%s", showPart(all.Memory))
	r.add("  evicted", "%d, and %d not taken", m.Evictions, m.Refused)
	addTier(&r, "disk", rep.Disk, all.Disk)
	addTier(&r, "peers", rep.Peers, all.Peers)
	addTier(&r, "appliance", rep.Appliance, all.Appliance)
	r.add("origin", "%s, %s in %s, %s", showPart(all.Origin), showBytes(int64(rep.Origin.Bytes)), count(rep.Origin.Reads, "read"), count(rep.Origin.Errors, "error"))
	r.add("  took", "%s", showLatency(rep.Origin.Latency))
	r.add("waits", "%s, %s, %s", count(all.Reads, "read"), count(all.Errors, "error"), showLatency(all.Fetch))
	r.add("for others", "%s, %d hits, %d misses", showBytes(int64(rep.Served.Bytes)), rep.Served.Hits, rep.Served.Misses)
	p := rep.Prefetch
	r.add("prefetched", "%s by %s, %s read ahead", showBytes(int64(p.ReplayedBytes)), count(p.Replays, "replay"), showBytes(int64(p.ReadaheadBytes)))
	r.write(w)
	if len(rep.Devices) == 0 {
		return
	}
	fmt.Fprintln(w)
	var lines [][]string
	for _, d := range rep.Devices {
		line := []string{d.Name}
		for _, p := range []cache.Part{d.Memory, d.Disk, d.Peers, d.Appliance, d.Origin, d.Zeros} {
			line = append(line, showBytes(int64(p.Bytes)))
		}
		lines = append(lines, append(line, showLatency(d.Fetch)))
	}
	table(w, []string{"DEVICE", "MEMORY", "DISK", "PEERS", "APPLIANCE", "ORIGIN", "ZEROS", "WAITS"}, lines)
}

func addTier(r *rows, name string, s *cache.TierStats, read cache.Part) {
	if s == nil {
		return
	}
	aside := ""
	if s.Aside {
		aside = ", which does not answer and is not asked for a while"
	}
	r.add(name, "%s%s", showPart(read), aside)
	r.add("  asked", "%d hits, %d misses, %s, %d wrong, %d skipped", s.Hits, s.Misses, count(s.Errors, "error"), s.Rejected, s.Skipped)
	r.add("  took", "%s", showLatency(s.Latency))
}

func showPart(p cache.Part) string {
	return fmt.Sprintf("%s in %s", showBytes(int64(p.Bytes)), count(p.Chunks, "part"))
}

// showLatency says how long the middle one of all took, and the slowest but one in a hundred, to a factor of two.
func showLatency(h cache.Histogram) string {
	if h.Count == 0 {
		return "none"
	}
	return fmt.Sprintf("half within %s, 99%% within %s", showWithin(h, 50), showWithin(h, 99))
}

func showWithin(h cache.Histogram, percent uint64) string {
	seen := uint64(0)
	for _, b := range h.Buckets {
		if seen += b.Count; seen*100 >= h.Count*percent {
			if b.Below == 0 {
				break
			}
			return time.Duration(b.Below * float64(time.Second)).String()
		}
	}
	return "more than a minute"
}

type cacheDropCmd struct {
	output
	Disk bool `help:"Also what is cached on disk, which survives restarts otherwise."`
}

// Run has the daemon forget.
func (c *cacheDropCmd) Run(env *environment) error {
	rep, err := env.client().DropCache(env.ctx, node.CacheDropRequest{Disk: c.Disk})
	if err != nil {
		return err
	}
	return c.print(env.out, rep, func(w io.Writer) {
		what := "memory"
		if c.Disk && rep.Disk != nil {
			what = "memory and disk"
		}
		fmt.Fprintf(w, "cache dropped: %s\n", what)
	})
}

type cacheSetCmd struct {
	output
	Memory *size `required:"" placeholder:"SIZE" help:"Threshold of the memory tier; 0 for an eighth of the machine's memory, at most 2G."`
}

// Run changes the cache.
func (c *cacheSetCmd) Run(env *environment) error {
	rep, err := env.client().SetCache(env.ctx, node.CacheSetRequest{MemoryBytes: int64(*c.Memory)})
	if err != nil {
		return err
	}
	return c.print(env.out, rep, func(w io.Writer) {
		fmt.Fprintf(w, "cache: at most %s in memory, now %s, until the daemon is started again\n", showBytes(rep.Memory.ThresholdBytes), showBytes(rep.Memory.UsedBytes))
	})
}

type cacheWarmCmd struct {
	output
	Name  string `arg:"" help:"Name of the device."`
	Trace string `placeholder:"FILE" type:"path" help:"Only what this file names, as coppice cache trace writes it (default: all of the root that is not zeros)."`
}

// Run warms the cache. What has come when it is interrupted stays.
func (c *cacheWarmCmd) Run(env *environment) error {
	bar := newProgress(env.err, "warm "+c.Name)
	rep, err := env.client().WarmCache(env.ctx, c.Name, node.CacheWarmRequest{Trace: c.Trace}, bar.show)
	bar.end()
	if errors.Is(err, context.Canceled) && env.ctx.Err() != nil {
		return &node.Error{Code: node.CodeFailed, Message: "warm cache with the root of " + c.Name + ": interrupted", Hint: "start it again: what has come is there"}
	}
	if err != nil {
		return err
	}
	return c.print(env.out, rep, func(w io.Writer) {
		fmt.Fprintf(w, "%s: %s of the root are cached, of which %s had to be read\n", c.Name, showBytes(rep.Bytes), showBytes(rep.ReadBytes))
		if rep.Partly {
			fmt.Fprintf(w, "  warning: the rest of %s does not fit: give the cache more memory, or a disk\n", showBytes(rep.TotalBytes))
		}
	})
}

type cacheTraceCmd struct {
	output
	Name string `arg:"" help:"Name of the device."`
	File string `arg:"" type:"path" help:"File to write; one that exists is replaced."`
}

type traceReport struct {
	File  string `json:"file"`
	Bytes int    `json:"bytes"`
}

// Run writes the trace.
func (c *cacheTraceCmd) Run(env *environment) error {
	data, err := env.client().CacheTrace(env.ctx, c.Name)
	if err != nil {
		return err
	}
	if err := replaceFile(c.File, data); err != nil {
		return fmt.Errorf("write trace of %s: %w", c.Name, err)
	}
	return c.print(env.out, traceReport{c.File, len(data)}, func(w io.Writer) {
		fmt.Fprintf(w, "%s: what it asked its root for is in %s\n", c.Name, c.File)
	})
}

// replaceFile writes a file in one step, so that none is left half written.
func replaceFile(path string, data []byte) error { return replaceFileFrom(path, bytes.NewReader(data)) }
