package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"sync"
	"time"

	"coppice/cache"
	"coppice/certs"
)

// web does requests, with the certificates of their time.
type web struct {
	transport *certs.Derived[*http.Transport]
}

// minSetup is the least that it may take until there is a connection, and until both sides know each other.
const minSetup = 5 * time.Second

// newWeb returns what uses files, nil without TLS. A connection may take as long as patience, or minSetup: who waits for it may give up before.
func newWeb(files *certs.Files, patience time.Duration) *web {
	setup := max(minSetup, patience)
	// Connections of the transport before that are in use end when they have been idle for long enough.
	return &web{certs.Derive(files, func(c *certs.Content) *http.Transport { return newTransport(c, setup) }, (*http.Transport).CloseIdleConnections)}
}

// newTransport follows no proxy, and speaks HTTP/1.1: chunks one after the other over several connections are faster than over one.
func newTransport(content *certs.Content, setup time.Duration) *http.Transport {
	t := &http.Transport{
		DialContext:            (&net.Dialer{Timeout: setup, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout:    setup,
		MaxIdleConnsPerHost:    lanes,
		IdleConnTimeout:        idleTime - headerTime, // before the server ends them
		DisableCompression:     true,
		MaxResponseHeaderBytes: 16 << 10,
		ReadBufferSize:         64 << 10,
		TLSNextProto:           map[string]func(string, *tls.Conn) http.RoundTripper{},
	}
	if content != nil {
		t.TLSClientConfig = &tls.Config{
			MinVersion: tls.VersionTLS13, RootCAs: content.Authorities(),
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return content.Fit(time.Now()) },
		}
	}
	return t
}

func (w *web) close() { w.transport.Current().CloseIdleConnections() }

// request is what a peer is asked for.
type request struct {
	url      string
	id, self string // of this node; "" where it has none
}

// get fills p with an answer. It ends when ctx does, when alive does, or when nothing has come for a time, with the cause of that.
func (w *web) get(ctx, alive context.Context, silence time.Duration, q request, p []byte) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(alive, func() { cancel(context.Cause(alive)) })()
	ear := listen(silence, func() { cancel(fmt.Errorf("nothing came for %s: %w", silence, ErrSilent)) })
	defer ear.stop()
	err := w.do(ctx, ear.hear, q, p)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// ear tells when nothing was heard for a time. Time for which this process did not run, because the machine was busy or asleep, is not held against the other
// side.
type ear struct {
	silent func()
	slice  time.Duration

	mu    sync.Mutex // guards what follows
	left  int        // slices
	last  time.Time  // that one ended
	timer *time.Timer
}

// parts is of how many slices a silence consists.
const parts = 5

func listen(silence time.Duration, silent func()) *ear {
	e := &ear{silent: silent, slice: silence / parts, left: parts, last: time.Now()}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.timer = time.AfterFunc(e.slice, e.tick)
	return e
}

func (e *ear) tick() {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	if now.Sub(e.last) < 2*e.slice {
		e.left--
	}
	if e.last = now; e.left <= 0 {
		e.silent()
		return
	}
	e.timer.Reset(e.slice)
}

func (e *ear) hear() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.left = parts
}

func (e *ear) stop() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.left = 0
	e.timer.Stop()
}

// do does a request. arrived is called when something came.
func (w *web) do(ctx context.Context, arrived func(), q request, p []byte) error {
	trace := &httptrace.ClientTrace{Got1xxResponse: func(int, textproto.MIMEHeader) error {
		arrived()
		return nil
	}}
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), http.MethodGet, q.url, nil)
	if err != nil {
		return err
	}
	if q.id != "" {
		req.Header.Set(idHeader, q.id)
	}
	if q.self != "" {
		req.Header.Set(urlHeader, q.self)
	}
	resp, err := w.transport.Current().RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	arrived()
	if err := checkAnswer(resp, len(p)); err != nil {
		return err // the connection is used again where there was nothing beside the status, as [Handler] answers
	}
	return readFull(resp.Body, p, arrived)
}

// checkAnswer says what an answer means that is not n bytes of a chunk.
func checkAnswer(resp *http.Response, n int) error {
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return cache.ErrMiss
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		return ErrBusy
	case http.StatusLoopDetected:
		return errSelf
	default:
		return fmt.Errorf("HTTP status %d: %w", resp.StatusCode, ErrProtocol)
	}
	if encoding := resp.Header.Get("Content-Encoding"); encoding != "" {
		return fmt.Errorf("the answer is encoded: %w", ErrProtocol)
	}
	if resp.ContentLength != int64(n) {
		return fmt.Errorf("the answer has %d bytes, not %d: %w", resp.ContentLength, n, ErrProtocol)
	}
	return nil
}

// readFull is [io.ReadFull], and tells of what arrives.
func readFull(r io.Reader, p []byte, arrived func()) error {
	for len(p) > 0 {
		n, err := r.Read(p)
		if n > 0 {
			arrived()
		}
		if p = p[n:]; err != nil && len(p) > 0 {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("the answer ended early: %w", err)
		}
	}
	return nil
}
