package image

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// SourceOptions says how sources are reached. The zero value is complete.
type SourceOptions struct {
	// TLS has the authorities and client certificates. TLS 1.3 is the least that is spoken.
	TLS *tls.Config
	// Stall is how long a server may send, or take, nothing. 0 means 30 s.
	Stall time.Duration

	arrived func()        // called when a server has sent something; nil where nobody asks
	files   *certificates // instead of TLS
}

// NewSourceOptions reads certificates in PEM: ca of authorities beside those of the system, cert and key of the one to show to servers. Each path
// may be "". Sources that are opened with them read the files again when they change: connections made from then on use what is new.
func NewSourceOptions(ca, cert, key string) (SourceOptions, error) {
	if ca == "" && cert == "" && key == "" {
		return SourceOptions{}, nil
	}
	files, err := readCertificates(ca, cert, key)
	if err != nil {
		return SourceOptions{}, err
	}
	return SourceOptions{files: files}, nil
}

const (
	defaultStall = 30 * time.Second
	maxRedirects = 5
)

// caller does a request, with credentials where there are some.
type caller interface {
	Do(*http.Request) (*http.Response, error)
}

// client reads blobs of a server by HTTP. Redirects are followed for blobs only, without credentials, and not to where the first server
// would have no business to send anybody.
type client struct {
	place   fmt.Stringer
	stall   time.Duration
	own     caller       // the server itself
	other   *http.Client // where it redirects to
	arrived func()
	private atomic.Bool // the server itself was reached at a private address
	proxied func(*http.Request) bool
}

// newTransport has time-outs for everything that comes before the body, which has a watch of its own.
func newTransport(tlsConfig *tls.Config, stall time.Duration, dial func(context.Context, string, string) (net.Conn, error)) *http.Transport {
	config := &tls.Config{}
	if tlsConfig != nil {
		config = tlsConfig.Clone()
	}
	config.MinVersion = tls.VersionTLS13
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            dial,
		TLSClientConfig:        config,
		TLSHandshakeTimeout:    10 * time.Second,
		ResponseHeaderTimeout:  stall,
		MaxIdleConnsPerHost:    lanes,
		IdleConnTimeout:        90 * time.Second,
		DisableCompression:     true,
		ForceAttemptHTTP2:      true,
		MaxResponseHeaderBytes: 64 << 10,
	}
}

func (o SourceOptions) stall() time.Duration {
	if o.Stall == 0 {
		return defaultStall
	}
	return o.Stall
}

func stay(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// newClient returns a client, and the [http.Client] for the server itself, which follows no redirect.
func newClient(place fmt.Stringer, o SourceOptions) (*client, *http.Client) {
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
	own := &http.Client{Transport: transportOf(o, dialer.DialContext), CheckRedirect: stay}
	c := &client{place: place, stall: o.stall(), own: own, arrived: o.arrived}
	if c.arrived == nil {
		c.arrived = func() {}
	}
	checked := *dialer
	checked.ControlContext = c.checkAddress
	c.other = &http.Client{CheckRedirect: stay}
	c.proxied = func(r *http.Request) bool {
		proxy, err := http.ProxyFromEnvironment(r)
		return proxy != nil || err != nil
	}
	c.other.Transport = transportOf(o, checked.DialContext)
	return c, own
}

func (c *client) close() {
	for _, h := range []caller{c.own, c.other} {
		if h, ok := h.(*http.Client); ok {
			h.CloseIdleConnections()
		}
	}
}

type proxiedKey struct{}

// checkAddress is asked about the address that a redirect leads to, after its name was looked up. A proxy looks up by itself.
func (c *client) checkAddress(ctx context.Context, _, address string, _ syscall.RawConn) error {
	if ctx.Value(proxiedKey{}) != nil {
		return nil
	}
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	ip := at.Addr().Unmap()
	if ip.IsUnspecified() || ip.IsMulticast() || ip.IsLinkLocalUnicast() || isPrivate(ip) && !c.private.Load() {
		return fmt.Errorf("redirected to %s, where a server of %s has no business: %w", ip, c.place, ErrRefused)
	}
	return nil
}

var sharedRange = netip.MustParsePrefix("100.64.0.0/10") // RFC 6598

func isPrivate(ip netip.Addr) bool {
	return ip.IsPrivate() || ip.IsLoopback() || sharedRange.Contains(ip)
}

// body is an answer whose stalling ends it.
type body struct {
	*http.Response
	cancel context.CancelCauseFunc
	ctx    context.Context
	timer  *time.Timer
	stall  time.Duration

	arrived func()
}

// Read reads from the answer.
func (b *body) Read(p []byte) (int, error) {
	b.timer.Reset(b.stall) // not while nobody reads
	n, err := b.Body.Read(p)
	b.timer.Stop()
	if n > 0 {
		b.arrived()
	}
	if err != nil && !errors.Is(err, io.EOF) && b.ctx.Err() != nil {
		err = context.Cause(b.ctx)
	}
	return n, err
}

// Close ends the answer. A connection whose answer was read to its end is used again.
func (b *body) Close() error {
	b.end()
	return nil
}

func (b *body) end() {
	b.Body.Close()
	b.timer.Stop()
	b.cancel(nil)
}

// get asks for something. Redirects are followed where follow says so.
func (c *client) get(ctx context.Context, method, url string, header http.Header, follow bool) (*body, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	b := &body{cancel: cancel, ctx: ctx, stall: c.stall, arrived: c.arrived}
	b.timer = time.AfterFunc(c.stall, func() { cancel(fmt.Errorf("nothing came for %s: %w", c.stall, context.DeadlineExceeded)) })
	resp, err := c.follow(ctx, method, url, header, follow)
	if err != nil {
		b.timer.Stop()
		if ctx.Err() != nil {
			err = fmt.Errorf("%w", context.Cause(ctx))
		}
		cancel(nil)
		return nil, err
	}
	b.timer.Stop()
	c.arrived()
	b.Response = resp
	return b, nil
}

func (c *client) follow(ctx context.Context, method, url string, header http.Header, follow bool) (*http.Response, error) {
	trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
		if at, err := netip.ParseAddrPort(i.Conn.RemoteAddr().String()); err == nil {
			c.private.Store(isPrivate(at.Addr().Unmap()))
		}
	}}
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), method, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header = header.Clone()
	resp, err := c.own.Do(req)
	for range maxRedirects {
		if err != nil || !isRedirect(resp.StatusCode) {
			return resp, err
		}
		resp.Body.Close()
		to, locationErr := resp.Location()
		switch {
		case locationErr != nil:
			return nil, fmt.Errorf("redirected to nowhere: %w", ErrProtocol)
		case !follow:
			return nil, fmt.Errorf("redirected to %s: only blobs may be: %w", to.Redacted(), ErrRefused)
		case to.Scheme != "https" && (to.Scheme != "http" || req.URL.Scheme == "https"):
			return nil, fmt.Errorf("redirected from %s to %s: %w", req.URL.Scheme, to.Redacted(), ErrRefused)
		case to.User != nil:
			return nil, fmt.Errorf("redirected to %s, with a password: %w", to.Redacted(), ErrRefused)
		}
		next, requestErr := http.NewRequestWithContext(ctx, method, to.String(), nil)
		if requestErr != nil {
			return nil, requestErr
		}
		if c.proxied(next) {
			next = next.WithContext(context.WithValue(ctx, proxiedKey{}, true))
		}
		next.Header = header.Clone() // which has no credentials
		req = next
		resp, err = c.other.Do(req)
	}
	if err == nil {
		resp.Body.Close()
		err = fmt.Errorf("redirected more than %d times: %w", maxRedirects, ErrRefused)
	}
	return nil, err
}

func isRedirect(status int) bool {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// statusError says what an answer without content means.
func statusError(resp *http.Response) error {
	switch resp.StatusCode {
	case http.StatusNotFound, http.StatusGone:
		return ErrNotFound
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("HTTP status %s: %w", short(resp.Status), ErrRefused)
	}
	return fmt.Errorf("HTTP status %s: %w", short(resp.Status), ErrProtocol)
}

// short makes what a server said fit for an error.
func short(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, s)
	return s[:min(len(s), 80)]
}

// readRange fills p from byte off of a blob on.
func (c *client) readRange(ctx context.Context, url string, blob ocispec.Descriptor, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	header := http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", off, off+int64(len(p))-1)}}
	b, err := c.get(ctx, http.MethodGet, url, header, true)
	if err != nil {
		return err
	}
	defer b.end()
	if err := checkRange(b.Response, blob.Size, off, int64(len(p))); err != nil {
		return err
	}
	if _, err := io.ReadFull(b, p); err != nil {
		return fmt.Errorf("the answer of %d bytes ended early: %w", len(p), err)
	}
	// The end has to be seen for the connection to be used again.
	if n, err := b.Read(make([]byte, 1)); n > 0 || err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("the answer has more than the %d bytes asked for: %w", len(p), ErrProtocol)
	}
	return nil
}

// checkRange takes the range that was asked for, and nothing else.
func checkRange(resp *http.Response, size, off, n int64) error {
	if e := resp.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return fmt.Errorf("the answer has content encoding %s: %w", short(e), ErrProtocol)
	}
	switch {
	case resp.StatusCode == http.StatusOK && off == 0 && n == size: // all of it is as good
	case resp.StatusCode == http.StatusOK:
		return fmt.Errorf("the server does not answer requests for ranges: %w", ErrProtocol)
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return fmt.Errorf("the blob there is shorter than its %d bytes: %w", size, ErrProtocol)
	case resp.StatusCode != http.StatusPartialContent:
		return statusError(resp)
	default:
		got := resp.Header.Get("Content-Range")
		want := fmt.Sprintf("bytes %d-%d/", off, off+n-1)
		if total, ok := strings.CutPrefix(got, want); !ok || total != "*" && total != fmt.Sprint(size) {
			return fmt.Errorf("the answer has range %q, not %q: %w", short(got), want+fmt.Sprint(size), ErrProtocol)
		}
	}
	if resp.ContentLength >= 0 && resp.ContentLength != n {
		return fmt.Errorf("the answer has %d bytes, not %d: %w", resp.ContentLength, n, ErrProtocol)
	}
	return nil
}

// open returns a whole blob.
func (c *client) open(ctx context.Context, url string, blob ocispec.Descriptor) (io.ReadCloser, error) {
	b, err := c.get(ctx, http.MethodGet, url, http.Header{}, true)
	if err != nil {
		return nil, err
	}
	switch {
	case b.StatusCode != http.StatusOK:
		err = statusError(b.Response)
	case b.ContentLength >= 0 && b.ContentLength != blob.Size:
		err = fmt.Errorf("the answer has %d bytes, not %d: %w", b.ContentLength, blob.Size, ErrProtocol)
	default:
		return b, nil
	}
	b.end()
	return nil, err
}

// fetch returns a document of at most so many bytes.
func (c *client) fetch(ctx context.Context, url string, header http.Header, most int64, follow bool) ([]byte, error) {
	b, err := c.get(ctx, http.MethodGet, url, header, follow)
	if err != nil {
		return nil, err
	}
	defer b.end()
	if b.StatusCode != http.StatusOK {
		return nil, statusError(b.Response)
	}
	data, err := io.ReadAll(io.LimitReader(b, most+1))
	if err == nil && int64(len(data)) > most {
		err = fmt.Errorf("the answer has more than %d bytes: %w", most, ErrProtocol)
	}
	return data, err
}
