package main

import (
	"fmt"
	"io"
	"time"

	"coppice/union"
)

type storeBreakLeaseCmd struct {
	output
	storePath
}

// brokenLease is what break-lease prints.
type brokenLease struct {
	Path string          `json:"path"`
	Was  union.LeaseInfo `json:"was"`
}

// Run breaks the lease and waits until its holder can write no more.
func (c *storeBreakLeaseCmd) Run(env *environment) error {
	said := false
	was, err := union.BreakLease(c.Path, union.LeaseOptions{}, func(left time.Duration) {
		if !said {
			said = true
			fmt.Fprintf(env.err, "%s: waiting for %s, until the former holder has stopped by itself\n", c.Path, left.Round(time.Second))
		}
	})
	if err != nil {
		return explainStore(c.Path, err)
	}
	return c.print(env.out, brokenLease{c.Path, was}, func(w io.Writer) {
		fmt.Fprintf(w, "%s: lease of node %q, process %d, is broken; any node can open the store now\n", c.Path, was.Host, was.PID)
	})
}
