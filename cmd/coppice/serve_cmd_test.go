package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
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
