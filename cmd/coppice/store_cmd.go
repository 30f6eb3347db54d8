package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"coppice/node"
	"coppice/union"
)

type storeCmd struct {
	Format     storeFormatCmd     `cmd:"" help:"Make a leaf store on a partition or in a file."`
	Check      storeCheckCmd      `cmd:"" help:"Read a whole store and tell what is damaged."`
	Info       storeInfoCmd       `cmd:"" help:"Show a store's size, space and layers."`
	Grow       storeGrowCmd       `cmd:"" help:"Make a store larger, also while devices use it."`
	BreakLease storeBreakLeaseCmd `cmd:"" help:"Take a store on shared storage from a node that is lost."`
	Remove     storeRemoveCmd     `cmd:"" help:"Remove a layer that nothing uses, and free its space."`
	Move       storeMoveCmd       `cmd:"" help:"Move or copy a layer to another store."`
	Scrub      storeScrubCmd      `cmd:"" help:"Have the daemon read a store in use all over, and mend what another copy holds."`
	Dump       storeDumpCmd       `cmd:"" help:"Print a store's structures as they lie on it."`
}

// storePath is the argument of all store commands.
type storePath struct {
	Path string `arg:"" help:"Partition, block device or file."`
}

// explainStore says what to do where that depends on the path.
func explainStore(path string, err error) error {
	switch {
	case errors.Is(err, union.ErrInUse):
		e := node.Explain(err)
		e.Hint = "its devices must be deleted first (coppice list shows them), or what has it mounted be ended"
		return e
	case errors.Is(err, union.ErrNotFormatted):
		e := node.Explain(err)
		e.Hint = "coppice store format " + path + " makes one"
		return e
	}
	return err
}

// writeStore prints a store for people.
func writeStore(w io.Writer, info union.StoreInfo) {
	var r rows
	r.add("store", "%s", info.Path)
	r.add("uuid", "%s", info.UUID)
	r.add("format", "version %d, generation %d", info.Version, info.Generation)
	r.add("size", "%s", showBytesExact(info.SizeBytes))
	r.add("space", "%s of %s", showSpace(info.Space), showBytes(info.SlotBytes))
	r.add("log", "%s of %s used, in two copies", showBytes(info.LogUsed), showBytes(info.LogBytes))
	if info.CacheBytes > 0 {
		r.add("cache", "%s reserved", showBytes(info.CacheBytes))
	}
	r.add("lease", "%s", showLease(info.Lease))
	if info.Failed {
		r.add("FAILED", "a write or flush of the store failed: it takes no writes until it is opened again")
	}
	r.add("recovery", "%s", showRecovery(info.Recovery))
	r.write(w)
	if len(info.Layers) == 0 {
		fmt.Fprintln(w, "no layers")
		return
	}
	fmt.Fprintln(w)
	var lines [][]string
	for _, l := range info.Layers {
		lines = append(lines, []string{
			l.Name, showBytes(l.SizeBytes), showBytes(l.DataBytes), showQuota(l), showBytes(l.MapBytes),
			l.Created.Format("2006-01-02 15:04:05"), showState(l), showParent(l), showPin(l.Pin),
		})
	}
	table(w, []string{"LAYER", "DEVICE SIZE", "DATA", "QUOTA", "MAP", "CREATED (UTC)", "STATE", "ON", "ROOT"}, lines)
}

func showState(l union.LayerInfo) string {
	switch {
	case l.Unfinished:
		return "unfinished"
	case l.Detaching && l.Sealed:
		return "sealed, detaching"
	case l.Detaching:
		return "writable, detaching"
	case l.Sealed:
		return "sealed"
	}
	return "writable"
}

// showParent says which layer another stands on.
func showParent(l union.LayerInfo) string {
	switch {
	case l.Parent != "":
		return l.Parent
	case l.Pin.Kind == union.PinNone:
		return "-"
	}
	return "root"
}

// showLease says who holds a store against other nodes.
func showLease(l *union.LeaseInfo) string {
	switch {
	case l == nil:
		return ""
	case l.State == "free":
		return fmt.Sprintf("free; last of node %q", l.Host)
	}
	return fmt.Sprintf("%s, node %q, process %d, since %s", l.State, l.Host, l.PID, l.Since.Format("2006-01-02 15:04:05"))
}

// showSpace says how full a store or a quota is, and what comes of it.
func showSpace(s union.SpaceInfo) string {
	text := fmt.Sprintf("%.1f%% full, %s free", s.UsedPercent, showBytes(s.AvailableBytes))
	switch s.State {
	case union.SpaceFull:
		text += ", FULL"
	case union.SpaceWaiting:
		text += fmt.Sprintf(", %s WAITING for space", count(uint64(s.Waiting), "request"))
	}
	if s.Refused > 0 {
		text += fmt.Sprintf(", %s refused so far", count(s.Refused, "request"))
	}
	return text
}

// showQuota is a cell: the quota and how full it is.
func showQuota(l union.LayerInfo) string {
	if l.Space == nil {
		return "-"
	}
	return fmt.Sprintf("%s, %.1f%%", showBytes(l.QuotaBytes), l.Space.UsedPercent)
}

func showRecovery(r union.Recovery) string {
	if r.LogBlocks == 0 && r.FromProcess == 0 && r.Repaired == 0 {
		return ""
	}
	parts := []string{fmt.Sprintf("%d log blocks with %d records replayed in %.0f ms", r.LogBlocks, r.Records, r.DurationSeconds*1000)}
	if r.FromProcess > 0 {
		parts = append(parts, fmt.Sprintf("%d of a process that died", r.FromProcess))
	}
	if r.Dropped > 0 {
		parts = append(parts, fmt.Sprintf("%d unflushed records dropped", r.Dropped))
	}
	if r.Repaired > 0 {
		parts = append(parts, fmt.Sprintf("%d blocks repaired from their other copy", r.Repaired))
	}
	return strings.Join(parts, ", ")
}

func showPin(p union.Pin) string {
	if p.Kind == union.PinNone {
		return "none"
	}
	kind := "raw"
	if p.Kind == union.PinImage {
		kind = "image"
	}
	return fmt.Sprintf("%s, %s, %s", kind, showBytes(p.SizeBytes), pinDigest(p))
}

// pinDigest is enough of the digest to tell roots apart by eye.
func pinDigest(p union.Pin) string { return fmt.Sprintf("%x", p.Digest[:6]) }
