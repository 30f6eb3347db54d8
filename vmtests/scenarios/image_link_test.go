//go:build vm && long

package scenarios

import (
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	farAddr   = "10.9.0.2"
	linkDelay = 10 * time.Millisecond // each way
)

// counter passes requests on and counts them and what is answered.
type counter struct {
	next            http.Handler
	requests, bytes atomic.Int64
}

// ServeHTTP serves a request.
func (c *counter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.requests.Add(1)
	c.next.ServeHTTP(&countedAnswer{w, c}, r)
}

type countedAnswer struct {
	http.ResponseWriter
	*counter
}

// Write sends a part of an answer.
func (a *countedAnswer) Write(p []byte) (int, error) {
	a.bytes.Add(int64(len(p)))
	return a.ResponseWriter.Write(p)
}

// slowLink has the web server of the host at the other end of a link with a delay of 20 ms there and back, and 100 Mbit/s, and returns its URL.
func slowLink(t *testing.T) (string, *counter) {
	t.Helper()
	network(t)
	sh(t, `modprobe sch_netem
ip netns add far
ip link add near type veth peer name far0 netns far
ip addr add 10.9.0.1/24 dev near
ip link set near up
ip -n far addr add `+farAddr+`/24 dev far0
ip -n far link set far0 up
tc qdisc add dev near root netem delay `+linkDelay.String()+` rate 100mbit limit 10000
tc -n far qdisc add dev far0 root netem delay `+linkDelay.String()+` rate 100mbit limit 10000`)
	t.Cleanup(func() { sh(t, "ip link del near; ip netns del far") })
	web, err := url.Parse(lab(t, "web"))
	if err != nil {
		t.Fatal(err)
	}
	listener, err := listenIn("/run/netns/far", farAddr+":80")
	if err != nil {
		t.Fatal(err)
	}
	c := &counter{next: httputil.NewSingleHostReverseProxy(web)}
	server := &http.Server{Handler: c}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { server.Close() })
	return "http://" + farAddr, c
}

// listenIn listens in another network namespace.
func listenIn(namespace, addr string) (net.Listener, error) {
	type result struct {
		net.Listener
		error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // for good: the thread stays in the namespace, and ends with the goroutine
		fd, err := unix.Open(namespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			unix.Close(fd)
		}
		if err != nil {
			done <- result{nil, err}
			return
		}
		l, err := net.Listen("tcp", addr)
		done <- result{l, err}
	}()
	r := <-done
	return r.Listener, r.error
}

// TestImageOverSlowLink shows what comes over the link before the first byte of a device can be read, and how long things take.
func TestImageOverSlowLink(t *testing.T) {
	web, link := slowLink(t)
	began := time.Now()
	answer, err := http.Get(web + "/full/index.json")
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if took := time.Since(began); answer.StatusCode != http.StatusOK || took < 4*linkDelay {
		t.Errorf("the web server answers %s in %v: connecting and asking takes 40 ms on this link", answer.Status, took)
	}
	leaf := disk(t, "leaf")
	format(t, leaf)
	startDaemon(t)
	link.requests.Store(0)
	link.bytes.Store(0)
	began = time.Now()
	full := createForTest(t, "full", web+"/full:full:1", leaf)
	created := time.Since(began)
	sh(t, "dd if="+full.Path+" of=/dev/null bs=4k count=1 iflag=direct status=none")
	t.Logf("a full image of 1 GiB: device after %d ms, first byte after %d ms, with %d requests and %.1f KiB",
		created.Milliseconds(), time.Since(began).Milliseconds(), link.requests.Load(), float64(link.bytes.Load())/1024)
	if link.requests.Load() > 8 || link.bytes.Load() > 2<<20 {
		t.Errorf("%d requests and %d bytes before the first byte, want at most 8 and 2 MiB", link.requests.Load(), link.bytes.Load())
	}
	began = time.Now()
	dev := createForTest(t, "debian", web+"/copied:debian:1", leaf)
	mountPoint(t, dev.Path, "-t ext4 -o ro")
	t.Logf("a Debian system: mounted after %d ms", time.Since(began).Milliseconds())
	link.bytes.Store(0)
	began = time.Now()
	const mib = 96
	sh(t, "dd if="+dev.Path+" of=/dev/null bs=1M count=96 skip=64 iflag=direct status=none")
	took := time.Since(began).Seconds()
	t.Logf("%d MiB of it in one go: %.1f s, %.1f MiB/s, for which %.1f MiB/s came over the link", mib, took, mib/took, float64(link.bytes.Load())/took/(1<<20))
}
