package main

import (
	"fmt"
	"io"
	"path/filepath"

	"coppice/node"
)

type storeRemoveCmd struct {
	output
	storePath
	Layer string `arg:"" help:"Layer that nothing uses."`
}

// Run removes the layer through the daemon, which may have the store open, or without it where none runs.
func (c *storeRemoveCmd) Run(env *environment) error {
	path, err := filepath.Abs(c.Path)
	if err != nil {
		return fmt.Errorf("remove layer %s: %w", c.Layer, err)
	}
	r := node.LayerRequest{Store: path, Layer: c.Layer}
	client := env.client()
	client.Wait = 0
	err = client.RemoveLayer(env.ctx, r)
	if node.CodeOf(err) == node.CodeNoDaemon {
		err = node.RemoveLayerOffline(env.runDir, r)
	}
	if err != nil {
		return explainStore(c.Path, err)
	}
	return c.print(env.out, r, func(w io.Writer) { fmt.Fprintf(w, "%s: layer %s is gone\n", c.Path, c.Layer) })
}
