package main

import (
	"fmt"
	"io"
)

type indexUpdateCmd struct {
	output
	leafIndex
	On string `placeholder:"NAME" help:"Device (the only one that there is)."`
}

// Run does what `coppice index find` and the others do by themselves before they answer, as updatedb does it for locate: after it, they have little left to do.
func (c *indexUpdateCmd) Run(env *environment) error {
	on := indexOn{On: c.On, ofRoot: c.Index}
	name, err := on.on(env)
	if err != nil {
		return err
	}
	return explainIndex(on.withDevice(env, name, func(x *askedIndex) error {
		_, total, err := c.update(env, x)
		if err != nil {
			return err
		}
		return c.print(env.out, total, func(w io.Writer) {
			total.explain(w)
			fmt.Fprintf(w, "%s: %s indexed, %s not in use any more; read %s in %s; paused for %.1f ms\n", name, count(int(total.Read.Files+total.Read.Kept), "changed file"),
				count(int(total.Read.Deleted), "inode"), showBytes(total.Read.ReadBytes), count(int(total.Read.Reads), "piece"), total.PauseMS)
		})
	}))
}
