package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"coppice/appliance"
	"coppice/image"
)

// It serves until it is told to stop, and ends well then.
func TestServeUntilStopped(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "images")
	l, err := image.CreateLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := image.Build(t.Context(), l, "a:1", strings.NewReader(strings.Repeat("x", 8192)), 8192, image.BuildOptions{}); err != nil {
		t.Fatal(err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	free.Close()
	ref, err := image.ParseRef("oci:" + dir + ":a:1")
	if err != nil {
		t.Fatal(err)
	}
	c := serveCmd{Listen: addr, Images: []string{dir + "/"}, Root: []imageRef{{ref}}, CacheMemory: 64 << 20, Patience: time.Second, Insecure: true}
	o, err := c.options(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, o) }()
	var s appliance.Stats
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		resp, err := http.Get("http://" + addr + "/v1/stats")
		if err == nil {
			err = json.NewDecoder(resp.Body).Decode(&s)
			resp.Body.Close()
			if err != nil {
				t.Error(err)
			}
			break
		}
		if time.Since(began) > 30*time.Second {
			t.Fatal(err)
		}
	}
	if len(s.Roots) != 1 || s.Roots[0].Error != "" || s.Cache.Memory.ThresholdBytes != 64<<20 {
		t.Errorf("%+v", s)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := http.Get(fmt.Sprintf("http://%s/images/index.json", addr)); err == nil {
		t.Error("still served")
	}
}

// What does not ask it to end does not: SIGHUP has it read again what it can, SIGURG is how Go's runtime interrupts a thread, SIGWINCH comes from a terminal.
func TestServeEndsByItsSignalsOnly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "images")
	l, err := image.CreateLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	log := &lockedBuffer{}
	c := exec.Command("coppice", "serve", "--listen", "127.0.0.1:0", "--images", dir, "--insecure")
	c.Stderr = log
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	says := func(text string) {
		t.Helper()
		for began := time.Now(); !strings.Contains(log.String(), text); time.Sleep(5 * time.Millisecond) {
			if time.Since(began) > 30*time.Second {
				_ = c.Process.Kill()
				t.Fatalf("it does not say %q:\n%s", text, log)
			}
		}
	}
	says("msg=serving")
	for _, s := range []syscall.Signal{syscall.SIGURG, syscall.SIGWINCH, syscall.SIGCHLD, syscall.SIGHUP} {
		if err := c.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	says("nothing needs to be read again")
	if strings.Contains(log.String(), "signal received") {
		t.Errorf("it ends:\n%s", log)
	}
	if err := c.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil || !strings.Contains(log.String(), "signal received") {
		t.Errorf("%v\n%s", err, log)
	}
}
