package supervise

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"coppice/internal/resident"
)

// Start leaves a supervised daemon, and returns when that one has taken over the devices of its run directory and answers, or
// with what kept it or the supervisor from it, in their words; then nothing is left. Where ctx ends first it returns the
// context's error, and ends what it has started. It needs the rights of root.
func Start(ctx context.Context, o Options) error {
	if err := o.validate(); err != nil {
		return fmt.Errorf("start supervisor: %w", err)
	}
	if o.Program == "" {
		o.Program = resident.Self
	}
	if o.Log == "" {
		o.Log = logPath
	}
	if err := start(ctx, o); err != nil {
		return fmt.Errorf("start supervisor: %w", err)
	}
	return nil
}

func start(ctx context.Context, o Options) (err error) {
	var files []*os.File
	keep := func(f *os.File, err error) (*os.File, error) {
		if err == nil {
			files = append(files, f)
		}
		return f, err
	}
	defer func() {
		for _, f := range files {
			err = errors.Join(err, f.Close())
		}
	}()
	log, err := keep(os.OpenFile(o.Log, os.O_WRONLY|os.O_APPEND, 0))
	if err != nil {
		return err
	}
	program, err := keep(resident.Program(o.Program))
	if err != nil {
		return err
	}
	settings, err := keep(settingsOf(o))
	if err != nil {
		return err
	}
	status, said, err := os.Pipe()
	if err != nil {
		return err
	}
	files = append(files, status)
	cmd := &exec.Cmd{
		Path: resident.Path(program), Args: []string{name, "supervise"}, Env: environment(), Dir: "/",
		Stdout: log, Stderr: log, ExtraFiles: []*os.File{settings, said, program},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, Unshareflags: syscall.CLONE_NEWNS},
	}
	err = cmd.Start()
	if err := errors.Join(err, said.Close()); err != nil {
		return err
	}
	if err := await(ctx, status); err != nil {
		_ = cmd.Process.Signal(StopSignal)
		_, waitErr := cmd.Process.Wait()
		return errors.Join(err, waitErr)
	}
	return cmd.Process.Release()
}

// environment is what the daemon gets of this process's.
func environment() []string {
	var env []string
	for _, v := range os.Environ() {
		if strings.HasPrefix(v, "PATH=") || strings.HasPrefix(v, "COPPICE_") || strings.HasPrefix(v, "GO") {
			env = append(env, v)
		}
	}
	return env
}

// settingsOf returns a file with o, from its beginning.
func settingsOf(o Options) (*os.File, error) {
	data, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("encode settings: %w", err)
	}
	fd, err := unix.MemfdCreate("settings", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "settings")
	if _, err := f.WriteAt(data, 0); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// What the supervisor says to who started it: that all is well, or what is not.
const statusReady = "ready\n"

const maxStatus = 64 << 10

// await reads the status until it has been said completely, or ctx ends.
func await(ctx context.Context, status *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = status.SetReadDeadline(time.Now()) })
	defer stop()
	text, err := io.ReadAll(io.LimitReader(status, maxStatus))
	switch text = bytes.TrimSuffix(text, []byte("\n")); {
	case ctx.Err() != nil:
		return fmt.Errorf("wait for the daemon: %w", ctx.Err())
	case err != nil:
		return fmt.Errorf("wait for the daemon: %w", err)
	case string(text)+"\n" == statusReady:
		return nil
	case len(text) == 0:
		return errors.New("it has ended without a word; the kernel's log may tell why")
	}
	return errors.New(string(text))
}
