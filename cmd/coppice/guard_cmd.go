package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"coppice/internal/resident"
	"coppice/node"
	"coppice/supervise"
)

// guardCommand is the name of a command that is not for people.
const guardCommand = "upgrade-guard"

// How long a new program may take until it answers, and how long it has to stay then.
const (
	guardReady = 30 * time.Second
	guardStay  = 30 * time.Second
)

// guardCmd is the former program, which waits whether the new one lives, and becomes the daemon where it does not.
type guardCmd struct {
	ID        string   `arg:"" help:"Name of the upgrade."`
	PID       int      `arg:"" help:"Process that executes the new program."`
	Restarted bool     `help:"Somebody else starts the daemon again."`
	Daemon    []string `arg:"" passthrough:"" help:"Arguments of the daemon."`
}

// startGuard starts a guard of this process. One that is supervised, or a service of systemd, is started again by those.
func startGuard(runDir string, link *supervise.Link) func(id string) error {
	return func(id string) error {
		args := []string{"coppice", "--run-dir", runDir, guardCommand}
		if link != nil || os.Getenv("NOTIFY_SOCKET") != "" {
			args = append(args, "--restarted")
		}
		args = append(append(args, id, strconv.Itoa(os.Getpid())), os.Args...)
		cmd := &exec.Cmd{Path: resident.Self, Args: args, Stdout: os.Stdout, Stderr: os.Stderr, Dir: "/", SysProcAttr: &syscall.SysProcAttr{Setsid: true}}
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("start guard of the upgrade: %w", err)
		}
		return cmd.Process.Release()
	}
}

// Run ends when the new program has lived for long enough or was stopped, or executes the daemon.
func (c *guardCmd) Run(env *environment) error {
	log := node.Config{}.NewLog()
	slog.SetDefault(log)
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	if err := resident.LockMemory(); err != nil {
		log.Warn("guard of the upgrade not protected as wished; going on", "error", err)
	}
	fd, err := unix.PidfdOpen(c.PID, 0)
	if err != nil {
		return fmt.Errorf("guard process %d: %w", c.PID, err)
	}
	if c.lives(env, fd) || node.UpgradeIsOver(env.runDir, c.ID) {
		return nil
	}
	log.Error("THE NEW PROGRAM DOES NOT LIVE", "pid", c.PID)
	if c.Restarted {
		return nil
	}
	signal.Reset(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	log.Error("the former program serves the devices again", "pid", os.Getpid())
	return unix.Exec(resident.Self, c.Daemon, os.Environ())
}

// lives reports whether the process answers as the new program in time, and stays. One that does not answer is killed.
func (c *guardCmd) lives(env *environment, fd int) bool {
	client := node.NewClient(env.runDir, "")
	client.Wait = 0
	for began := time.Now(); !c.answers(client); {
		if ended(fd, 100*time.Millisecond) {
			return false
		}
		if time.Since(began) > guardReady {
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			return !ended(fd, guardStay)
		}
	}
	return !ended(fd, guardStay)
}

func (c *guardCmd) answers(client *node.Client) bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	v, err := client.Version(ctx)
	return err == nil && v.Upgrade != nil && v.Upgrade.ID == c.ID
}

// ended tells whether a process ends within some time.
func ended(fd int, within time.Duration) bool {
	for deadline := time.Now().Add(within); ; {
		left := max(time.Until(deadline), 0)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds()))
		if n > 0 || !errors.Is(err, unix.EINTR) {
			return n > 0
		}
	}
}
