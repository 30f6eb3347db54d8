//go:build vm

package vmtests

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"coppice/image"
)

// web is a server of a directory of images, or of what another server has, which counts what it sends and can go away.
type web struct {
	t       *testing.T
	content http.Handler
	server  *http.Server
	address string
	sent    atomic.Int64 // bytes of bodies
}

// startWeb starts a web server of a directory on the loopback. It ends with the test.
func startWeb(t *testing.T, dir string) *web {
	t.Helper()
	return startServer(t, http.FileServer(http.Dir(dir)))
}

// startProxy starts one that passes on what the server at an address has.
func startProxy(t *testing.T, address string) *web {
	t.Helper()
	return startServer(t, httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: address}))
}

func startServer(t *testing.T, content http.Handler) *web {
	t.Helper()
	w := &web{t: t, content: content, address: fmt.Sprintf("127.0.0.1:%d", freePorts(t, 1)[0])}
	w.start()
	t.Cleanup(w.stop)
	return w
}

// start begins to listen, at the same address each time.
func (w *web) start() {
	w.t.Helper()
	listener, err := net.Listen("tcp4", w.address)
	if err != nil {
		w.t.Fatal(err)
	}
	w.server = &http.Server{Handler: w}
	go func() { _ = w.server.Serve(listener) }()
}

// stop ends all connections, and refuses new ones.
func (w *web) stop() { _ = w.server.Close() }

// ServeHTTP answers and counts.
func (w *web) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w.content.ServeHTTP(countedWriter{rw, &w.sent}, r)
}

// countedWriter counts the bytes of an answer's body.
type countedWriter struct {
	http.ResponseWriter
	n *atomic.Int64
}

// Write passes on and counts.
func (w countedWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.n.Add(int64(n))
	return n, err
}

// imageAt is the image of the web server at an address.
func imageAt(address string) string { return "http://" + address + "/root:debian:1" }

// buildRoot makes an image debian:1 of a disk in a new layout.
func buildRoot(t *testing.T, dir, disk string) image.BuildReport {
	t.Helper()
	return buildImage(t, dir, "debian:1", disk)
}

// buildImage makes an image of a disk in a layout, which is made where there is none.
func buildImage(t *testing.T, dir, name, disk string) image.BuildReport {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	layout, err := image.CreateLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer layout.Close()
	report, err := image.Build(t.Context(), layout, name, f, info.Size(), image.BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// freePorts returns TCP ports of the loopback that nobody listens at, below those that the kernel gives to whoever asks for any.
func freePorts(t *testing.T, count int) (ports []int) {
	t.Helper()
	const first, last, tries = 20000, 29999, 1000
	for n := 0; len(ports) < count; n++ {
		if n == tries {
			t.Fatalf("of %d ports of the loopback, %d are free", tries, len(ports))
		}
		port := first + rand.IntN(last-first+1)
		listener, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		defer listener.Close() // those found stay taken until all are
		ports = append(ports, port)
	}
	return ports
}
