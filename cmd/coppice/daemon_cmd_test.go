package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// lockedBuffer is a buffer for a log that several goroutines write and read.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func TestSecondSignalIsOnlyLogged(t *testing.T) {
	log := &lockedBuffer{}
	ctx, stop := untilSignal(slog.New(slog.NewTextHandler(log, nil)), endSignals(nil))
	defer stop()
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		if err := syscall.Kill(os.Getpid(), sig); err != nil {
			t.Fatal(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(2 * time.Minute):
			t.Fatalf("%v does not end the daemon", sig)
		}
	}
	for began := time.Now(); strings.Count(log.String(), "stopping already") < 1; time.Sleep(time.Millisecond) {
		if time.Since(began) > 2*time.Minute {
			t.Fatalf("log:\n%s", log)
		}
	}
}

// SIGHUP ends nothing, and has the configuration read again, also where that could not be done the last time.
func TestHangupReloads(t *testing.T) {
	told := asSystemd(t)
	log := &lockedBuffer{}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	var reloads atomic.Int64
	hangups := catchHangups()
	go func() {
		defer close(ended)
		reloadAt(ctx, hangups, slog.New(slog.NewTextHandler(log, nil)), func() error {
			if reloads.Add(1) == 1 {
				return errors.New("line 3: unknown key")
			}
			return nil
		})
	}()
	for want := int64(1); want <= 2; want++ {
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		if got := told(); !strings.HasPrefix(got, "RELOADING=1\nMONOTONIC_USEC=") {
			t.Errorf("told %q", got)
		}
		if got := told(); got != "READY=1" || reloads.Load() != want {
			t.Errorf("told %q after %d reloads", got, reloads.Load())
		}
	}
	if strings.Count(log.String(), "line 3") != 1 {
		t.Errorf("log:\n%s", log)
	}
	stop()
	<-ended
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil { // as while the daemon stops
		t.Fatal(err)
	}
}

func TestSystemdIsTold(t *testing.T) {
	told := asSystemd(t)
	notifyReady("2 devices served, 0 failed")
	if got := told(); got != "READY=1\nSTATUS=2 devices served, 0 failed" {
		t.Errorf("told %q", got)
	}
}

// asSystemd stands in for systemd, and returns what gives the next thing that it is told.
func asSystemd(t *testing.T) func() string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return func() string {
		t.Helper()
		buf := make([]byte, 256)
		n, err := l.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
}
