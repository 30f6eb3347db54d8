package main

import (
	"fmt"
	"io"

	"coppice/node"
)

type versionCmd struct{ output }

type versions struct {
	node.ProgramVersion
	Daemon *node.VersionInfo `json:"daemon,omitempty"` // absent where none answers
}

// Run shows the versions. A daemon that is not running is no failure.
func (c *versionCmd) Run(env *environment) error {
	v := versions{ProgramVersion: node.ProgramVersion{Version: env.version(), API: node.APIVersion, Records: node.RecordFormat}}
	client := env.client()
	client.Wait = 0
	if d, err := client.Version(env.ctx); err == nil {
		v.Daemon = &d
	}
	return c.print(env.out, v, func(w io.Writer) {
		fmt.Fprintf(w, "coppice %s\n", v.Version)
		if v.Daemon == nil {
			fmt.Fprintf(w, "daemon  does not answer in %s\n", env.runDir)
			return
		}
		fmt.Fprintf(w, "daemon  %s (pid %d)\n", v.Daemon.Version, v.Daemon.PID)
	})
}
