package peer

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coppice/ca"
	"coppice/certs"
)

// serveTLS starts a server that shows a certificate, and returns its URL.
func serveTLS(t *testing.T, files *certs.Files, h http.Handler) string {
	t.Helper()
	s, err := Listen("127.0.0.1:0", h, ServerOptions{TLS: files, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return "https://" + s.Addr().String()
}

// Nodes of one authority give each other chunks. Nobody else gets any, and nobody else is believed.
func TestOnlyNodesOfOneAuthority(t *testing.T) {
	ours, others := authority(t), authority(t)
	old := ca.Options{Hosts: []string{"127.0.0.1"}, Client: true, Now: time.Now().Add(-48 * time.Hour), Lifetime: 24 * time.Hour}
	pic := draw(40, 2, 4096)
	h := NewHandler(&shelf{picture: pic}, HandlerOptions{Log: quiet})
	server := ours("server", both())
	url := serveTLS(t, server, h)
	if p, err := take(dial(t, Options{TLS: ours("node", ca.Options{})}, url), pic.order[0]); err != nil || !bytes.Equal(p, pic.chunks[pic.order[0].Key]) {
		t.Fatal(err)
	}
	for name, c := range map[string]*Client{
		"a node of another authority":            dial(t, Options{TLS: others("node", ca.Options{})}, url),
		"a server that is no client":             dial(t, Options{TLS: ours("only", ca.Options{Hosts: []string{"127.0.0.1"}})}, url),
		"a node whose certificate has expired":   dial(t, Options{TLS: ours("old", old)}, url),
		"a server of another authority":          dial(t, Options{TLS: ours("n1", ca.Options{})}, serveTLS(t, others("server", both()), h)),
		"a server with another name":             dial(t, Options{TLS: ours("n2", ca.Options{})}, serveTLS(t, ours("x", ca.Options{Hosts: []string{"x.example"}}), h)),
		"a server that is a client":              dial(t, Options{TLS: ours("n3", ca.Options{})}, serveTLS(t, ours("y", ca.Options{}), h)),
		"a server whose certificate has expired": dial(t, Options{TLS: ours("n4", ca.Options{})}, serveTLS(t, ours("z", old), h)),
	} {
		_, err := take(c, pic.order[0])
		if p := only(t, c); err == nil || p.State != StateDown || !strings.Contains(p.Error, "certificate") && !strings.Contains(p.Error, "expired") {
			t.Errorf("%s: %v, %+v", name, err, p)
		}
	}
	if n := h.Stats().Requests; n != 1 {
		t.Errorf("the handler saw %d requests", n)
	}
}

func TestWithoutACertificate(t *testing.T) {
	ours := authority(t)
	server := ours("server", both())
	url := serveTLS(t, server, http.NotFoundHandler())
	content, _ := ours("node", ca.Options{}).Current()
	for name, config := range map[string]*tls.Config{
		"none":    {RootCAs: content.Authorities()},
		"TLS 1.2": {RootCAs: content.Authorities(), Certificates: []tls.Certificate{*content.Pair}, MaxVersion: tls.VersionTLS12},
	} {
		web := &http.Client{Transport: &http.Transport{TLSClientConfig: config}}
		if resp, err := web.Get(url); err == nil {
			resp.Body.Close()
			t.Errorf("%s: %s", name, resp.Status)
		}
	}
	if resp, err := http.Get("http" + strings.TrimPrefix(url, "https")); err == nil {
		defer resp.Body.Close()
		if data, _ := io.ReadAll(resp.Body); resp.StatusCode != 400 {
			t.Errorf("without TLS: %s, %q", resp.Status, data)
		}
	}
}

// Certificates are changed under a server and a client that go on.
func TestCertificatesAreRotated(t *testing.T) {
	dir := t.TempDir()
	give := func(from string) {
		t.Helper()
		for _, name := range []string{"ca.crt", "node.key", "node.crt"} {
			data, err := os.ReadFile(filepath.Join(from, name))
			err = errors.Join(err, os.WriteFile(filepath.Join(dir, name+".new"), data, 0o600))
			if err := errors.Join(err, os.Rename(filepath.Join(dir, name+".new"), filepath.Join(dir, name))); err != nil {
				t.Fatal(err)
			}
		}
	}
	made := func() string {
		t.Helper()
		dir := filepath.Join(t.TempDir(), "authority")
		_, err := ca.Init(dir, ca.Options{})
		_, issueErr := ca.Issue(dir, ca.Options{Name: "node", Hosts: []string{"127.0.0.1"}, Client: true})
		if err := errors.Join(err, issueErr); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	slog.SetDefault(quiet)
	give(made())
	files, err := certs.Open(filepath.Join(dir, "ca.crt"), filepath.Join(dir, "node.crt"), filepath.Join(dir, "node.key"))
	if err != nil {
		t.Fatal(err)
	}
	pic := draw(41, 1, 4096)
	h := NewHandler(&shelf{picture: pic}, HandlerOptions{Log: quiet})
	c := dial(t, Options{TLS: files}, serveTLS(t, files, h))
	for step := range 3 {
		if _, err := take(c, pic.order[0]); err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		give(made())
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := take(c, pic.order[0]); err != nil {
		t.Errorf("with a file that is of no use: %v", err)
	}
}

func TestServerNeedsItsCertificates(t *testing.T) {
	files, err := certs.Open("", "", "")
	if err != nil {
		t.Fatal(err)
	}
	if s, err := Listen("127.0.0.1:0", http.NotFoundHandler(), ServerOptions{TLS: files}); err == nil {
		s.Close()
		t.Error("serves without certificates")
	}
	if c, err := New(nil, Options{TLS: files}); err == nil {
		c.Close()
		t.Error("asks without certificates")
	}
}

// Requests one after the other go over one connection, and many at once over several: handshakes are paid once.
func TestConnectionsAreKept(t *testing.T) {
	ours := authority(t)
	pic := draw(42, 64, 64<<10)
	h := NewHandler(&shelf{picture: pic}, HandlerOptions{Log: quiet})
	seen := map[string]bool{}
	url := serveTLS(t, ours("server", both()), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen[r.RemoteAddr] = true // one at a time
		h.ServeHTTP(w, r)
	}))
	c := dial(t, Options{TLS: ours("node", ca.Options{})}, url)
	for i, chunk := range pic.order {
		if i%2 == 0 { // misses, too
			chunk.Key[0]++
		}
		if _, err := take(c, chunk); err != nil && !isMiss(err) {
			t.Fatal(err)
		}
		c.mu.Lock()
		clear(c.list[0].roots)
		c.mu.Unlock()
	}
	// net/http keeps none whose writer has not said within 50 ms that it is done (maxWriteWaitBeforeConnReuse), as happens on a busy machine.
	if len(seen) > 1+len(pic.order)/16 {
		t.Errorf("%d connections for %d requests", len(seen), len(pic.order))
	}
}

func BenchmarkGet(b *testing.B) {
	ours := authority(b)
	pic := draw(43, 1, 64<<10)
	s, err := Listen("127.0.0.1:0", NewHandler(&shelf{picture: pic}, HandlerOptions{Log: quiet}), ServerOptions{TLS: ours("server", both()), Log: quiet})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	c := dial(b, Options{TLS: ours("node", ca.Options{})}, "https://"+s.Addr().String())
	b.SetBytes(64 << 10)
	b.ReportAllocs()
	p := make([]byte, 64<<10)
	for b.Loop() {
		if err := c.Get(b.Context(), pic.order[0], p); err != nil {
			b.Fatal(err)
		}
	}
}
