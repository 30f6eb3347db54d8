// Package certs reads certificates from files, and reads them again when the files change, so that they can be rotated under whoever uses them.
package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// ErrTime is the cause where a certificate does not hold at this time.
var ErrTime = errors.New("the certificate does not hold now")

// Files are up to three files in PEM: certificates of authorities, a certificate, and its key. They are safe for concurrent use.
type Files struct {
	ca, cert, key string // paths, or ""

	mu     sync.Mutex // guards what follows
	stamps [3]stamp
	now    *Content // of the files that could be read last
	gen    int      // counts them
}

// Content is what the files said at one time. It is never changed.
type Content struct {
	CA   []byte           // certificates of authorities, in PEM, at least one; nil where there is no file of them
	Pair *tls.Certificate // with its Leaf; nil where there is no file of one
	cert string
}

// stamp tells a file from what it was before. It is zero where there is none.
type stamp struct {
	info os.FileInfo
	size int64
	time time.Time
}

func (s stamp) same(other stamp) bool {
	if s.info == nil || other.info == nil {
		return s.info == nil && other.info == nil
	}
	return os.SameFile(s.info, other.info) && s.size == other.size && s.time.Equal(other.time)
}

// Open reads the files: ca of authorities, cert and key of a certificate. Each path may be "".
func Open(ca, cert, key string) (*Files, error) {
	f := &Files{ca: ca, cert: cert, key: key}
	f.stamps = f.look()
	var err error
	f.now, err = f.read()
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (f *Files) look() (stamps [3]stamp) {
	for i, path := range []string{f.ca, f.cert, f.key} {
		if path == "" {
			continue
		}
		if info, err := os.Stat(path); err == nil {
			stamps[i] = stamp{info, info.Size(), info.ModTime()}
		}
	}
	return stamps
}

func (f *Files) read() (*Content, error) {
	c := &Content{cert: f.cert}
	if f.ca != "" {
		pem, err := os.ReadFile(f.ca)
		if err != nil {
			return nil, fmt.Errorf("read certificates of authorities: %w", err)
		}
		if !x509.NewCertPool().AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read certificates of authorities: %s has no certificate in PEM", f.ca)
		}
		c.CA = pem
	}
	if f.cert != "" || f.key != "" {
		pair, err := tls.LoadX509KeyPair(f.cert, f.key)
		if err != nil {
			return nil, fmt.Errorf("read certificate %s and its key %s: %w", f.cert, f.key, err)
		}
		c.Pair = &pair
	}
	return c, nil
}

// Current returns what the files say now, and a number that is another one when that has changed. Where they cannot be read, or do not belong together,
// it is what they said before.
func (f *Files) Current() (*Content, int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.look()
	if now[0].same(f.stamps[0]) && now[1].same(f.stamps[1]) && now[2].same(f.stamps[2]) {
		return f.now, f.gen
	}
	f.stamps = now // a file that cannot be used is not tried again before it changes
	content, err := f.read()
	if err != nil {
		slog.Warn("certificates have changed and cannot be used; those from before are", "error", err)
		return f.now, f.gen
	}
	slog.Info("certificates have changed, and are used from now on", "ca", f.ca, "certificate", f.cert)
	f.now = content
	f.gen++
	return f.now, f.gen
}

// Authorities returns those of the file alone, without the system's.
func (c *Content) Authorities() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(c.CA)
	return pool
}

// Fit returns the certificate, or why it is of no use at a time.
func (c *Content) Fit(now time.Time) (*tls.Certificate, error) {
	switch {
	case now.After(c.Pair.Leaf.NotAfter):
		return nil, fmt.Errorf("%s has expired on %s: %w", c.cert, c.Pair.Leaf.NotAfter.UTC().Format(time.RFC3339), ErrTime)
	case now.Before(c.Pair.Leaf.NotBefore):
		return nil, fmt.Errorf("%s holds from %s on: %w", c.cert, c.Pair.Leaf.NotBefore.UTC().Format(time.RFC3339), ErrTime)
	}
	return c.Pair, nil
}
