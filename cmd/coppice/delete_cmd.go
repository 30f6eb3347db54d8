package main

import (
	"fmt"
	"io"
	"os"
)

type deleteCmd struct {
	output
	Name   string `arg:"" help:"Name of the device."`
	Forget bool   `help:"Remove the file that declares the device, too: it does not come back after the next boot."`
}

// Run deletes the device.
func (c *deleteCmd) Run(env *environment) error {
	d, err := env.client().Delete(env.ctx, c.Name)
	if err != nil {
		return err
	}
	if c.Forget && d.Declared != "" {
		if err := os.Remove(d.Declared); err != nil {
			return fmt.Errorf("delete %s: the device is gone, but not what declares it: %w", d.Name, err)
		}
	}
	return c.print(env.out, d, func(w io.Writer) {
		fmt.Fprintf(w, "%s: %s is gone; layer %s stays in %s\n", d.Name, d.Path, d.Leaf.Layer, d.Leaf.Store)
		if d.Declared != "" && !c.Forget {
			fmt.Fprintf(w, "  %s declares it: it comes back when the daemon is started again, unless you remove that file\n", d.Declared)
		}
	})
}
