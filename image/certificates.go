package image

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"coppice/certs"
)

// ErrCertificate is the cause where the certificate to show to servers is of no use.
var ErrCertificate = errors.New("the certificate to show to servers cannot be used")

// certificates are those of files, and what servers said to them.
type certificates struct {
	*certs.Files
	cert string // path

	unfit atomic.Pointer[error] // what a server is refused with that does not like the last answer to its question for a certificate
	none  atomic.Bool           // which was that there is none for it
}

// readCertificates reads the files, each of which may be "".
func readCertificates(ca, cert, key string) (*certificates, error) {
	files, err := certs.Open(ca, cert, key)
	return &certificates{Files: files, cert: cert}, err
}

// config lets the authorities be trusted beside those of the system.
func (c *certificates) config(content *certs.Content) *tls.Config {
	config := &tls.Config{}
	if content.CA != nil {
		var err error
		if config.RootCAs, err = x509.SystemCertPool(); err != nil {
			config.RootCAs = x509.NewCertPool()
		}
		config.RootCAs.AppendCertsFromPEM(content.CA)
	}
	if content.Pair != nil {
		config.GetClientCertificate = func(asked *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return c.choose(content, asked, time.Now())
		}
	}
	return config
}

// choose decides what to show to a server that asks for a certificate.
func (c *certificates) choose(content *certs.Content, asked *tls.CertificateRequestInfo, now time.Time) (*tls.Certificate, error) {
	pair, err := content.Fit(now)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrCertificate)
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

// transport is a [http.Transport] whose new connections use the certificates of their time.
type transport struct {
	o     SourceOptions
	plain *certs.Derived[*http.Transport]
}

func transportOf(o SourceOptions, dial func(context.Context, string, string) (net.Conn, error)) *transport {
	var files *certs.Files
	if o.files != nil {
		files = o.files.Files
	}
	build := func(content *certs.Content) *http.Transport {
		if content == nil {
			return newTransport(o.TLS, o.stall(), dial)
		}
		return newTransport(o.files.config(content), o.stall(), dial)
	}
	// Connections of the one before that are in use end when they have been idle for long enough.
	return &transport{o: o, plain: certs.Derive(files, build, (*http.Transport).CloseIdleConnections)}
}

// RoundTrip does one request.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.plain.Current().RoundTrip(req)
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
func (t *transport) CloseIdleConnections() { t.plain.Current().CloseIdleConnections() }
