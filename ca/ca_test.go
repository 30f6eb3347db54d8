package ca_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"coppice/ca"
)

func authority(t *testing.T, o ca.Options) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "new", "authority")
	if _, err := ca.Init(dir, o); err != nil {
		t.Fatal(err)
	}
	return dir
}

func issue(t *testing.T, dir string, o ca.Options) (ca.Pair, tls.Certificate) {
	t.Helper()
	pair, err := ca.Issue(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.LoadX509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	return pair, cert
}

func pool(t *testing.T, dir string) *x509.CertPool {
	t.Helper()
	pem, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	p := x509.NewCertPool()
	p.AppendCertsFromPEM(pem)
	return p
}

// shake lets a client and a server with these certificates meet.
func shake(t *testing.T, server, client tls.Certificate, authorities *x509.CertPool, name string) error {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	ended := make(chan error, 1)
	go func() {
		s := tls.Server(a, &tls.Config{Certificates: []tls.Certificate{server}, ClientCAs: authorities, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13})
		err := s.Handshake()
		a.Close()
		ended <- err
	}()
	c := tls.Client(b, &tls.Config{Certificates: []tls.Certificate{client}, RootCAs: authorities, ServerName: name, MinVersion: tls.VersionTLS13})
	err := c.Handshake()
	if err == nil {
		_, _ = c.Read(make([]byte, 1)) // until the server has seen the certificate
	}
	b.Close()
	return errors.Join(err, <-ended)
}

func TestServerAndClient(t *testing.T) {
	dir := authority(t, ca.Options{})
	p, server := issue(t, dir, ca.Options{Name: "images", Hosts: []string{"images.example", "*.cdn.example", "10.0.0.7", "fd00::7"}})
	if p.Client || !slices.Equal(p.Hosts, []string{"images.example", "*.cdn.example", "10.0.0.7", "fd00::7"}) {
		t.Errorf("%+v", p)
	}
	q, client := issue(t, dir, ca.Options{Name: "node-1"})
	if !q.Client || len(q.Hosts) > 0 || time.Until(q.NotAfter) < 89*24*time.Hour || time.Until(q.NotAfter) > ca.DefaultLifetime {
		t.Errorf("%+v", q)
	}
	_, both := issue(t, dir, ca.Options{Name: "peer", Hosts: []string{"peer.example"}, Client: true})
	good := pool(t, dir)
	for _, name := range []string{"images.example", "a.cdn.example", "10.0.0.7", "fd00::7"} {
		if err := shake(t, server, client, good, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := shake(t, both, both, good, "peer.example"); err != nil {
		t.Error(err)
	}
	for name, err := range map[string]error{
		"another host":              shake(t, server, client, good, "other.example"),
		"a client as a server":      shake(t, client, client, good, "images.example"),
		"a server as a client":      shake(t, server, server, good, "images.example"),
		"another authority":         shake(t, server, client, pool(t, authority(t, ca.Options{})), "images.example"),
		"the authority as a client": shake(t, server, tls.Certificate{}, good, "images.example"),
	} {
		if err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func TestFilesAndLifetimes(t *testing.T) {
	dir := authority(t, ca.Options{Lifetime: 24 * time.Hour})
	p, _ := issue(t, dir, ca.Options{Name: "node-1"})
	if until := time.Until(p.NotAfter); until > 24*time.Hour {
		t.Errorf("holds for %s, longer than the authority", until)
	}
	for path, want := range map[string]os.FileMode{p.Cert: 0o644, p.Key: 0o600, filepath.Join(dir, "ca.crt"): 0o644, filepath.Join(dir, "ca.key"): 0o600} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", path, st.Mode(), err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
		t.Errorf("%q were left", left)
	}
	before, err := os.ReadFile(p.Cert)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Issue(dir, ca.Options{Name: "node-1"}); !errors.Is(err, ca.ErrExists) {
		t.Error(err)
	}
	if _, err := ca.Init(dir, ca.Options{}); !errors.Is(err, ca.ErrExists) {
		t.Error(err)
	}
	if after, err := os.ReadFile(p.Cert); err != nil || string(after) != string(before) {
		t.Error("overwritten")
	}
	if _, err := ca.Issue(dir, ca.Options{Name: "node-1", Renew: true}); err != nil {
		t.Error(err)
	}
	if after, err := os.ReadFile(p.Cert); err != nil || string(after) == string(before) {
		t.Error("not renewed")
	}
	elsewhere := t.TempDir()
	if q, _ := issue(t, dir, ca.Options{Name: "node-2", Dir: elsewhere}); filepath.Dir(q.Key) != elsewhere {
		t.Errorf("%+v", q)
	}
}

func TestRefused(t *testing.T) {
	dir := authority(t, ca.Options{})
	for name, o := range map[string]ca.Options{
		"no name":           {},
		"name with a slash": {Name: "../node"},
		"the authority's":   {Name: "ca"},
		"bad host":          {Name: "a", Hosts: []string{"a b"}},
		"empty host":        {Name: "a", Hosts: []string{""}},
		"address with zone": {Name: "a", Hosts: []string{"fe80::1%eth0"}},
		"negative lifetime": {Name: "a", Lifetime: -time.Hour},
	} {
		if _, err := ca.Issue(dir, o); !errors.Is(err, ca.ErrBadOption) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ca.Issue(t.TempDir(), ca.Options{Name: "a"}); !errors.Is(err, ca.ErrNoCA) {
		t.Error(err)
	}
	old := authority(t, ca.Options{Lifetime: time.Hour, Now: time.Now().Add(-2 * time.Hour)})
	if _, err := ca.Issue(old, ca.Options{Name: "a"}); !errors.Is(err, ca.ErrExpired) {
		t.Error(err)
	}
	key := filepath.Join(dir, "ca.key")
	if err := os.Chmod(key, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Issue(dir, ca.Options{Name: "a"}); !errors.Is(err, os.ErrPermission) {
		t.Error(err)
	}
	other, err := os.ReadFile(filepath.Join(authority(t, ca.Options{}), "ca.key"))
	if err == nil {
		err = errors.Join(os.Chmod(key, 0o600), os.WriteFile(key, other, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{string(other), "", "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n"} {
		if err := os.WriteFile(key, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ca.Issue(dir, ca.Options{Name: "a"}); err == nil {
			t.Errorf("key %.20q is taken", text)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "a.*")); len(left) > 0 {
		t.Errorf("%q were left", left)
	}
}
