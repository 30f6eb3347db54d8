package ublk

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"coppice/ublk/uapi"
)

func TestOpenErrors(t *testing.T) {
	if _, err := Open(filepath.Join(t.TempDir(), "ublk-control")); !errors.Is(err, ErrNoDriver) || !errors.Is(err, syscall.ENOENT) {
		t.Errorf("no control device: %v", err)
	}
	for errno, want := range map[syscall.Errno]error{
		syscall.ENODEV: ErrNoDriver, syscall.ENXIO: ErrNoDriver, syscall.EACCES: ErrPermission, syscall.EPERM: ErrPermission,
		syscall.EMFILE: syscall.EMFILE,
	} {
		if err := openErr(errno); !errors.Is(err, want) || !errors.Is(err, errno) {
			t.Errorf("%v becomes %v", errno, err)
		}
	}
}

func TestControlErrors(t *testing.T) {
	for _, c := range []struct {
		cmd   uint32
		errno syscall.Errno
		want  error // nil: the bare errno
	}{
		{uapi.CmdGetDevInfo, syscall.ENODEV, ErrNoDevice},
		{uapi.CmdAddDev, syscall.EEXIST, ErrIDTaken},
		{uapi.NrAddDev, syscall.EEXIST, ErrIDTaken},
		{uapi.CmdStartDev, syscall.EEXIST, nil},
		{uapi.CmdAddDev, syscall.EACCES, ErrTooMany},
		{uapi.CmdSetParams, syscall.EACCES, nil},
		{uapi.CmdAddDev, syscall.EPERM, ErrPermission},
		{uapi.CmdDelDevAsync, syscall.EOPNOTSUPP, ErrUnsupported},
		{uapi.CmdDelDevAsync, syscall.Errno(524), ErrUnsupported},
		{uapi.CmdStartUserRecovery, syscall.EBUSY, nil},
	} {
		err := controlErr(c.cmd, c.errno)
		if !errors.Is(err, c.errno) || c.want != nil && !errors.Is(err, c.want) || c.want == nil && err != error(c.errno) {
			t.Errorf("command %#x, %v becomes %v", c.cmd, c.errno, err)
		}
		if strings.Contains(err.Error(), "\n") {
			t.Errorf("message of several lines: %q", err)
		}
	}
}

// nullControl is a Control over /dev/null, which answers every command with success
// and leaves memory as it is (uring_cmd_null, drivers/char/mem.c, Linux 6.1).
func nullControl(t *testing.T) *Control {
	t.Helper()
	c, err := Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(c.Close(), c.Close()); err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestCommandsRunAtTheSameTime(t *testing.T) {
	c := nullControl(t)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for range 20 {
				want := uapi.DevInfo{NrHWQueues: uint16(i + 1), QueueDepth: 7, DevID: uint32(i), State: uapi.StateLive, PID: -1}
				got, err := c.Add(context.Background(), want)
				if err != nil || got.Queues != i+1 || got.ID != i || got.Depth != 7 || got.State != StateLive || got.PID != -1 {
					t.Errorf("device comes back as %+v, %v", got, err)
				}
			}
		})
	}
	wg.Wait()
	if n := len(c.idle); n < 1 || n > maxIdleRings {
		t.Errorf("%d rings are kept", n)
	}
}

func TestEveryCommandOverNull(t *testing.T) {
	c, ctx := nullControl(t), context.Background()
	for name, command := range map[string]func() error{
		"start":          func() error { return c.Start(ctx, 1) },
		"stop":           func() error { return c.StopDevice(ctx, 1) },
		"delete":         func() error { return c.Delete(ctx, 1) },
		"delete async":   func() error { return c.DeleteAsync(ctx, 1) },
		"start recovery": func() error { return c.StartRecovery(ctx, 1) },
		"end recovery":   func() error { return c.EndRecovery(ctx, 1) },
		"quiesce":        func() error { return c.Quiesce(ctx, 1, 10) },
		"set parameters": func() error { return c.SetParams(ctx, 1, uapi.Params{}) },
		"get parameters": func() error { _, err := c.GetParams(ctx, 1); return err },
		"get info":       func() error { _, err := c.GetInfo(ctx, 1); return err },
		"affinity":       func() error { _, err := c.QueueAffinity(ctx, 1, 0); return err },
	} {
		if err := command(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := c.Start(ctx, -1); !errors.Is(err, ErrNoDevice) {
		t.Errorf("start of device -1: %v", err)
	}
}

func TestEndedContextSendsNothing(t *testing.T) {
	c := nullControl(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.Start(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("start after cancellation: %v", err)
	}
}

func TestClosedControl(t *testing.T) {
	c := nullControl(t)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.GetInfo(context.Background(), 0); !errors.Is(err, ErrClosed) {
		t.Errorf("closed control answers %v", err)
	}
}

// A late interrupt must not end the command that came after the one it was meant for.
func TestLateInterruptIsHarmless(t *testing.T) {
	c := nullControl(t)
	cr := c.idle[0]
	for range 50 {
		cr.interrupt(cr.number)
		if _, err := c.GetInfo(context.Background(), 1); err != nil {
			t.Fatal(err)
		}
	}
}

// A driver that knows neither GET_FEATURES nor encoded commands, such as a file, is taken for an old one.
func TestProbeFallsBackToBareNumbers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if !c.legacy || c.Features() != FeatureRecovery|FeatureReissue || c.encode(opAdd) != uapi.NrAddDev {
		t.Errorf("legacy %v, features %v", c.legacy, c.Features())
	}
	if _, err := c.GetInfo(context.Background(), 0); !errors.Is(err, ErrUnsupported) {
		t.Errorf("command to a file: %v", err)
	}
}

func TestUnknownCommand(t *testing.T) {
	for errno, want := range map[syscall.Errno]bool{
		syscall.ENODEV: true, syscall.EOPNOTSUPP: true, syscall.EINVAL: true, 524: true, syscall.EPERM: false, syscall.ENOMEM: false,
	} {
		if unknownCommand(controlErr(uapi.CmdAddDev, errno)) != want {
			t.Errorf("%v taken for an unknown command: %v", errno, !want)
		}
	}
}

func TestCreateRefusesBadParams(t *testing.T) {
	c := nullControl(t) // which offers nothing
	if _, err := c.Create(context.Background(), Params{}, NewNull(), nil); err == nil {
		t.Error("device without a size was made")
	}
	p := Params{SizeBytes: 1 << 20, Recoverable: true}
	if _, err := c.Create(context.Background(), p, NewNull(), nil); !errors.Is(err, ErrUnsupported) {
		t.Errorf("recoverable device without recovery: %v", err)
	}
}

func TestDeviceIDs(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"ublkc10", "ublkc2", "ublkc0", "other", "ublkcx"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	ids, err := deviceIDs(dir)
	if err != nil || !slices.Equal(ids, []int{0, 2, 10}) {
		t.Errorf("ids are %v, %v", ids, err)
	}
	if _, err := deviceIDs(filepath.Join(dir, "none")); err == nil {
		t.Error("missing class was listed")
	}
}

func TestRetry(t *testing.T) {
	busy, fatal := errors.New("busy"), errors.New("fatal")
	transient := func(err error) bool { return err == busy }
	calls := 0
	err := retry(context.Background(), time.Minute, transient, func() error {
		if calls++; calls < 3 {
			return busy
		}
		return nil
	})
	if err != nil || calls != 3 {
		t.Errorf("%d calls, %v", calls, err)
	}
	if err := retry(context.Background(), time.Minute, transient, func() error { return fatal }); err != fatal {
		t.Errorf("fatal error: %v", err)
	}
	if err := retry(context.Background(), 10*time.Millisecond, transient, func() error { return busy }); err != busy {
		t.Errorf("out of patience: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	err = retry(ctx, time.Minute, transient, func() error { return busy })
	if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, busy) {
		t.Errorf("out of time: %v", err)
	}
}

// knobs is a queue directory as the kernel has it. The values are as wide as those that tune sets, because
// a file, unlike a knob, keeps what a shorter value does not cover.
func knobs(t *testing.T, scheduler string) string {
	t.Helper()
	dir := t.TempDir()
	for name, value := range map[string]string{"scheduler": scheduler, "io_timeout": "9000", "nr_requests": "64"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestTune(t *testing.T) {
	for _, c := range []struct {
		p                 Params
		timeout, requests string
	}{
		{Params{Depth: 64}, "9000", "64"},
		{Params{Depth: 64, Recoverable: true}, "3000", "63"},
		{Params{Depth: 4, Recoverable: true}, "3000", "64"},
	} {
		dir := knobs(t, "[none] mq-deadline")
		if err := tune(dir, &c.p); err != nil {
			t.Error(err)
		}
		for name, want := range map[string]string{"io_timeout": c.timeout, "nr_requests": c.requests} {
			if got, err := readKnob(dir, name); err != nil || got != want {
				t.Errorf("%+v: %s is %q, %v, want %q", c.p, name, got, err, want)
			}
		}
	}
	if err := tune(t.TempDir(), &Params{}); err == nil {
		t.Error("missing knobs were set")
	}
}

func TestSchedulerIsAsserted(t *testing.T) {
	for have, want := range map[string]bool{
		"[none] mq-deadline":     true,
		"mq-deadline [none] bfq": true,
		"none":                   true,
		"[mq-deadline] none":     false, // a file does not select what is written to it
	} {
		if err := setScheduler(knobs(t, have), "none"); (err == nil) != want {
			t.Errorf("scheduler %q: %v", have, err)
		}
	}
}
