package main

import (
	"fmt"
	"io"

	"coppice/node/doctor"
)

type doctorCmd struct{ output }

// Run examines the machine. One that cannot run Coppice fails the command.
func (c *doctorCmd) Run(env *environment) error {
	list := doctor.Host().Examine()
	if err := c.print(env.out, list, func(w io.Writer) { writeFindings(w, list) }); err != nil {
		return err
	}
	if doctor.Failed(list) {
		return errSilent
	}
	return nil
}

func writeFindings(w io.Writer, list []doctor.Finding) {
	const indent = 6
	width := 0
	for _, f := range list {
		width = max(width, len(f.Check))
	}
	for _, f := range list {
		fmt.Fprintf(w, "%-*s%-*s  %s\n", indent, f.Level, width, f.Check, f.Detail)
		if f.ToDo != "" {
			fmt.Fprintf(w, "%-*s%-*s  to do: %s\n", indent, "", width, "", f.ToDo)
		}
	}
	if doctor.Failed(list) {
		fmt.Fprintln(w, "\nThis machine cannot serve devices as it is.")
		return
	}
	fmt.Fprintln(w, "\nThis machine can serve devices.")
}
