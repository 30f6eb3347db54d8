package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"coppice/boot"
	"coppice/node"
	"coppice/supervise"
)

type bootCmd struct {
	Start   bootStartCmd   `cmd:"" help:"Make the device that this machine's root is on, as the kernel's command line and credentials say."`
	Links   bootLinksCmd   `cmd:"" help:"Switch on the network interfaces that the root may be behind, and wait for a carrier."`
	Mounted bootMountedCmd `cmd:"" help:"Make the mounted root this node's: its size, its name, its keys."`
	Show    bootShowCmd    `cmd:"" help:"Show what this machine was told to boot from, and where that was said."`
	Good    bootGoodCmd    `cmd:"" help:"Say that this machine is up, so that the boot does not count as failed."`
	Status  bootStatusCmd  `cmd:"" help:"Show which layer this machine has booted from, and which boots have failed."`
	Retry   bootRetryCmd   `cmd:"" help:"Boot from the layer that this machine was told again, from which boots have failed."`
	Wants   bootWantsCmd   `cmd:"" help:"Tell by the exit code whether this machine is to boot from a device of ours, or needs the network for it."`
}

type bootStartCmd struct{ output }

// Run makes the root device.
func (c *bootStartCmd) Run(env *environment) error {
	given, err := boot.Read("/")
	switch {
	case !given.Asked():
		return nil
	case err != nil:
		return badParameters(err)
	}
	if err := os.Setenv("DOCKER_CONFIG", dockerConfig); err != nil { // of this process, which looks at the root first
		return err
	}
	d, err := boot.Start(env.ctx, boot.Options{Given: given, Console: env.err, Version: env.version(), StartDaemon: startRootDaemon(env), StopDaemon: stopRootDaemon})
	if err != nil {
		return err
	}
	return c.print(env.out, d, func(io.Writer) {})
}

func badParameters(err error) error {
	return &node.Error{
		Code: node.CodeBadRequest, Message: node.Explain(err).Message,
		Hint: "correct the kernel's command line, or the credentials; the page boot.md of the documentation has all of them",
	}
}

// rootDaemonLimit is how long the root's daemon may take until it answers.
const rootDaemonLimit = 2 * time.Minute

// rootFiles are what the root's daemon needs of the initramfs, which is removed while it runs. /etc/machine-id is not among them: where systemd runs in the
// initramfs, it is another one at each boot, and the node could not take its own leaf back. The firmware's number of the machine stays.
var rootFiles = []string{"/etc/coppice", "/etc/ssl/certs/ca-certificates.crt", "/etc/resolv.conf", "/etc/hosts"}

// dockerConfig is where the initramfs has credentials for registries, as config.json of docker.
const dockerConfig = "/etc/coppice/docker"

// startRootDaemon starts the daemon that serves the machine's root, where it does not run already.
func startRootDaemon(env *environment) func(context.Context) error {
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, rootDaemonLimit)
		defer cancel()
		client := node.NewClient(boot.RunDir, env.version())
		client.Wait = 0
		if _, err := client.Version(ctx); err == nil {
			return nil
		}
		err := supervise.Start(ctx, supervise.Options{
			RunDir: boot.RunDir, Args: []string{"daemon"}, Files: rootFiles, Env: []string{"DOCKER_CONFIG=" + dockerConfig},
		})
		if err != nil {
			return err
		}
		if err := supervise.InstallShutdown(supervise.ShutdownDir, boot.RunDir); err != nil {
			fmt.Fprintf(env.err, "coppice: the leaf will not be marked clean when this machine is shut down: %v\n", err)
		}
		return nil
	}
}

func stopRootDaemon(ctx context.Context) error { return supervise.Stop(ctx, boot.RunDir) }

type bootMountedCmd struct {
	Root string `required:"" type:"existingdir" placeholder:"DIR" help:"Where the root is mounted."`
}

// Run makes the root this node's.
func (c *bootMountedCmd) Run(env *environment) error {
	given, err := boot.Read("/")
	switch {
	case !given.Asked():
		return nil
	case err != nil:
		return badParameters(err)
	}
	return boot.Mounted(given, c.Root, env.err)
}

type bootShowCmd struct{ output }

// Run shows the parameters.
func (c *bootShowCmd) Run(env *environment) error {
	given, err := boot.Read("/")
	if err != nil {
		return badParameters(err)
	}
	return c.print(env.out, given, func(w io.Writer) { writeGiven(w, given) })
}

func writeGiven(w io.Writer, g boot.Given) {
	if !g.Wanted() {
		fmt.Fprintln(w, "this machine was not told to boot from a device of coppice: there is no coppice.root=")
		return
	}
	var r rows
	for _, root := range g.Roots {
		r.add("root", "%s", root)
	}
	r.add("leaf", "%s, layer %s", g.Leaf, g.Leaf.Layer)
	r.add("name", "%s", g.Name)
	if g.SizeBytes > 0 {
		r.add("size", "%s", showBytesExact(g.SizeBytes))
	}
	for _, line := range g.Sources() {
		r.add("given", "%s", line)
	}
	r.write(w)
}

type bootLinksCmd struct{}

// Run waits for a carrier. Where there is none, what comes after it may yet succeed, and has more to say.
func (c *bootLinksCmd) Run(env *environment) error {
	ctx, cancel := context.WithTimeout(env.ctx, boot.LinksLimit)
	defer cancel()
	return boot.RaiseLinks(ctx, "/")
}

type bootWantsCmd struct {
	What string `arg:"" enum:"root,network" help:"root or network."`
}

// Run succeeds where the answer is yes. What cannot be made sense of is wanted, too: start says what is wrong with it.
func (c *bootWantsCmd) Run(*environment) error {
	given, err := boot.Read("/")
	wanted := given.Asked()
	if c.What == "network" {
		wanted = wanted && (err != nil || given.Remote())
	}
	if !wanted {
		return errSilent
	}
	return nil
}
