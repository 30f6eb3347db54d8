package image

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// ErrCertificate is the cause where the certificate to show to servers is of no use.
var ErrCertificate = errors.New("the certificate to show to servers cannot be used")

// certificates come from files, which are read again when they change.
type certificates struct {
	ca, cert, key string // paths

	mu     sync.Mutex // guards what follows
	stamps [3]fileStamp
	config *tls.Config // of the files that could be read last; never changed
	gen    int         // counts them

	unfit atomic.Pointer[error] // what a server is refused with that does not like the last answer to its question for a certificate
	none  atomic.Bool           // which was that there is none for it
}

// fileStamp tells a file from what it was before. It is zero where there is none.
type fileStamp struct {
	info os.FileInfo
	size int64
	time time.Time
}

func (s fileStamp) same(other fileStamp) bool {
	if s.info == nil || other.info == nil {
		return s.info == nil && other.info == nil
	}
	return os.SameFile(s.info, other.info) && s.size == other.size && s.time.Equal(other.time)
}

// readCertificates reads the files, each of which may be "".
func readCertificates(ca, cert, key string) (*certificates, error) {
	c := &certificates{ca: ca, cert: cert, key: key}
	c.stamps = c.look()
	var err error
	c.config, err = c.read()
	return c, err
}

func (c *certificates) look() (stamps [3]fileStamp) {
	for i, path := range []string{c.ca, c.cert, c.key} {
		if path == "" {
			continue
		}
		if info, err := os.Stat(path); err == nil {
			stamps[i] = fileStamp{info, info.Size(), info.ModTime()}
		}
	}
	return stamps
}

func (c *certificates) read() (*tls.Config, error) {
	config := &tls.Config{}
	if c.ca != "" {
		pem, err := os.ReadFile(c.ca)
		if err != nil {
			return nil, fmt.Errorf("read certificates of authorities: %w", err)
		}
		if config.RootCAs, err = x509.SystemCertPool(); err != nil {
			config.RootCAs = x509.NewCertPool()
		}
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read certificates of authorities: %s has no certificate in PEM", c.ca)
		}
	}
	if c.cert != "" || c.key != "" {
		pair, err := tls.LoadX509KeyPair(c.cert, c.key)
		if err != nil {
			return nil, fmt.Errorf("read certificate %s and its key %s: %w", c.cert, c.key, err)
		}
		config.GetClientCertificate = func(asked *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return c.choose(&pair, asked, time.Now())
		}
	}
	return config, nil
}

// choose decides what to show to a server that asks for a certificate.
func (c *certificates) choose(pair *tls.Certificate, asked *tls.CertificateRequestInfo, now time.Time) (*tls.Certificate, error) {
	switch {
	case now.After(pair.Leaf.NotAfter):
		return nil, fmt.Errorf("%s has expired on %s: %w", c.cert, pair.Leaf.NotAfter.UTC().Format(time.RFC3339), ErrCertificate)
	case now.Before(pair.Leaf.NotBefore):
		return nil, fmt.Errorf("%s holds from %s on: %w", c.cert, pair.Leaf.NotBefore.UTC().Format(time.RFC3339), ErrCertificate)
	}
	if err := asked.SupportsCertificate(pair); err != nil {
		c.answer(true, "%s is of an authority that the server does not name: %w", c.cert, ErrCertificate)
		return &tls.Certificate{}, nil // the server may do without
	}
	c.answer(false, "the server was shown %s: %w", c.cert, ErrCertificate)
	return pair, nil
}

func (c *certificates) answer(none bool, format string, args ...any) {
	err := fmt.Errorf(format, args...)
	c.unfit.Store(&err)
	c.none.Store(none)
}

// current returns what the files say now. Where they cannot be read, it is what they said before.
func (c *certificates) current() (*tls.Config, int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.look()
	if now[0].same(c.stamps[0]) && now[1].same(c.stamps[1]) && now[2].same(c.stamps[2]) {
		return c.config, c.gen
	}
	c.stamps = now // a file that cannot be used is not tried again before it changes
	config, err := c.read()
	if err != nil {
		slog.Warn("certificates have changed and cannot be used; those from before are", "error", err)
		return c.config, c.gen
	}
	slog.Info("certificates have changed, and are used from now on", "ca", c.ca, "certificate", c.cert)
	c.config = config
	c.gen++
	return c.config, c.gen
}

// transport is a [http.Transport] whose new connections use the certificates of their time.
type transport struct {
	o    SourceOptions
	dial func(context.Context, string, string) (net.Conn, error)

	mu  sync.Mutex // guards what follows
	now *http.Transport
	gen int
}

func (t *transport) current() *http.Transport {
	config, gen := t.o.TLS, 0
	if t.o.files != nil {
		config, gen = t.o.files.current()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.now == nil || gen != t.gen {
		before := t.now
		t.now, t.gen = newTransport(config, t.o.stall(), t.dial), gen
		if before != nil {
			before.CloseIdleConnections() // others end when they have been idle for long enough
		}
	}
	return t.now
}

// RoundTrip does one request.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.current().RoundTrip(req)
	if t.o.files == nil {
		return resp, err
	}
	unfit := t.o.files.unfit.Load()
	var alert *net.OpError
	switch {
	case unfit == nil:
	case errors.As(err, &alert) && alert.Op == "remote error":
		err = fmt.Errorf("%w: %w: %w", err, *unfit, ErrRefused)
	case err == nil && resp.StatusCode == http.StatusBadRequest && t.o.files.none.Load(): // as nginx answers then
		resp.Body.Close()
		return nil, fmt.Errorf("HTTP status %s: %w: %w", short(resp.Status), *unfit, ErrRefused)
	}
	return resp, err
}

// CloseIdleConnections closes connections that wait to be used again.
func (t *transport) CloseIdleConnections() { t.current().CloseIdleConnections() }
