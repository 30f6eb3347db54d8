package main

import (
	"fmt"
	"io"
	"strings"

	"coppice/node"
	"coppice/union"
)

type listCmd struct{ output }

// Run lists the devices.
func (c *listCmd) Run(env *environment) error {
	list, err := env.client().List(env.ctx)
	if err != nil {
		return err
	}
	return c.print(env.out, list, func(w io.Writer) { writeList(w, list) })
}

func writeList(w io.Writer, list []node.Device) {
	if len(list) == 0 {
		fmt.Fprintln(w, "no devices")
		return
	}
	var lines [][]string
	for _, d := range list {
		state := string(d.State)
		if d.ReadOnly {
			state += ", read-only"
		}
		lines = append(lines, []string{
			d.Name, d.Path, showBytes(d.SizeBytes), state, rootName(d.Root), d.Leaf.Store + ":" + d.Leaf.Layer, showRoom(d.Leaf), usedBy(d),
		})
	}
	table(w, []string{"NAME", "DEVICE", "SIZE", "STATE", "ROOT", "LEAF", "SPACE", "USED BY"}, lines)
	for _, d := range list {
		writeFailure(w, d)
	}
}

func rootName(r node.Root) string {
	if r.Path == "" {
		return "none"
	}
	return r.Path
}

// showRoom is a cell: how full the quota is, or else the store, and whether anybody waits.
func showRoom(leaf node.Leaf) string {
	if leaf.StoreSpace == nil {
		return "-"
	}
	room := fmt.Sprintf("%.0f%%", leaf.StoreSpace.UsedPercent)
	if leaf.Quota != nil {
		room = fmt.Sprintf("%.0f%% of %s", leaf.Quota.UsedPercent, showBytes(leaf.QuotaBytes))
	}
	switch {
	case waits(leaf.StoreSpace):
		room += ", store WAITING"
	case waits(leaf.Quota):
		room += ", WAITING"
	case leaf.StoreSpace.State == union.SpaceFull:
		room += ", store FULL"
	}
	return room
}

func waits(s *union.SpaceInfo) bool { return s != nil && s.State == union.SpaceWaiting }

func usedBy(d node.Device) string {
	if len(d.Holders) == 0 {
		return "-"
	}
	return strings.Join(d.Holders, ", ")
}

func writeFailure(w io.Writer, d node.Device) {
	if d.Error == "" {
		return
	}
	fmt.Fprintf(w, "%s: %s\n", d.Name, d.Error)
	if d.Hint != "" {
		fmt.Fprintf(w, "  to do: %s; then restart the daemon, or coppice delete %s\n", d.Hint, d.Name)
	}
}
