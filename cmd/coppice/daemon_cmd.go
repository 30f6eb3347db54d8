package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"coppice/internal/resident"
	"coppice/node"
	"coppice/supervise"
)

type daemonCmd struct {
	Config    string    `placeholder:"FILE" type:"path" help:"Configuration file (default: ${config}, where there is one). Flags go before it."`
	LogLevel  logLevel  `placeholder:"LEVEL" help:"debug, info, warn or error (default: info)."`
	ScrubRate *size     `placeholder:"SIZE" help:"Bytes of each store to read a second in the background; 0: never (default: all of it once a week, at most 16M)."`
	LogFormat logFormat `placeholder:"text|json" help:"Form of the log on standard error (default: text)."`
	Lease     leaseTime `placeholder:"DURATION" help:"How long this node may be lost before another can take its stores on shared storage, once told to (default: 1m)."`
	FullWait  fullWait  `placeholder:"DURATION" help:"How long writes wait for space in a full store or beyond a quota before they fail with ENOSPC; 0: not at all (default: 60s)."`
}

// logLevel and logFormat are checked as they are parsed; "" leaves them to the configuration.
type (
	logLevel  string
	logFormat string
	fullWait  string
	leaseTime string
)

// UnmarshalText accepts the names of log levels.
func (l *logLevel) UnmarshalText(text []byte) error {
	*l = logLevel(text)
	return node.Config{LogLevel: string(text)}.Validate()
}

// UnmarshalText accepts the names of forms.
func (f *logFormat) UnmarshalText(text []byte) error {
	*f = logFormat(text)
	return node.Config{LogFormat: string(text)}.Validate()
}

// UnmarshalText accepts what [time.ParseDuration] does, and nothing negative.
func (w *fullWait) UnmarshalText(text []byte) error {
	*w = fullWait(text)
	return node.Config{FullWait: string(text)}.Validate()
}

// UnmarshalText accepts durations that a lease can have.
func (l *leaseTime) UnmarshalText(text []byte) error {
	*l = leaseTime(text)
	return node.Config{Lease: string(text)}.Validate()
}

// Run serves until a signal, then stops or leaves every device.
func (c *daemonCmd) Run(env *environment) error {
	flusher := resident.BecomeFlusher() // executes this program again: nothing may have been begun
	link, err := supervise.OpenLink()
	if err != nil {
		return err
	}
	if err := c.serve(env, link, flusher); err != nil {
		e := node.Explain(err)
		return errors.Join(err, link.Failed(e.Message+"\n  to do: "+e.Hint))
	}
	return nil
}

// serve is Run of a process whose threads are I/O flushers, or cannot be, as flusher says.
func (c *daemonCmd) serve(env *environment, link *supervise.Link, flusher error) error {
	cfg, err := c.config(env)
	if err != nil {
		return err
	}
	hangups := catchHangups()
	cfg.Level = new(slog.LevelVar)
	log := cfg.NewLog()
	slog.SetDefault(log)
	cfg.Log, cfg.Version = log, env.version()
	cfg.MayHandOver = func() error {
		_, err := c.config(env) // it is read again then
		return err
	}
	cfg.BeforeHandOver = startGuard(cfg.RunDir, link)
	cfg.Ready = func(status string) {
		notifyReady(status)
		if err := link.Ready(); err != nil {
			log.Warn("supervisor not told that the daemon is ready", "error", err)
		}
	}
	// A log that nobody reads any more must not end the daemon.
	signal.Ignore(syscall.SIGPIPE)
	if err := errors.Join(flusher, node.SetUpProcess(), resident.LockMemory(), resident.SetName("coppice")); err != nil {
		log.Warn("process not set up as wished; going on", "error", err)
	}
	driver, err := node.OpenUblk(log)
	if err != nil {
		return fmt.Errorf("start daemon: %w", err)
	}
	cfg.Driver = driver
	d, err := node.New(cfg)
	if err != nil {
		return errors.Join(err, driver.Close())
	}
	ctx, stop := untilSignal(log, endSignals(link))
	defer stop()
	go tellOfSupervisor(ctx, link, log)
	go feedWatchdog(ctx, log, d.Answers)
	go reloadAt(ctx, hangups, log, func() error {
		again, err := c.config(env)
		if err != nil {
			return err
		}
		return d.Reload(ctx, again)
	})
	if err := d.Run(ctx); err != nil || d.Successor() == nil {
		return err
	}
	return follow(d.Successor(), link)
}

// follow makes this process one of another program; the devices wait until that serves them. Where it cannot be executed, this program
// serves them again.
func follow(program *os.File, link *supervise.Link) error {
	signal.Ignore(syscall.SIGHUP) // until the program catches it
	err := link.KeepForExec(true)
	if err == nil {
		err = unix.Exec(resident.Path(program), os.Args, os.Environ())
	}
	slog.Error("THE NEW PROGRAM CANNOT BE EXECUTED: going back to this one", "error", err)
	return errors.Join(err, unix.Exec(resident.Self, os.Args, os.Environ()))
}

// config reads the file and lets flags override it.
func (c *daemonCmd) config(env *environment) (node.Config, error) {
	path, optional := c.Config, false
	if path == "" {
		path, optional = node.DefaultConfigPath, true
	}
	cfg, err := node.ReadConfig(path, optional)
	if err != nil {
		return cfg, err
	}
	if env.runDir != node.DefaultRunDir || cfg.RunDir == "" {
		cfg.RunDir = env.runDir
	}
	if c.LogLevel != "" {
		cfg.LogLevel = string(c.LogLevel)
	}
	if c.LogFormat != "" {
		cfg.LogFormat = string(c.LogFormat)
	}
	if c.ScrubRate != nil {
		rate := int64(*c.ScrubRate)
		cfg.ScrubBytesPerSecond = &rate
	}
	if c.Lease != "" {
		cfg.Lease = string(c.Lease)
	}
	if c.FullWait != "" {
		cfg.FullWait = string(c.FullWait)
	}
	return cfg, cfg.Validate()
}

// catchHangups keeps SIGHUP from ending this process from now on, and tells of it.
func catchHangups() <-chan os.Signal {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGHUP)
	return ch
}

// reloadAt calls reload at each SIGHUP, until ctx ends. Where it fails, all stays as it was.
func reloadAt(ctx context.Context, hangups <-chan os.Signal, log *slog.Logger, reload func() error) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangups:
		}
		tellSystemd(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec())
		if err := reload(); err != nil {
			log.Error("configuration cannot be read again; all stays as it was", "error", err)
		}
		tellSystemd(daemon.SdNotifyReady)
	}
}

// endSignals are the signals that end the daemon. One that is supervised serves the root file system, which ends with the power: what
// ends all processes of a machine must not end it.
func endSignals(link *supervise.Link) []os.Signal {
	if link == nil {
		return []os.Signal{syscall.SIGTERM, syscall.SIGINT}
	}
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT)
	return []os.Signal{supervise.StopSignal}
}

// tellOfSupervisor says once that the supervisor has ended, if it does before ctx.
func tellOfSupervisor(ctx context.Context, link *supervise.Link, log *slog.Logger) {
	select {
	case <-ctx.Done():
	case <-link.Gone():
		log.Error("THE SUPERVISOR HAS ENDED: the daemon goes on, but nobody starts it again if it dies")
	}
}

// untilSignal returns a context that the first of some signals, which must not be none (that is all for [signal.Notify], those of Go's runtime
// too), ends. Later ones are only logged: cutting the stop short would lose data.
func untilSignal(log *slog.Logger, signals []os.Signal) (context.Context, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ch := make(chan os.Signal, 4)
	signal.Notify(ch, signals...)
	go func() {
		for s := range ch {
			if ctx.Err() != nil {
				log.Warn("stopping already; it ends when all data is safe", "signal", s.String())
				continue
			}
			log.Info("signal received", "signal", s.String())
			cancel()
			tellSystemd(daemon.SdNotifyStopping)
		}
	}()
	return ctx, func() {
		signal.Stop(ch)
		close(ch)
		cancel()
	}
}

func notifyReady(status string) {
	tellSystemd(daemon.SdNotifyReady + "\nSTATUS=" + status)
}

// tellSystemd does nothing where systemd did not start this process.
func tellSystemd(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		slog.Warn("systemd not told", "state", state, "error", err)
	}
}
