package main

import (
	"log/slog"

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
