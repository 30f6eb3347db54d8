package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"coppice/node"
)

type rootCmd struct {
	Add       rootAddCmd       `cmd:"" help:"Read a device's root from one more place."`
	Remove    rootRemoveCmd    `cmd:"" help:"Read a device's root from a place no more."`
	Replicate rootReplicateCmd `cmd:"" help:"Copy a device's root to another place, and read it from there too."`
	Hydrate   rootHydrateCmd   `cmd:"" help:"Copy a device's root to this machine in the background."`
}

type rootAddCmd struct {
	output
	Name string `arg:"" help:"Name of the device."`
	Ref  string `arg:"" help:"Image with the same content: oci:DIR:NAME:TAG, http://HOST/DIR:NAME:TAG or HOST/REPOSITORY:TAG."`
}

// Run adds a replica.
func (c *rootAddCmd) Run(env *environment) error {
	ref, err := absoluteRoot(c.Ref)
	if err != nil {
		return fmt.Errorf("add root of %s: %w", c.Name, err)
	}
	rep, err := env.client().AddRoot(env.ctx, c.Name, node.RootRequest{Ref: ref})
	if err != nil {
		return err
	}
	return c.print(env.out, rep, func(w io.Writer) {
		fmt.Fprintf(w, "%s: root is read from %s too, %s in all%s\n", c.Name, rep.Ref, count(len(rep.Root.Replicas), "replica"), othersToo(rep))
	})
}

type rootRemoveCmd struct {
	output
	Name string `arg:"" help:"Name of the device."`
	Ref  string `arg:"" help:"Replica, as inspect shows it."`
}

// Run removes a replica.
func (c *rootRemoveCmd) Run(env *environment) error {
	ref, err := absoluteRoot(c.Ref)
	if err != nil {
		return fmt.Errorf("remove root of %s: %w", c.Name, err)
	}
	rep, err := env.client().RemoveRoot(env.ctx, c.Name, node.RootRequest{Ref: ref})
	if err != nil {
		return err
	}
	return c.print(env.out, rep, func(w io.Writer) {
		fmt.Fprintf(w, "%s: root is not read from %s any more, %s left%s\n", c.Name, rep.Ref, count(len(rep.Root.Replicas), "replica"), othersToo(rep))
	})
}

// othersToo tells that a change is about several devices.
func othersToo(rep node.RootReport) string {
	if len(rep.Devices) < 2 {
		return ""
	}
	return fmt.Sprintf("; so for all %d devices on it", len(rep.Devices))
}

type rootReplicateCmd struct {
	output
	Name string `arg:"" help:"Name of the device."`
	Dest string `arg:"" help:"Where to, and its name there: oci:DIR:NAME:TAG or HOST/REPOSITORY:TAG."`
}

// Run copies the root. What was copied when it is interrupted stays, for the next time.
func (c *rootReplicateCmd) Run(env *environment) error {
	dest, err := absoluteRoot(c.Dest)
	if err != nil {
		return fmt.Errorf("replicate root of %s: %w", c.Name, err)
	}
	bar := newProgress(env.err, "replicate "+c.Name)
	rep, err := env.client().ReplicateRoot(env.ctx, c.Name, node.ReplicateRequest{Dest: dest}, func(phase string, done, total int64) {
		bar.what = phase + " root of " + c.Name
		bar.show(done, total)
	})
	bar.end()
	if errors.Is(err, context.Canceled) && env.ctx.Err() != nil {
		return &node.Error{Code: node.CodeFailed, Message: "replicate root of " + c.Name + ": interrupted", Hint: "start it again: what is done is not done twice"}
	}
	if err != nil {
		return err
	}
	return c.print(env.out, rep, func(w io.Writer) {
		fmt.Fprintf(w, "%s: root is at %s too, verified; %s copied, %s were there%s\n",
			c.Name, rep.Ref, showBytes(rep.CopiedBytes), showBytes(rep.SharedBytes), othersToo(rep.RootReport))
	})
}

type rootHydrateCmd struct {
	output
	Name string `arg:"" help:"Name of the device."`
}

// Run has the root copied to this machine.
func (c *rootHydrateCmd) Run(env *environment) error {
	rep, err := env.client().HydrateRoot(env.ctx, c.Name)
	if err != nil {
		return err
	}
	return c.print(env.out, rep, func(w io.Writer) {
		fmt.Fprintf(w, "%s: root is copied to %s; coppice inspect %s shows how far%s\n", c.Name, rep.Ref, c.Name, othersToo(rep))
	})
}
