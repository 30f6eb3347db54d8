package main

import (
	"fmt"
	"io"
	"path/filepath"

	"coppice/node"
	"coppice/union"
)

type storeGrowCmd struct {
	output
	storePath
	Size size `placeholder:"SIZE" help:"New size: a file is extended to it (default: all there is of the file or device now)."`
}

// Run grows the store through the daemon, which may have it open, or without it where none runs.
func (c *storeGrowCmd) Run(env *environment) error {
	path, err := filepath.Abs(c.Path)
	if err != nil {
		return fmt.Errorf("grow store %s: %w", c.Path, err)
	}
	r := node.GrowRequest{Store: path, SizeBytes: int64(c.Size)}
	client := env.client()
	client.Wait = 0
	var info union.StoreInfo
	info, err = client.GrowStore(env.ctx, r)
	if node.CodeOf(err) == node.CodeNoDaemon {
		info, err = node.GrowStoreOffline(env.runDir, r)
	}
	if err != nil {
		return explainStore(c.Path, err)
	}
	return c.print(env.out, info, func(w io.Writer) {
		fmt.Fprintf(w, "%s: %s, room for %s more\n", c.Path, showBytes(info.SizeBytes), showBytes(info.Space.AvailableBytes))
	})
}
