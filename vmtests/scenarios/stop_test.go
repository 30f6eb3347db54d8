//go:build vm

package scenarios

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestDaemonEndsUnderLoad ends the daemon, by an order and by force, while a program writes to a mounted device. The device
// stays, its I/O waits; the next daemon takes it up, the program goes on as if nothing had been, and no write that was
// acknowledged is lost.
func TestDaemonEndsUnderLoad(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			leaf := disk(t, "leaf")
			format(t, leaf)
			served := startDaemon(t)
			dev := createForTest(t, "busy", disk(t, "debian"), leaf)
			dir := mountPoint(t, dev.Path, "-t ext4")
			w := startWriter(t, dir+"/srv/records")
			for range 3 {
				w.waitProgress()
				if err := served.end(sig); err != nil {
					t.Fatal(err)
				}
				if text, err := os.ReadFile(served.log.Name()); sig == syscall.SIGTERM && (err != nil || !strings.Contains(string(text), "QUIESCED")) {
					t.Errorf("the daemon left a device in use and did not say so: %v", err)
				}
				if _, err := os.Stat(dev.Path); err != nil {
					t.Errorf("the device did not stay: %v", err)
				}
				served = startDaemon(t)
				w.waitProgress()
			}
			w.finish()
			unmount(t, dir)
			sh(t, "e2fsck -fn "+dev.Path)
			coppice(t, "delete", "busy")
			served.stop(t)
			checkStore(t, leaf)
		})
	}
}

// writer appends numbered lines to a file, each written through, until it is told to stop.
type writer struct {
	t    *testing.T
	path string
	done atomic.Int64 // lines acknowledged
	stop atomic.Bool
	end  chan error
}

func startWriter(t *testing.T, path string) *writer {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND|os.O_SYNC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	w := &writer{t: t, path: path, end: make(chan error, 1)}
	go func() {
		defer f.Close()
		for n := int64(0); !w.stop.Load(); n++ {
			if _, err := fmt.Fprintf(f, "record %d %s\n", n, strings.Repeat("x", int(n%3000))); err != nil {
				w.end <- err
				return
			}
			w.done.Add(1)
		}
		w.end <- nil
	}()
	return w
}

// waitProgress waits until the writer has written some more lines.
func (w *writer) waitProgress() {
	w.t.Helper()
	from := w.done.Load()
	for began := time.Now(); w.done.Load() < from+20; time.Sleep(5 * time.Millisecond) {
		if time.Since(began) > time.Minute {
			w.t.Fatalf("the writer makes no progress after %d lines", from)
		}
		select {
		case err := <-w.end:
			w.end <- err
			w.t.Fatalf("the writer ended: %v", err)
		default:
		}
	}
}

// finish stops the writer and wants every line in the file.
func (w *writer) finish() {
	w.t.Helper()
	w.stop.Store(true)
	if err := <-w.end; err != nil {
		w.t.Fatalf("write: %v", err)
	}
	sh(w.t, "sync; echo 3 >/proc/sys/vm/drop_caches")
	f, err := os.Open(w.path)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	n := int64(0)
	for lines := bufio.NewScanner(f); lines.Scan(); n++ {
		if want := fmt.Sprintf("record %d %s", n, strings.Repeat("x", int(n%3000))); lines.Text() != want {
			w.t.Fatalf("line %d is %.60q, want %.60q", n, lines.Text(), want)
		}
	}
	if n != w.done.Load() {
		w.t.Errorf("%d lines in the file, %d were acknowledged", n, w.done.Load())
	}
	w.t.Logf("%d lines are all there", n)
}
