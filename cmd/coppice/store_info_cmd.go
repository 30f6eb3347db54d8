package main

import (
	"io"

	"coppice/union"
)

type storeInfoCmd struct {
	output
	storePath
}

// Run shows the store as it lies there, without changing it.
func (c *storeInfoCmd) Run(env *environment) error {
	st, err := union.OpenStore(c.Path, union.StoreOptions{ReadOnly: true})
	if err != nil {
		return explainStore(c.Path, err)
	}
	info := st.Info()
	if err := st.Close(); err != nil {
		return err
	}
	return c.print(env.out, info, func(w io.Writer) { writeStore(w, info) })
}
