package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"coppice/vmtests/wire"
)

const (
	program = "/usr/local/bin/coppice"
	socket  = "/run/coppice/coppice.sock"
	// daemonLimit is how long the daemon may take until it answers, and commandLimit a command of it.
	daemonLimit, commandLimit = time.Minute, 2 * time.Minute
)

// startUnion boots a system from a disk that coppice makes, as an initramfs does it: network, daemon, leaf store, device, and then the change of roots. The daemon
// stays in the initramfs, with the files that it has from there. It keeps /dev, /proc, /run and /sys, which the system shares: with what is in
// /run/coppice, it can be asked and replaced from there.
func startUnion(boot wire.Boot) error {
	u := boot.Union
	for _, l := range boot.Links {
		if err := makeLink(l); err != nil {
			return err
		}
	}
	if err := errors.Join(interfaceUp("lo", "127.0.0.1/8"), interfaceUp("eth0", u.Address)); err != nil {
		return err
	}
	if err := startDaemon(); err != nil {
		return err
	}
	leaf := diskLink(u.Leaf)
	if _, err := coppice("store", "format", leaf, "--force"); err != nil {
		return err
	}
	out, err := coppice("create", "root", "--root", u.Image, "--leaf", leaf, "-o", "json")
	if err != nil {
		return err
	}
	var device struct{ Path string }
	if err := json.Unmarshal(out, &device); err != nil {
		return fmt.Errorf("read what coppice create says: %w", err)
	}
	fmt.Printf("root is %s, of %s, %s after power-on\n", device.Path, u.Image, uptime())
	return startSystem(device.Path, unix.MS_BIND)
}

// startDaemon returns when the daemon answers. It is in a session of its own, which no terminal ends, and its name begins with the sign by which systemd knows
// processes that the root file system depends on, and does not end them (https://systemd.io/ROOT_STORAGE_DAEMONS).
func startDaemon() error {
	cmd := &exec.Cmd{
		Path: program, Args: []string{"@coppice", "daemon"}, Stdout: os.Stdout, Stderr: os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := startAhead(cmd); err != nil {
		return fmt.Errorf("start daemon: %w", err)
	}
	for began := time.Now(); time.Since(began) < daemonLimit; time.Sleep(10 * time.Millisecond) {
		if conn, err := net.Dial("unix", socket); err == nil {
			return conn.Close()
		}
		if pid, err := unix.Wait4(cmd.Process.Pid, nil, unix.WNOHANG, nil); pid != 0 {
			return errors.Join(errors.New("start daemon: it has ended, and the console says why"), err)
		}
	}
	return fmt.Errorf("start daemon: no answer at %s after %v", socket, daemonLimit)
}

// startAhead starts a process that goes before others where they want a processor: all of them wait for the root disk.
func startAhead(cmd *exec.Cmd) error {
	const ahead, usual = -10, 0
	runtime.LockOSThread() // priorities are those of threads
	defer runtime.UnlockOSThread()
	err := unix.Setpriority(unix.PRIO_PROCESS, 0, ahead)
	if err == nil {
		err = cmd.Start()
	}
	return errors.Join(err, unix.Setpriority(unix.PRIO_PROCESS, 0, usual))
}

// coppice runs a command and returns what it prints.
func coppice(args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("run coppice %q: %w: %s", args, err, said.Bytes())
	}
	return out, err
}

func uptime() string {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return err.Error()
	}
	return time.Duration(t.Nano()).Round(10 * time.Millisecond).String()
}
