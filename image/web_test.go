package image

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// served builds an image in a layout and serves the layout, after wrap had its way.
func served(t *testing.T, wrap func(http.Handler) http.Handler) (*httptest.Server, []byte) {
	t.Helper()
	l := testLayout(t)
	content := testContent(11, 1<<20)
	buildTest(t, l, "a:1", content, small())
	h := http.Handler(http.FileServer(http.Dir(l.dir)))
	if wrap != nil {
		h = wrap(h)
	}
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s, content
}

func openWeb(t *testing.T, url string, o SourceOptions) *Web {
	t.Helper()
	w, err := OpenWeb(url, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func TestWeb(t *testing.T) {
	s, content := served(t, nil)
	w := openWeb(t, s.URL+"/", SourceOptions{})
	if !bytes.Equal(readAll(t, openTest(t, w, "a:1")), content) {
		t.Error("other content")
	}
	if tags, err := w.Tags(context.Background()); err != nil || fmt.Sprint(tags) != "[a:1]" {
		t.Errorf("%v, %v", tags, err)
	}
	for name, want := range map[string]error{"a:2": ErrNotFound, Digest{5}.String(): ErrNotFound} {
		if _, err := Open(context.Background(), w, name); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, bad := range []string{"ftp://a/b", "http://", "http://user:pw@host/dir", "http://host/dir?x=1", "::"} {
		if _, err := OpenWeb(bad, SourceOptions{}); !errors.Is(err, ErrBadRef) || strings.Contains(err.Error(), "pw") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// Requests one after the other go over one connection.
func TestWebKeepsConnections(t *testing.T) {
	l := testLayout(t)
	buildTest(t, l, "a:1", testContent(11, 1<<20), small())
	var opened atomic.Int32
	s := httptest.NewUnstartedServer(http.FileServer(http.Dir(l.dir)))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	s.Start()
	defer s.Close()
	im := openTest(t, openWeb(t, s.URL, SourceOptions{}), "a:1")
	for off := int64(0); off < im.Size(); off += 4096 {
		if err := im.Read(context.Background(), make([]byte, 4096), off); err != nil {
			t.Fatal(err)
		}
	}
	if n := opened.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

// blobsOnly spoils answers about blobs of packs, which are asked for by range.
func blobsOnly(spoil http.HandlerFunc) func(http.Handler) http.Handler {
	return func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				spoil(w, r)
				return
			}
			h.ServeHTTP(w, r)
		})
	}
}

// promise announces the range that a request asks for, and returns how many bytes that is.
func promise(w http.ResponseWriter, r *http.Request) int {
	var from, to int
	_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to)
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/*", from, to))
	return to - from + 1
}

func TestBadServersAreRefused(t *testing.T) {
	noise := bytes.Repeat([]byte("x"), 1<<20)
	answer := func(status int, set string, data []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if name, value, ok := strings.Cut(set, ": "); ok {
				w.Header().Set(name, value)
			}
			w.WriteHeader(status)
			_, _ = w.Write(data)
		}
	}
	redirect := func(to string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, http.StatusTemporaryRedirect) }
	}
	for name, c := range map[string]struct {
		spoil http.HandlerFunc
		want  error
	}{
		"no ranges":            {answer(200, "", noise), ErrProtocol},
		"gone":                 {answer(404, "", nil), ErrNotFound},
		"forbidden":            {answer(403, "", nil), ErrRefused},
		"login":                {answer(401, "WWW-Authenticate: Basic", nil), ErrRefused},
		"broken":               {answer(500, "", []byte("secret stack trace")), ErrProtocol},
		"nothing":              {answer(204, "", nil), ErrProtocol},
		"shorter there":        {answer(416, "", nil), ErrProtocol},
		"no range":             {answer(206, "", noise), ErrProtocol},
		"another range":        {answer(206, "Content-Range: bytes 7-99/100", noise[:93]), ErrProtocol},
		"strange range":        {answer(206, "Content-Range: \x01\x02", nil), nil},
		"compressed":           {answer(206, "Content-Encoding: gzip", noise), ErrProtocol},
		"redirect to nowhere":  {answer(307, "", nil), ErrProtocol},
		"redirect to a file":   {redirect("file:///etc/passwd"), ErrRefused},
		"redirect for ever":    {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }, ErrRefused},
		"redirect to metadata": {redirect("http://169.254.169.254/latest"), ErrRefused},
		"redirect to anybody":  {redirect("http://0.0.0.0:1/"), ErrRefused},
		"redirect with a name": {redirect("http://me:pw@127.0.0.1:1/"), ErrRefused},
		"another's bytes": {func(w http.ResponseWriter, r *http.Request) {
			n := promise(w, r)
			w.WriteHeader(206)
			_, _ = w.Write(noise[:n])
		}, ErrCorrupt},
		"too many bytes": {func(w http.ResponseWriter, r *http.Request) {
			n := promise(w, r)
			w.Header().Set("Transfer-Encoding", "chunked")
			w.WriteHeader(206)
			_, _ = w.Write(noise[:n+1])
		}, ErrProtocol},
		"cut off": {func(w http.ResponseWriter, r *http.Request) {
			n := promise(w, r)
			w.Header().Set("Content-Length", fmt.Sprint(n))
			w.WriteHeader(206)
			_, _ = w.Write(noise[:(n-1)/2])
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := served(t, blobsOnly(c.spoil))
			im, err := Open(context.Background(), openWeb(t, s.URL, SourceOptions{}), "a:1")
			if err == nil {
				defer im.Close()
				limit(t, 8<<20, func() { err = im.Read(context.Background(), make([]byte, 4096), 0) })
			}
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Fatalf("%v", err)
			}
			if text := err.Error(); len(text) > 600 || strings.ContainsAny(text, "\n\x00\x01") || strings.Contains(text, "pw@") || strings.Contains(text, "secret") {
				t.Errorf("error %q", text)
			}
		})
	}
	for name, h := range map[string]http.HandlerFunc{
		"endless index": func(w http.ResponseWriter, _ *http.Request) {
			for range 20 {
				_, _ = w.Write(noise)
			}
		},
		"a million manifests": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"schemaVersion":2,"manifests":[` + strings.Repeat("{},", 5<<20) + "{}]}"))
		},
		"index elsewhere": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
		"no index":        func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
	} {
		s := httptest.NewServer(h)
		var err error
		limit(t, hostileMemory, func() { _, err = Open(context.Background(), openWeb(t, s.URL, SourceOptions{}), "a:1") })
		if !errors.Is(err, ErrProtocol) && !errors.Is(err, ErrRefused) && !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
		s.Close()
	}
}

// A server that falls silent, before its answer or in the middle, is given up.
func TestSilentServersAreGivenUp(t *testing.T) {
	for name, spoil := range map[string]http.HandlerFunc{
		"before": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"within": func(w http.ResponseWriter, r *http.Request) {
			promise(w, r)
			w.WriteHeader(206)
			_, _ = w.Write([]byte("x"))
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		},
	} {
		s, _ := served(t, blobsOnly(spoil))
		began := time.Now()
		im, err := Open(context.Background(), openWeb(t, s.URL, SourceOptions{Stall: 100 * time.Millisecond}), "a:1")
		if err == nil {
			im.Close()
		}
		if err == nil || time.Since(began) > 10*time.Second {
			t.Errorf("%s: %v after %s", name, err, time.Since(began))
		}
	}
}

// Redirects of blobs are followed, without what was meant for the first server.
func TestRedirectsAreFollowed(t *testing.T) {
	l := testLayout(t)
	content := testContent(11, 1<<20)
	buildTest(t, l, "a:1", content, small())
	var leaked atomic.Bool
	files := http.FileServer(http.Dir(l.dir))
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, name := range []string{"Authorization", "Cookie", "Referer"} {
			if r.Header.Get(name) != "" {
				leaked.Store(true)
			}
		}
		files.ServeHTTP(w, r)
	}))
	defer store.Close()
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/blobs/") {
			http.Redirect(w, r, store.URL+r.URL.Path, http.StatusTemporaryRedirect)
			return
		}
		files.ServeHTTP(w, r)
	}))
	defer front.Close()
	if !bytes.Equal(readAll(t, openTest(t, openWeb(t, front.URL, SourceOptions{}), "a:1")), content) {
		t.Error("other content")
	}
	if leaked.Load() {
		t.Error("headers for the first server went to the second")
	}
}

// Where a redirect may lead depends on where the server itself is.
func TestRedirectAddresses(t *testing.T) {
	c, _ := newClient(&Web{base: "http://test"}, SourceOptions{})
	for addr, want := range map[string][2]bool{ // from a public server, from a private one
		"192.0.2.1":       {true, true},
		"2001:db8::1":     {true, true},
		"10.1.2.3":        {false, true},
		"127.0.0.1":       {false, true},
		"::ffff:10.1.2.3": {false, true},
		"fd00::1":         {false, true},
		"100.64.1.1":      {false, true},
		"169.254.169.254": {false, false},
		"fe80::1":         {false, false},
		"224.0.0.1":       {false, false},
		"0.0.0.0":         {false, false},
		"::":              {false, false},
	} {
		for i, private := range []bool{false, true} {
			c.private.Store(private)
			err := c.checkAddress(context.Background(), "tcp", netip.AddrPortFrom(netip.MustParseAddr(addr), 443).String(), nil)
			if (err == nil) != want[i] {
				t.Errorf("%s, private %v: %v", addr, private, err)
			}
		}
	}
}

func TestTLS(t *testing.T) {
	l := testLayout(t)
	content := testContent(11, 100_000)
	buildTest(t, l, "a:1", content, small())
	s := httptest.NewTLSServer(http.FileServer(http.Dir(l.dir)))
	defer s.Close()
	if _, err := Open(context.Background(), openWeb(t, s.URL, SourceOptions{}), "a:1"); err == nil {
		t.Error("a certificate of nobody is taken")
	}
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	o := SourceOptions{TLS: &tls.Config{RootCAs: roots}}
	ca := filepath.Join(t.TempDir(), "ca.pem")
	writeFile(t, ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})))
	fromFile, err := NewSourceOptions(ca, "", "")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(readAll(t, openTest(t, openWeb(t, s.URL, fromFile), "a:1")), content) {
		t.Error("other content")
	}
	for _, bad := range [][3]string{{"nowhere"}, {l.path("index.json")}, {"", ca, ""}, {"", ca, ca}, {"", "", ca}} {
		if _, err := NewSourceOptions(bad[0], bad[1], bad[2]); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	if !bytes.Equal(readAll(t, openTest(t, openWeb(t, s.URL, o), "a:1")), content) {
		t.Error("other content")
	}
	old := httptest.NewUnstartedServer(http.FileServer(http.Dir(l.dir)))
	old.TLS = &tls.Config{MaxVersion: tls.VersionTLS12}
	old.StartTLS()
	defer old.Close()
	roots.AddCert(old.Certificate())
	if _, err := Open(context.Background(), openWeb(t, old.URL, o), "a:1"); err == nil {
		t.Error("TLS 1.2 is spoken")
	}
}
