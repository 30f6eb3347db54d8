package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"coppice/cache"
	"coppice/image"
	"coppice/node"
	"coppice/union"
)

type inspectCmd struct {
	output
	Name string `arg:"" help:"Name of the device."`
}

// Run shows the device.
func (c *inspectCmd) Run(env *environment) error {
	d, err := env.client().Inspect(env.ctx, c.Name)
	if err != nil {
		return err
	}
	return c.print(env.out, d, func(w io.Writer) { writeDevice(w, d) })
}

func writeDevice(w io.Writer, d node.Device) {
	var r rows
	r.add("name", "%s", d.Name)
	r.add("state", "%s", d.State)
	r.add("device", "%s", d.Path)
	r.add("size", "%s", showBytesExact(d.SizeBytes))
	r.add("geometry", "%d-byte blocks, %s of %s%s", d.BlockSize, count(d.Queues, "queue"), count(d.Depth, "request"), onlyRead(d))
	r.add("created", "%s, in %.1f ms", d.Created.Format(time.RFC3339), d.CreateMS)
	if d.Restored != nil {
		r.add("restored", "%s, from an earlier daemon", d.Restored.Format(time.RFC3339))
	}
	r.add("used by", "%s", strings.Join(d.Holders, ", "))
	addRoot(&r, d.Root)
	addLeaf(&r, d.Leaf)
	addDetach(&r, d.Detach)
	if d.Stats != nil {
		addStats(&r, *d.Stats)
	}
	if d.Cache != nil {
		addCache(&r, *d.Cache)
	}
	if d.InFlight != nil {
		addInFlight(&r, d.InFlight)
	}
	r.write(w)
	writeFailure(w, d)
}

func onlyRead(d node.Device) string {
	if d.ReadOnly {
		return ", read-only"
	}
	return ""
}

func addRoot(r *rows, root node.Root) {
	if root.Path == "" {
		r.add("root", "none: the layer is complete")
		return
	}
	r.add("root", "%s", root.Path)
	if root.Content == "" {
		return
	}
	r.add("  size", "%s", showBytesExact(root.SizeBytes))
	if root.Verified {
		r.add("  content root", "%s", root.Content)
		r.add("  verified", "yes: each chunk against the content root, as it is read")
		addReplicas(r, root.Replicas)
		addHydration(r, root.Hydration)
		return
	}
	pin := "content " + root.Content[:min(12, len(root.Content))]
	if root.Modified != nil {
		pin += ", modified " + root.Modified.Format(time.RFC3339Nano)
	}
	r.add("  pin", "%s", pin)
	if !root.Verified {
		r.add("  verified", "no: a raw root is recognised by samples when it is opened; its chunks cannot be verified one by one")
	}
}

func addReplicas(r *rows, all []image.ReplicaStatus) {
	for _, p := range all {
		r.add("  replica", "%s", p.Ref)
		r.add("    state", "%s since %s, %s of the reads, %s in %s", p.State, p.Since.Format(time.RFC3339), showShare(p.Share), showBytes(p.Bytes), count(uint64(p.Requests), "request"))
		if p.Requests > 0 {
			r.add("    latency", "%.1f ms, 95 %% within %.1f ms", p.P50MS, p.P95MS)
		}
		if p.Failures > 0 {
			r.add("    failures", "%d, the last: %s", p.Failures, p.Error)
		}
	}
}

func showShare(share float64) string { return fmt.Sprintf("%.0f %%", 100*share) }

func addHydration(r *rows, h *node.Hydration) {
	if h == nil {
		return
	}
	percent := 100 * h.DoneBytes / max(h.TotalBytes, 1)
	r.add("  hydration", "%s, %d %%, %s of %s, to %s", h.State, percent, showBytes(h.DoneBytes), showBytes(h.TotalBytes), h.Ref)
	r.add("    waits for", "%s", h.Error)
}

func addLeaf(r *rows, leaf node.Leaf) {
	r.add("leaf", "%s", leaf.Store)
	r.add("  layer", "%s", leaf.Layer)
	if leaf.Info == nil {
		return
	}
	for _, l := range leaf.Info.Layers {
		if l.Name == leaf.Layer {
			r.add("  data", "%s in blocks of its own, map %s on the store, %s in memory",
				showBytes(l.DataBytes), showBytes(l.MapBytes), showBytes(l.MemoryBytes))
		}
	}
	if leaf.Quota != nil {
		r.add("  quota", "%s, %s", showBytes(leaf.QuotaBytes), showSpace(*leaf.Quota))
	}
	r.add("  store", "%s of %s, with %s", showSpace(leaf.Info.Space), showBytes(leaf.Info.SlotBytes), count(len(leaf.Info.Layers), "layer"))
	r.add("  uuid", "%s", leaf.Info.UUID)
	r.add("  FENCED", "%s", leaf.Info.Fenced)
	r.add("  recovery", "%s", showRecovery(leaf.Info.Recovery))
	r.add("  scrub", "%s", showScrub(leaf.Info.Scrub))
	if leaf.Info.Failed {
		r.add("  FAILED", "a write or flush of the store failed: writes get I/O errors until the daemon is restarted")
	}
}

func addDetach(r *rows, s *node.DetachStatus) {
	if s == nil {
		return
	}
	percent := 100 * s.DoneBytes / max(s.TotalBytes, 1)
	r.add("  detaching", "%d%%, %s of %s, %s copied", percent, showBytes(s.DoneBytes), showBytes(s.TotalBytes), showBytes(s.CopiedBytes))
	r.add("    waits for", "%s", s.Waiting)
}

func addStats(r *rows, s union.DeviceStats) {
	r.add("requests", "%s, %s, %s, %s",
		count(s.Reads, "read"), count(s.Writes, "write"), count(s.Flushes, "flush"), count(s.Discards, "discard"))
	memory := ""
	if s.RootMemoryBytes > 0 {
		memory = fmt.Sprintf(" (%s of it in memory)", showBytes(int64(s.RootMemoryBytes)))
	}
	r.add("  read", "%s from the leaf, %s from the root%s, %s zeros",
		showBytes(int64(s.LeafReadBytes)), showBytes(int64(s.RootReadBytes)), memory, showBytes(int64(s.ZeroReadBytes)))
	r.add("  written", "%s, and %s copied up", showBytes(int64(s.WrittenBytes)), showBytes(int64(s.CopiedUpBytes)))
	r.add("  errors", "%d, and %s", s.Errors, count(s.ChecksumErrors, "wrong checksum"))
}

// addCache says where what the device read of its root came from.
func addCache(r *rows, s cache.ReaderStats) {
	from := ""
	for _, t := range []struct {
		name string
		part cache.Part
	}{{"memory", s.Memory}, {"disk", s.Disk}, {"peers", s.Peers}, {"the appliance", s.Appliance}, {"the origin", s.Origin}} {
		if t.part.Chunks > 0 {
			from += fmt.Sprintf("%s from %s, ", showBytes(int64(t.part.Bytes)), t.name)
		}
	}
	r.add("root read", "%s%s waited: %s", from, count(s.Reads, "read"), showLatency(s.Fetch))
}

func addInFlight(r *rows, in *node.InFlight) {
	if in.Oldest == nil {
		r.add("in flight", "none")
		return
	}
	o := in.Oldest
	r.add("in flight", "%s", count(uint64(in.Requests), "request"))
	r.add("  oldest", "%s of %d bytes at %d for %s, waiting for %s (%s)",
		o.Op, o.Len, o.Off, time.Duration(o.AgeNanos).Round(time.Microsecond), o.Waits, count(uint64(o.TargetIO), "I/O"))
}
