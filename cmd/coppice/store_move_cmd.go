package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"coppice/node"
)

type storeMoveCmd struct {
	output
	Layer string `arg:"" name:"STORE:LAYER" help:"Layer that no device uses."`
	To    string `arg:"" name:"STORE2[:NAME]" help:"Store that it goes to, and its name there (default: the same)."`
	Copy  bool   `help:"Leave the layer where it is, too."`
}

// Run moves the layer through the daemon, which may have a store open, or without it where none runs. To interrupt it cancels.
func (c *storeMoveCmd) Run(env *environment) error {
	r, err := c.request()
	if err != nil {
		return err
	}
	bar := newProgress(env.err, "move "+c.Layer)
	client := env.client()
	client.Wait = 0
	report, err := client.MoveLayer(env.ctx, r, bar.show)
	if node.CodeOf(err) == node.CodeNoDaemon {
		report, err = node.MoveLayerOffline(env.ctx, env.runDir, r, bar.show)
	}
	bar.end()
	if env.ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return &node.Error{Code: node.CodeFailed, Message: "move " + c.Layer + ": interrupted", Hint: "start it again; nothing is left of the copy"}
	}
	if err != nil {
		return explainStore(r.Store, err)
	}
	return c.print(env.out, report, func(w io.Writer) {
		what := "moved to"
		if c.Copy {
			what = "copied to"
		}
		fmt.Fprintf(w, "%s: %s %s:%s, %s of data\n", c.Layer, what, r.ToStore, report.Layer.Name, showBytes(report.Layer.DataBytes))
	})
}

func (c *storeMoveCmd) request() (node.MoveRequest, error) {
	r := node.MoveRequest{Copy: c.Copy}
	r.Store, r.Layer = splitLeaf(c.Layer)
	r.ToStore, r.ToLayer = splitLeaf(c.To)
	if r.Layer == "" {
		return r, &node.Error{Code: node.CodeBadRequest, Message: "move " + c.Layer + ": names no layer",
			Hint: "give STORE:LAYER; coppice store info lists the layers"}
	}
	var errStore, errTo error
	r.Store, errStore = filepath.Abs(r.Store)
	r.ToStore, errTo = filepath.Abs(r.ToStore)
	return r, errors.Join(errStore, errTo)
}
