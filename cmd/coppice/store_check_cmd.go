package main

import (
	"fmt"
	"io"

	"coppice/union"
)

type storeCheckCmd struct {
	output
	storePath
	Repair bool `help:"Write again what only one of two copies holds. Nothing else is changed."`
	NoData bool `help:"Check the structures only, not the data blocks."`
}

// Run checks the store. Damage that remains fails the command.
func (c *storeCheckCmd) Run(env *environment) error {
	rep, err := union.Check(c.Path, union.CheckOptions{Repair: c.Repair, NoData: c.NoData})
	if err != nil {
		return explainStore(c.Path, err)
	}
	if err := c.print(env.out, rep, func(w io.Writer) { c.write(w, rep) }); err != nil {
		return err
	}
	if len(rep.Problems) > 0 {
		return errSilent
	}
	return nil
}

func (c *storeCheckCmd) write(w io.Writer, rep *union.CheckReport) {
	for _, p := range rep.Repaired {
		fmt.Fprintf(w, "%s: repaired: %s\n", c.Path, p)
	}
	repairable := 0
	for _, p := range rep.Problems {
		fmt.Fprintf(w, "%s: %s\n", c.Path, p)
		if p.Repairable {
			repairable++
		}
	}
	switch {
	case len(rep.Problems) == 0:
		fmt.Fprintf(w, "%s: sound; %s, %s verified\n", c.Path, count(len(rep.Store.Layers), "layer"), count(rep.DataBlocks, "data block"))
	case repairable == len(rep.Problems):
		fmt.Fprintf(w, "%s: %s, to be repaired from another copy\n  to do: coppice store check --repair %s\n", c.Path, count(len(rep.Problems), "problem"), c.Path)
	default:
		fmt.Fprintf(w, "%s: %s, %d of them repairable\n  to do: copy the store before anything else (dd), then restore its layers from a backup\n",
			c.Path, count(len(rep.Problems), "problem"), repairable)
	}
}
