package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"coppice/node"
	"coppice/union"
)

// consistency is the flag of commands that seal what a device holds.
type consistency struct {
	CrashConsistent bool `help:"Do not freeze the file systems mounted from the device: what is sealed is what a power cut would leave."`
	Force           bool `help:"Also where the store is more than 95 % full: what is overwritten afterwards takes new space."`
}

type freezeCmd struct {
	output
	consistency
	Name string `arg:"" help:"Name of the device."`
	As   string `required:"" placeholder:"LAYER" help:"Name of the sealed layer."`
}

// frozen is what freeze prints.
type frozen struct {
	Device     string          `json:"device"`
	Layer      union.LayerInfo `json:"layer"`
	PauseMS    float64         `json:"pause_ms"` // in which writers waited
	SealMS     float64         `json:"seal_ms"`
	Frozen     []string        `json:"frozen"`      // mount points
	SyncedOnly []string        `json:"synced_only"` // mount points of what cannot be frozen
}

// Run seals what the device holds and lets it go on.
func (c *freezeCmd) Run(env *environment) error {
	client := env.client()
	var sealed node.SealedFreeze
	p, err := c.hold(env, client, c.Name, sealer{
		prepare: func(ctx context.Context) (node.PreparedFreeze, error) {
			return client.PrepareFreeze(ctx, c.Name, node.FreezeRequest{As: c.As, Force: c.Force})
		},
		seal: func(ctx context.Context, token string) (err error) {
			sealed, err = client.Seal(ctx, c.Name, token)
			return err
		},
		cancel: func(ctx context.Context, token string) error { return client.CancelFreeze(ctx, c.Name, token) },
	})
	if err != nil {
		return err
	}
	if c.CrashConsistent {
		p.pauseMS = sealed.SealMS
	}
	f := frozen{Device: c.Name, Layer: sealed.Layer, PauseMS: p.pauseMS, SealMS: sealed.SealMS, Frozen: p.frozen, SyncedOnly: p.synced}
	return c.print(env.out, f, func(w io.Writer) {
		fmt.Fprintf(w, "%s: sealed as %s, %s; paused for %.1f ms%s\n", f.Device, f.Layer.Name, showBytes(f.Layer.DataBytes), f.PauseMS, p.how())
	})
}

// sealer is what the daemon does while the file systems are frozen, in its steps.
type sealer struct {
	prepare func(context.Context) (node.PreparedFreeze, error)
	seal    func(ctx context.Context, token string) error
	cancel  func(ctx context.Context, token string) error
}

// pause is what holding the file systems came to.
type pause struct {
	pauseMS        float64
	frozen, synced []string
	crash          bool
}

func (p pause) how() string {
	switch {
	case p.crash:
		return ", crash-consistent"
	case len(p.frozen)+len(p.synced) == 0:
		return ", not mounted"
	case len(p.synced) == 0:
		return ", frozen: " + strings.Join(p.frozen, ", ")
	}
	return fmt.Sprintf(", frozen: %s, only written back: %s", strings.Join(p.frozen, ", "), strings.Join(p.synced, ", "))
}

// hold freezes the file systems on the device, unless told not to, just for the seal.
func (c consistency) hold(env *environment, client *node.Client, name string, s sealer) (_ pause, err error) {
	f := &freezer{}
	if !c.CrashConsistent {
		d, err := client.Inspect(env.ctx, name)
		if err != nil {
			return pause{}, err
		}
		if f, err = newFreezer(d.Path); err != nil {
			return pause{}, fmt.Errorf("freeze %s: %w", name, err)
		}
	}
	defer func() { err = errors.Join(err, f.close()) }()
	prepared, err := s.prepare(env.ctx)
	if err != nil {
		return pause{}, err
	}
	// From here on an interruption waits: it is soon over.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(env.ctx), watchdogLimit)
	defer cancel()
	began := time.Now()
	if err := f.freeze(); err != nil {
		return pause{}, errors.Join(fmt.Errorf("freeze %s: %w", name, err), s.cancel(ctx, prepared.Token))
	}
	err = s.seal(ctx, prepared.Token)
	thawed := f.thaw()
	took := time.Since(began)
	if err == nil && errors.Is(thawed, errThawed) {
		thawed = &node.Error{
			Code: node.CodeFailed, Message: fmt.Sprintf("freeze %s: %s; what was sealed is only crash-consistent", name, thawed),
			Hint: "try again under another name, when the device has less to write",
		}
	}
	p := pause{pauseMS: float64(took.Microseconds()) / 1000, frozen: f.points(false), synced: f.points(true), crash: c.CrashConsistent}
	return p, errors.Join(err, thawed)
}
