package main

import (
	"fmt"
	"io"
)

type deleteCmd struct {
	output
	Name string `arg:"" help:"Name of the device."`
}

// Run deletes the device.
func (c *deleteCmd) Run(env *environment) error {
	d, err := env.client().Delete(env.ctx, c.Name)
	if err != nil {
		return err
	}
	return c.print(env.out, d, func(w io.Writer) {
		fmt.Fprintf(w, "%s: %s is gone; layer %s stays in %s\n", d.Name, d.Path, d.Leaf.Layer, d.Leaf.Store)
	})
}
