package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"coppice/vmtests/wire"
)

// port is the agent's end of the virtio-serial port, with blocking reads and writes.
type port int

func (p port) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(int(p), b)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, err
		case n == 0: // the host has not opened its end yet
			time.Sleep(10 * time.Millisecond)
		default:
			return n, nil
		}
	}
}

func (p port) Write(b []byte) (int, error) {
	for done := 0; done < len(b); {
		n, err := unix.Write(int(p), b[done:])
		if err != nil && !errors.Is(err, unix.EINTR) {
			return done, err
		}
		done += max(n, 0)
	}
	return len(b), nil
}

// runs are the commands under way, by request id.
type runs struct {
	conn      *wire.Conn
	switchOff func() error // nil: who started the agent does that when it ends
	mu        sync.Mutex   // guards pids
	pids      map[uint64]int
}

// agent serves the host. A machine that could not be prepared is only reported.
func agent(setupFailure string) error {
	fd, err := openPort()
	if err != nil {
		return errors.Join(err, errors.New(setupFailure))
	}
	conn := wire.NewConn(port(fd))
	if setupFailure != "" {
		return errors.Join(errors.New(setupFailure), conn.Send(wire.Event{Fatal: setupFailure}))
	}
	return serve(conn, nil)
}

// service serves the host from a system that has booted by itself.
func service() error {
	fd, err := openPort()
	if err != nil {
		return err
	}
	return serve(wire.NewConn(port(fd)), func() error { return exec.Command("poweroff").Run() })
}

// serve says hello and handles requests. Where it cannot switch the machine off itself, it returns when it is asked to.
func serve(conn *wire.Conn, switchOff func() error) error {
	release, err := kernelRelease()
	if err != nil {
		return err
	}
	uptime, _ := os.ReadFile("/proc/uptime")
	hello := wire.Hello{Kernel: release, CPUs: runtime.NumCPU(), Uptime: strings.TrimSpace(string(uptime))}
	if err := conn.Send(wire.Event{Hello: &hello}); err != nil {
		return err
	}
	r := &runs{conn: conn, switchOff: switchOff, pids: make(map[uint64]int)}
	return r.serve()
}

// serve handles requests until the host asks for the end or is gone.
func (r *runs) serve() error {
	for {
		var req wire.Request
		if err := r.conn.Receive(&req); err != nil {
			return fmt.Errorf("receive request: %w", err)
		}
		switch {
		case req.Shutdown != nil && r.switchOff == nil:
			return nil
		case req.Shutdown != nil:
			if err := r.switchOff(); err != nil {
				return fmt.Errorf("switch the machine off: %w", err)
			}
		case req.Dump != nil:
			go func() { r.reply(wire.Event{ID: req.ID, Dump: r.dump()}) }()
		case req.Signal != nil:
			r.signal(req.ID, syscall.Signal(req.Signal.Number))
		case req.Run != nil:
			go r.run(req.ID, *req.Run)
		}
	}
}

func (r *runs) reply(ev wire.Event) {
	if err := r.conn.Send(ev); err != nil {
		fmt.Fprintln(os.Stderr, "guest agent:", err)
	}
}

// run executes one command and reports its output and its end.
func (r *runs) run(id uint64, req wire.Run) {
	mark := markKernelLog()
	exit := r.execute(id, req)
	exit.Faults = kernelFaults(mark)
	r.reply(wire.Event{ID: id, Exit: &exit})
}

func (r *runs) execute(id uint64, req wire.Run) wire.Exit {
	if len(req.Argv) == 0 {
		return wire.Exit{Code: -1, Err: "start command: no command given"}
	}
	cmd := exec.Command(req.Argv[0], req.Argv[1:]...)
	cmd.Dir = req.Dir
	cmd.Env = append(os.Environ(), req.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	read, write, err := os.Pipe()
	if err != nil {
		return wire.Exit{Code: -1, Err: fmt.Sprintf("make pipe: %v", err)}
	}
	cmd.Stdout, cmd.Stderr = write, write
	if err := cmd.Start(); err != nil {
		read.Close()
		write.Close()
		return wire.Exit{Code: -1, Err: fmt.Sprintf("start command: %v", err)}
	}
	write.Close()
	r.track(id, cmd.Process.Pid)
	defer r.forget(id)
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		_, _ = io.Copy(outputWriter{r, id}, read)
	}()
	exit := r.wait(id, cmd, req.Timeout)
	drain(read, copied)
	return exit
}

// drain waits for the last output. A daemon that a command left behind may hold the pipe for ever, so the wait is short
// once the command itself is gone.
func drain(read *os.File, copied <-chan struct{}) {
	select {
	case <-copied:
	case <-time.After(time.Second):
		_ = read.SetReadDeadline(time.Now())
		<-copied
	}
	read.Close()
}

// wait returns the command's end; at the time-out it saves the machine's state and kills.
func (r *runs) wait(id uint64, cmd *exec.Cmd, limit time.Duration) wire.Exit {
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var expired <-chan time.Time
	if limit > 0 {
		timer := time.NewTimer(limit)
		defer timer.Stop()
		expired = timer.C
	}
	select {
	case err := <-ended:
		return exitOf(cmd, err)
	case <-expired:
	}
	dump := r.dump()
	r.signal(id, syscall.SIGQUIT)
	var exit wire.Exit
	select {
	case err := <-ended:
		exit = exitOf(cmd, err)
	case <-time.After(5 * time.Second):
		r.signal(id, syscall.SIGKILL)
		select {
		case err := <-ended:
			exit = exitOf(cmd, err)
		case <-time.After(5 * time.Second):
			exit = wire.Exit{Code: -1, Err: "command does not die"}
		}
	}
	exit.TimedOut, exit.Dump = true, dump
	return exit
}

func exitOf(cmd *exec.Cmd, err error) wire.Exit {
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		return wire.Exit{Code: -1, Err: err.Error()}
	}
	exit := wire.Exit{Code: cmd.ProcessState.ExitCode()}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		exit.Signal = unix.SignalName(status.Signal())
	}
	return exit
}

func (r *runs) track(id uint64, pid int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pids[id] = pid
}

func (r *runs) forget(id uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.pids, id)
}

func (r *runs) signal(id uint64, sig syscall.Signal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if pid, ok := r.pids[id]; ok {
		_ = syscall.Kill(-pid, sig)
	}
}

type outputWriter struct {
	runs *runs
	id   uint64
}

func (w outputWriter) Write(p []byte) (int, error) {
	if err := w.runs.conn.Send(wire.Event{ID: w.id, Output: p}); err != nil {
		return 0, err
	}
	return len(p), nil
}
