package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"coppice/boot"
	"coppice/node"
)

type bootCmd struct {
	Start   bootStartCmd   `cmd:"" help:"Make the device that this machine's root is on, as the kernel's command line and credentials say."`
	Mounted bootMountedCmd `cmd:"" help:"Make the mounted root this node's: its size, its name, its keys."`
	Show    bootShowCmd    `cmd:"" help:"Show what this machine was told to boot from, and where that was said."`
	Wants   bootWantsCmd   `cmd:"" help:"Tell by the exit code whether this machine is to boot from a device of ours, or needs the network for it."`
}

type bootStartCmd struct{ output }

// Run makes the root device.
func (c *bootStartCmd) Run(env *environment) error {
	given, err := boot.Read("/")
	if err != nil {
		return badParameters(err)
	}
	if !given.Wanted() {
		return nil
	}
	d, err := boot.Start(env.ctx, boot.Options{Given: given, Console: env.err, Version: env.version(), StartDaemon: startRootDaemon(env)})
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

// startRootDaemon starts the daemon that serves the machine's root. Its name begins with the sign by which systemd knows processes that the
// root file system depends on, and does not end them (https://systemd.io/ROOT_STORAGE_DAEMONS).
func startRootDaemon(env *environment) func(context.Context) error {
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, rootDaemonLimit)
		defer cancel()
		client := node.NewClient(boot.RunDir, env.version())
		client.Wait = 0
		if _, err := client.Version(ctx); err == nil {
			return nil
		}
		cmd := &exec.Cmd{
			Path: "/proc/self/exe", Args: []string{"@coppice", "--run-dir", boot.RunDir, "daemon"},
			Stdout: os.Stdout, Stderr: os.Stderr, SysProcAttr: &syscall.SysProcAttr{Setsid: true},
		}
		if err := cmd.Start(); err != nil {
			return err
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		for {
			if _, err := client.Version(ctx); err == nil {
				return nil
			}
			select {
			case err := <-ended:
				return fmt.Errorf("it has ended (%v), and the lines above say why", err)
			case <-ctx.Done():
				return fmt.Errorf("no answer after %s", rootDaemonLimit)
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
}

type bootMountedCmd struct {
	Root string `required:"" type:"existingdir" placeholder:"DIR" help:"Where the root is mounted."`
}

// Run makes the root this node's.
func (c *bootMountedCmd) Run(env *environment) error {
	given, err := boot.Read("/")
	if err != nil {
		return badParameters(err)
	}
	if !given.Wanted() {
		return nil
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
