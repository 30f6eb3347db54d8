package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"coppice/node"
)

type detachCmd struct {
	output
	What       string `arg:"" name:"NAME|STORE:LAYER" help:"Device whose layer is to be made complete, or a layer of a store."`
	Root       string `placeholder:"REF" help:"Root that the layer stands on (default: that of the device, or of a device with the same)."`
	Rate       size   `placeholder:"SIZE" help:"Copy at most SIZE a second (default: what the devices leave)."`
	Background bool   `xor:"how" help:"Return as soon as it goes on by itself."`
	Stop       bool   `xor:"how" help:"Give up what was started, and free what was copied."`
}

// Run starts to detach, and shows the progress until it is done. To interrupt it leaves the work to the daemon.
func (c *detachCmd) Run(env *environment) error {
	r, err := c.request()
	if err != nil {
		return err
	}
	bar := newProgress(env.err, "detach "+c.What)
	show := func(s node.DetachStatus) { bar.show(s.DoneBytes, s.TotalBytes) }
	client := env.client()
	if r.Device == "" {
		client.Wait = 0
	}
	s, err := client.Detach(env.ctx, r, show)
	offline := node.CodeOf(err) == node.CodeNoDaemon && r.Device == ""
	if offline {
		s, err = node.DetachOffline(env.ctx, env.runDir, r, show)
	}
	bar.end()
	if errors.Is(err, context.Canceled) && env.ctx.Err() != nil {
		return c.interrupted(offline)
	}
	if err != nil {
		return explainStore(r.Store, err)
	}
	return c.print(env.out, s, func(w io.Writer) { fmt.Fprintf(w, "%s: %s\n", c.What, c.outcome(s)) })
}

func (c *detachCmd) request() (node.DetachRequest, error) {
	r := node.DetachRequest{BytesPerSecond: int64(c.Rate), Background: c.Background, Stop: c.Stop}
	store, layer := splitLeaf(c.What)
	if layer == "" {
		r.Device = c.What
	}
	var err error
	if layer != "" {
		r.Layer = layer
		r.Store, err = filepath.Abs(store)
	}
	if c.Root != "" && err == nil {
		r.Root, err = absoluteRoot(c.Root)
	}
	if err != nil {
		return r, fmt.Errorf("detach %s: %w", c.What, err)
	}
	return r, nil
}

func (c *detachCmd) outcome(s node.DetachStatus) string {
	switch {
	case s.Complete:
		return fmt.Sprintf("layer %s is complete, and needs neither root nor other layers", s.Layer)
	case c.Stop:
		return fmt.Sprintf("layer %s is not being detached", s.Layer)
	}
	return fmt.Sprintf("layer %s is being detached; coppice inspect and the same command again show how far it is", s.Layer)
}

// interrupted tells what becomes of the work.
func (c *detachCmd) interrupted(offline bool) error {
	e := &node.Error{
		Code: node.CodeFailed, Message: "detach " + c.What + ": interrupted; the daemon goes on with it",
		Hint: "the same command again shows the progress, with --stop it gives up",
	}
	if offline {
		e.Message, e.Hint = "detach "+c.What+": interrupted", "the same command again goes on, with --stop it gives up"
	}
	return e
}
