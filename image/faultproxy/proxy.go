package faultproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Fault is what goes wrong. The zero value is nothing.
type Fault struct {
	// Only selects the requests that it concerns. nil means all.
	Only func(*http.Request) bool

	Delay time.Duration // before an answer
	Rate  int           // bytes per second of each answer; 0 means as fast as it goes
	Link  int           // bytes per second of all answers together, one after the other; 0 means as fast as it goes

	Reset     bool // connections are reset
	Blackhole bool // connections are taken, and nothing is ever said on them

	Flip       bool // one bit of each answer
	Truncate   bool // answers end in the middle
	WrongRange bool // another range is answered than was asked for, and said so
	Misdirect  bool // the bytes of another range are answered as those that were asked for

	Redirect string            // a URL in front of a request's path, where the client is sent
	Paths    map[string]string // requests for one path are answered with what another one has: an older version
}

// Networks between a server and its clients, of which all figures are.
var (
	LAN = Fault{Delay: 200 * time.Microsecond}
	WAN = Fault{Delay: 20 * time.Millisecond, Link: 100_000_000 / 8}
)

// shift is how far away the range lies that is answered instead of the one that was asked for.
const shift = 512

// Proxy is a proxy in front of one server. Its zero value is not ready: see [Start].
type Proxy struct {
	server   *http.Server
	url      string
	requests atomic.Int64
	sent     atomic.Int64

	mu    sync.Mutex // guards what follows
	fault Fault
	conns map[net.Conn]struct{}
	idle  time.Time // when the link has carried all that it was given
}

// Start begins to serve at an address, "127.0.0.1:0" for any, in front of the server at a URL. It is closed by [Proxy.Close].
func Start(addr, target string) (*Proxy, error) {
	to, err := url.Parse(target)
	if err != nil || to.Host == "" {
		return nil, fmt.Errorf("start fault proxy: %q is not the URL of a server", target)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("start fault proxy: %w", err)
	}
	p := &Proxy{url: "http://" + l.Addr().String(), conns: map[net.Conn]struct{}{}}
	quiet := log.New(io.Discard, "", 0)
	forward := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			r.Out.Host = r.In.Host
		},
		ModifyResponse: p.spoil,
		FlushInterval:  -1,
		ErrorLog:       quiet,
		Transport:      &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64},
	}
	p.server = &http.Server{
		Handler:           p.handler(forward),
		ConnState:         p.track,
		ErrorLog:          quiet,
		ReadHeaderTimeout: time.Minute,
	}
	go func() { _ = p.server.Serve(l) }() // until Close
	return p, nil
}

// URL returns http://HOST:PORT of the proxy.
func (p *Proxy) URL() string { return p.url }

// Addr returns HOST:PORT of the proxy.
func (p *Proxy) Addr() string { return p.url[len("http://"):] }

// Requests returns how many requests came.
func (p *Proxy) Requests() int64 { return p.requests.Load() }

// Sent returns how many bytes of answers, without headers, were sent.
func (p *Proxy) Sent() int64 { return p.sent.Load() }

// Set changes what goes wrong, from now on.
func (p *Proxy) Set(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = f
	if f.Reset && f.Only == nil {
		for c := range p.conns {
			reset(c)
		}
	}
}

// Close ends the proxy and all connections to it.
func (p *Proxy) Close() error { return p.server.Close() }

// now returns what goes wrong with a request at this moment.
func (p *Proxy) now(r *http.Request) Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fault.Only != nil && !p.fault.Only(r) {
		return Fault{}
	}
	return p.fault
}

func (p *Proxy) track(c net.Conn, state http.ConnState) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch state {
	case http.StateNew:
		p.conns[c] = struct{}{}
	case http.StateClosed, http.StateHijacked:
		delete(p.conns, c)
	}
}

// reset closes a connection so that the other side gets a reset.
func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // fails where it is closed already
	}
	c.Close()
}

func (p *Proxy) handler(forward http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.requests.Add(1)
		f := p.now(r)
		if !pause(r.Context(), f.Delay) {
			return
		}
		f = p.now(r) // which may have changed by now
		switch {
		case f.Reset:
			if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
				reset(c)
			}
		case f.Blackhole:
			<-r.Context().Done()
		case f.Redirect != "":
			http.Redirect(w, r, f.Redirect+r.URL.RequestURI(), http.StatusTemporaryRedirect)
		default:
			forward.ServeHTTP(w, misled(r, f))
		}
	})
}

// pause waits, and reports whether the client did so too.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// carry returns how long it takes until a link of so many bytes per second has carried n bytes more.
func (p *Proxy) carry(n, link int) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if p.idle.Before(now) {
		p.idle = now
	}
	p.idle = p.idle.Add(time.Duration(n) * time.Second / time.Duration(link))
	return p.idle.Sub(now)
}

type askedKey struct{}

// misled returns a request for something else.
func misled(r *http.Request, f Fault) *http.Request {
	if to, ok := f.Paths[r.URL.Path]; ok {
		r = r.Clone(r.Context())
		r.URL.Path = to
	}
	var from, to int64
	if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); n < 2 || !f.WrongRange && !f.Misdirect {
		return r
	}
	asked := fmt.Sprintf("bytes %d-%d/", from, to)
	by := int64(shift)
	if from >= shift {
		by = -shift
	}
	r = r.Clone(context.WithValue(r.Context(), askedKey{}, asked))
	r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", from+by, to+by))
	return r
}

// spoil puts the faults of an answer's bytes in its way.
func (p *Proxy) spoil(resp *http.Response) error {
	f := p.now(resp.Request)
	if asked, ok := resp.Request.Context().Value(askedKey{}).(string); ok && f.Misdirect {
		got := resp.Header.Get("Content-Range")
		resp.Header.Set("Content-Range", asked+got[strings.LastIndexByte(got, '/')+1:])
	}
	resp.Body = &body{ReadCloser: resp.Body, p: p, r: resp.Request, length: resp.ContentLength}
	return nil
}

// body is an answer on its way.
type body struct {
	io.ReadCloser
	p      *Proxy
	r      *http.Request
	length int64 // of the whole answer, or -1
	sent   int64
}

var errCut = errors.New("cut by the fault proxy")

// burst is how much is read at a time, so that faults come soon.
const burst = 8 << 10

// Read reads what comes next, as it is spoiled at this moment.
func (b *body) Read(p []byte) (int, error) {
	f := b.p.now(b.r)
	if f.Blackhole {
		<-b.r.Context().Done()
		return 0, b.r.Context().Err()
	}
	p = p[:min(len(p), burst)]
	if f.Truncate && b.length > 0 {
		if p = p[:min(int64(len(p)), b.length/2-b.sent)]; len(p) == 0 {
			return 0, errCut
		}
	}
	n, err := b.ReadCloser.Read(p)
	if at := b.length/2 - b.sent; f.Flip && at >= 0 && at < int64(n) {
		p[at] ^= 1
	}
	b.sent += int64(n)
	b.p.sent.Add(int64(n))
	if f.Link > 0 && !pause(b.r.Context(), b.p.carry(n, f.Link)) {
		return n, b.r.Context().Err()
	}
	if f.Rate > 0 && !pause(b.r.Context(), time.Duration(n)*time.Second/time.Duration(f.Rate)) {
		return n, b.r.Context().Err()
	}
	return n, err
}
