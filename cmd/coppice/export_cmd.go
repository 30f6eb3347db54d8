package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"coppice/node"
)

type exportCmd struct {
	output
	consistency
	Name string `arg:"" help:"Name of the device."`
	Dest string `arg:"" help:"File that does not exist, or block device at least as large as the device."`
}

// exported is what export prints.
type exported struct {
	node.ExportReport
	PauseMS    float64  `json:"pause_ms"`
	Frozen     []string `json:"frozen"`
	SyncedOnly []string `json:"synced_only"`
}

// exportOutcome is how the daemon's answer to a sealed export ended.
type exportOutcome struct {
	report node.ExportReport
	err    error
}

// Run exports the device. To interrupt it cancels the export.
func (c *exportCmd) Run(env *environment) error {
	dest, err := filepath.Abs(c.Dest)
	if err != nil {
		return fmt.Errorf("export %s: %w", c.Name, err)
	}
	client := env.client()
	ctx, cancel := context.WithCancel(env.ctx)
	defer cancel()
	bar := newProgress(env.err, "export "+c.Name)
	ended := make(chan exportOutcome, 1)
	var sealMS float64
	p, err := c.hold(env, client, c.Name, sealer{
		prepare: func(ctx context.Context) (node.PreparedFreeze, error) {
			return client.PrepareExport(ctx, c.Name, node.ExportRequest{Dest: dest, Force: c.Force})
		},
		seal: func(limit context.Context, token string) error {
			sealed := make(chan float64, 1)
			go func() {
				report, err := client.Export(ctx, c.Name, token, func(e node.ExportEvent) {
					if e.Sealed != nil {
						sealed <- e.Sealed.SealMS
					}
					bar.show(e.Done, e.Total)
				})
				ended <- exportOutcome{report, err}
			}()
			select {
			case sealMS = <-sealed:
				return nil
			case o := <-ended:
				ended <- o
				return o.err
			case <-limit.Done():
				return fmt.Errorf("export %s: seal: %w", c.Name, limit.Err())
			}
		},
		cancel: func(ctx context.Context, token string) error { return client.CancelExport(ctx, c.Name, token) },
	})
	if err != nil {
		return err // and what goes on is cancelled
	}
	o := <-ended
	bar.end()
	if o.err != nil {
		return c.interrupted(env, o.err)
	}
	if c.CrashConsistent {
		p.pauseMS = sealMS
	}
	e := exported{ExportReport: o.report, PauseMS: p.pauseMS, Frozen: p.frozen, SyncedOnly: p.synced}
	return c.print(env.out, e, func(w io.Writer) {
		fmt.Fprintf(w, "%s: exported to %s, %s of which %s written, in %.1f s; paused for %.1f ms%s\n",
			e.Device, e.Dest, showBytes(e.SizeBytes), showBytes(e.WrittenBytes), e.TotalMS/1000, e.PauseMS, p.how())
		fmt.Fprintf(w, "sha256 %s\n", e.SHA256)
	})
}

// interrupted says so where the user ended the command.
func (c *exportCmd) interrupted(env *environment, err error) error {
	if env.ctx.Err() == nil || !errors.Is(err, context.Canceled) {
		return err
	}
	return &node.Error{
		Code: node.CodeFailed, Message: "export " + c.Name + ": interrupted",
		Hint: "start it again; nothing is left of it, but what was written to a block device",
	}
}
