package main

import (
	"fmt"
	"io"
	"strings"

	"coppice/node"
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
			d.Name, d.Path, showBytes(d.SizeBytes), state, rootName(d.Root), d.Leaf.Store + ":" + d.Leaf.Layer, usedBy(d),
		})
	}
	table(w, []string{"NAME", "DEVICE", "SIZE", "STATE", "ROOT", "LEAF", "USED BY"}, lines)
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
