package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"coppice/node"
	"coppice/supervise"
)

// superviseCmd is the process that [supervise.Start] leaves.
type superviseCmd struct{}

// Run ends when it is told to, or when the first daemon does not come up.
func (superviseCmd) Run(*environment) error {
	log := node.Config{}.NewLog()
	slog.SetDefault(log)
	return supervise.Run(log)
}

// releaseCmd is for what shuts a machine down whose root is on a device.
type releaseCmd struct{}

// Run takes a minute at most.
func (releaseCmd) Run(env *environment) error {
	const limit = time.Minute
	ctx, cancel := context.WithTimeout(env.ctx, limit)
	defer cancel()
	return supervise.Release(ctx, env.runDir, 0, func(text string) { fmt.Fprintln(env.out, "coppice: "+text) })
}
