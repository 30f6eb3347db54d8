package image

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"coppice/ca"
	"coppice/image/imagetest"
)

// tlsRig is a server with a layout that demands a certificate, and the files that its client reads its own from.
type tlsRig struct {
	t      *testing.T
	server *httptest.Server
	config atomic.Pointer[tls.Config]
	dir    string // with ca.crt, client.crt and client.key
}

func newTLSRig(t *testing.T, l *Layout) *tlsRig {
	r := &tlsRig{t: t, dir: t.TempDir()}
	r.server = httptest.NewUnstartedServer(http.FileServer(http.Dir(filepath.Dir(l.dir))))
	r.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	r.server.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return r.config.Load(), nil }}
	return r
}

// authority makes one, with a certificate of a server and one of a client.
func (r *tlsRig) authority(server, client ca.Options) string {
	r.t.Helper()
	dir := filepath.Join(r.t.TempDir(), "authority")
	_, err := ca.Init(dir, ca.Options{})
	if err != nil {
		r.t.Fatal(err)
	}
	server.Name, server.Hosts, client.Name = "server", []string{"127.0.0.1"}, "client"
	_, err = ca.Issue(dir, server)
	_, clientErr := ca.Issue(dir, client)
	if err := errors.Join(err, clientErr); err != nil {
		r.t.Fatal(err)
	}
	return dir
}

// serve lets the server use the certificates of an authority, and believe in clients of it.
func (r *tlsRig) serve(dir string) {
	r.t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key"))
	pem, pemErr := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err := errors.Join(err, pemErr); err != nil {
		r.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	r.config.Store(&tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13})
	r.server.CloseClientConnections()
}

// give puts files of an authority where the client has its own.
func (r *tlsRig) give(dir string, names ...string) {
	r.t.Helper()
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(r.dir, name+".new"), data, 0o600)
		}
		if err == nil {
			err = os.Rename(filepath.Join(r.dir, name+".new"), filepath.Join(r.dir, name))
		}
		if err != nil {
			r.t.Fatal(err)
		}
	}
}

// Authorities and certificates change under an image that is open, and what is wrong with one is said.
func TestCertificatesAreReadAgain(t *testing.T) {
	l := testLayout(t)
	content := testContent(31, 256<<10)
	buildTest(t, l, "debian:12", content, small())
	r := newTLSRig(t, l)
	a := r.authority(ca.Options{}, ca.Options{})
	r.serve(a)
	r.give(a, "ca.crt", "client.crt", "client.key")
	r.server.StartTLS()
	defer r.server.Close()

	o, err := NewSourceOptions(filepath.Join(r.dir, "ca.crt"), filepath.Join(r.dir, "client.crt"), filepath.Join(r.dir, "client.key"))
	if err != nil {
		t.Fatal(err)
	}
	ref, err := ParseRef(r.server.URL + "/images:debian:12")
	if err != nil {
		t.Fatal(err)
	}
	im, src, err := OpenRef(context.Background(), ref, o)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	defer im.Close()
	reads := func(step string) {
		t.Helper()
		got := make([]byte, len(content))
		err := im.Read(context.Background(), got, 0)
		for range 100 { // what was asked for before may still be failing
			if err == nil {
				break
			}
			time.Sleep(20 * time.Millisecond)
			err = im.Read(context.Background(), got, 0)
		}
		if err != nil || string(got) != string(content) {
			t.Fatalf("%s: %v, or other content", step, err)
		}
	}
	fails := func(step, want string) {
		t.Helper()
		r.server.CloseClientConnections()
		err := im.Read(context.Background(), make([]byte, len(content)), 0)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Fatalf("%s: %v, not %q", step, err, want)
		}
	}
	reads("at first")

	b := r.authority(ca.Options{}, ca.Options{})
	r.serve(b)
	fails("the server has another authority", "certificate signed by unknown authority")
	r.give(b, "ca.crt")
	fails("the client's is of another authority", "client.crt is of an authority that the server does not name")
	r.give(b, "client.key")
	fails("the key is not the certificate's", "of an authority that the server does not name") // those from before are used
	r.give(b, "client.crt")
	reads("after the rotation")

	old := ca.Options{Now: time.Now().Add(-48 * time.Hour), Lifetime: 24 * time.Hour}
	c := r.authority(ca.Options{}, old)
	r.serve(c)
	r.give(c, "ca.crt", "client.crt", "client.key")
	fails("the client's has expired", "client.crt has expired on ")
	d := r.authority(old, ca.Options{})
	r.serve(d)
	r.give(d, "ca.crt", "client.crt", "client.key")
	fails("the server's has expired", "certificate has expired")
	r.serve(b)
	r.give(b, "ca.crt", "client.crt", "client.key")
	reads("in the end")
	if err := os.Remove(filepath.Join(r.dir, "client.crt")); err != nil {
		t.Fatal(err)
	}
	r.server.CloseClientConnections()
	reads("with the file of the certificate gone")
}

func TestCertificatesThatCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	text := writeFile(t, filepath.Join(dir, "text"), "no certificate")
	for _, paths := range [][3]string{{text, "", ""}, {filepath.Join(dir, "nowhere"), "", ""}, {"", text, text}, {"", text, ""}} {
		if _, err := NewSourceOptions(paths[0], paths[1], paths[2]); err == nil {
			t.Errorf("%q is taken", paths)
		}
	}
}

// documentedServer is nginx's configuration in docs/cli.md, with files of a test.
func documentedServer(t *testing.T, certificates, images string) string {
	t.Helper()
	page, err := os.ReadFile("../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := strings.Cut(string(page), "```nginx\n")
	if !ok {
		t.Fatal("docs/cli.md has no configuration of nginx")
	}
	text, _, _ = strings.Cut(text, "```")
	text = strings.NewReplacer("/etc/nginx/images.", certificates+"/server.", "/etc/nginx/", certificates+"/", "/srv", images, "443", "ADDR").Replace(text)
	if !strings.Contains(text, "listen ADDR ssl") {
		t.Fatalf("not what was expected: %s", text)
	}
	return text
}

// The server of docs/cli.md serves those who have a certificate. What it answers to others is told with the reason.
func TestNginxDemandsACertificate(t *testing.T) {
	l := testLayout(t)
	content := testContent(32, 256<<10)
	buildTest(t, l, "debian:12", content, small())
	r := newTLSRig(t, l)
	a, b := r.authority(ca.Options{}, ca.Options{}), r.authority(ca.Options{}, ca.Options{})
	addr := imagetest.NginxServer(t, documentedServer(t, a, filepath.Dir(l.dir)))
	ref, err := ParseRef("https://" + addr + "/images:debian:12")
	if err != nil {
		t.Fatal(err)
	}
	open := func(cert string) error {
		o, err := NewSourceOptions(filepath.Join(a, "ca.crt"), filepath.Join(cert, "client.crt"), filepath.Join(cert, "client.key"))
		if err != nil {
			t.Fatal(err)
		}
		im, src, err := OpenRef(context.Background(), ref, o)
		if err != nil {
			return err
		}
		defer src.Close()
		defer im.Close()
		if string(readAll(t, im)) != string(content) {
			t.Error("other content")
		}
		return nil
	}
	if err := open(a); err != nil {
		t.Error(err)
	}
	if err := open(b); !errors.Is(err, ErrCertificate) || !errors.Is(err, ErrRefused) {
		t.Errorf("with a certificate of another authority: %v", err)
	}
}
