// Package ca makes the keys and certificates by which nodes and servers of images know each other: a small authority in a
// directory, and certificates that it issues. Keys are ECDSA on P-256, files are PEM. Those with keys are for their owner only. Nothing that exists
// is overwritten unless a certificate is renewed.
package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"time"
)

// Causes that callers tell apart.
var (
	ErrExists    = errors.New("exists already")
	ErrNoCA      = errors.New("no authority")
	ErrBadOption = errors.New("no certificate can be made of that")
	ErrExpired   = errors.New("the authority has expired")
)

const (
	// Name is that of the authority's own files, without ending.
	Name = "ca"

	certSuffix, keySuffix = ".crt", ".key"

	// clockSkew is how much earlier than now certificates hold: clocks differ.
	clockSkew = time.Hour

	// DefaultLifetime is that of certificates, DefaultCALifetime that of an authority.
	DefaultLifetime   = 90 * 24 * time.Hour
	DefaultCALifetime = 10 * 365 * 24 * time.Hour
)

// Pair describes a certificate and its key.
type Pair struct {
	Cert      string    `json:"cert"` // path
	Key       string    `json:"key"`  // path
	Name      string    `json:"name"` // common name
	Hosts     []string  `json:"hosts,omitempty"`
	Client    bool      `json:"client"` // may be shown to servers
	NotAfter  time.Time `json:"not_after"`
	Authority string    `json:"authority,omitempty"` // common name of who issued it
}

// Options say what to make.
type Options struct {
	Name     string
	Lifetime time.Duration // 0 means the default
	Now      time.Time     // zero means now
	// What follows is for Issue. Hosts are DNS names and IP addresses of a server; without, the certificate is a client's.
	Hosts  []string
	Client bool   // also with Hosts
	Dir    string // where the files go; "" means the authority's directory
	Renew  bool   // replace what is there
}

func (o Options) now() time.Time {
	if o.Now.IsZero() {
		return time.Now()
	}
	return o.Now
}

// Init makes an authority in a directory, which it makes where there is none.
func Init(dir string, o Options) (Pair, error) {
	pair, err := initCA(dir, o)
	if err != nil {
		return pair, fmt.Errorf("make authority in %s: %w", dir, err)
	}
	return pair, nil
}

func initCA(dir string, o Options) (Pair, error) {
	if o.Name == "" { // that tells it from those before and after it
		var id [4]byte
		_, _ = rand.Read(id[:]) // never fails
		o.Name = fmt.Sprintf("coppice CA %x", id)
	}
	if o.Lifetime == 0 {
		o.Lifetime = DefaultCALifetime
	}
	template, err := o.template()
	if err != nil {
		return Pair{}, err
	}
	template.IsCA, template.BasicConstraintsValid, template.MaxPathLenZero = true, true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Pair{}, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, err
	}
	return write(filepath.Join(dir, Name), template, template, key, key, false)
}

// template is what all certificates have in common.
func (o Options) template() (*x509.Certificate, error) {
	if o.Lifetime < 0 {
		return nil, fmt.Errorf("a lifetime of %s: %w", o.Lifetime, ErrBadOption)
	}
	if len(o.Name) > 64 {
		return nil, fmt.Errorf("name of %d bytes, at most 64 are taken: %w", len(o.Name), ErrBadOption)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	now := o.now().UTC().Truncate(time.Second)
	return &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)), Subject: pkix.Name{CommonName: o.Name, Organization: []string{"coppice"}},
		NotBefore: now.Add(-clockSkew), NotAfter: now.Add(o.Lifetime),
	}, nil
}

var (
	names = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
	hosts = regexp.MustCompile(`^(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*$`)
)

// Issue makes a certificate by the authority in a directory. Its files are called as o.Name, which is also its common name. It never
// holds for longer than the authority.
func Issue(dir string, o Options) (Pair, error) {
	pair, err := issue(dir, o)
	if err != nil {
		return pair, fmt.Errorf("issue certificate %s: %w", o.Name, err)
	}
	return pair, nil
}

func issue(dir string, o Options) (Pair, error) {
	if !names.MatchString(o.Name) || o.Name == Name {
		return Pair{}, fmt.Errorf("up to 63 letters, digits, '.', '_' and '-', and not %q: %w", Name, ErrBadOption)
	}
	if o.Lifetime == 0 {
		o.Lifetime = DefaultLifetime
	}
	authority, signer, err := load(dir)
	if err != nil {
		return Pair{}, err
	}
	if !o.now().Before(authority.NotAfter) {
		return Pair{}, fmt.Errorf("%s, on %s: %w", dir, authority.NotAfter.UTC().Format(time.RFC3339), ErrExpired)
	}
	template, err := o.template()
	if err != nil {
		return Pair{}, err
	}
	if template.NotAfter.After(authority.NotAfter) {
		template.NotAfter = authority.NotAfter
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	for _, host := range o.Hosts {
		if ip, err := netip.ParseAddr(host); err == nil && ip.Zone() == "" {
			template.IPAddresses = append(template.IPAddresses, net.IP(ip.AsSlice()))
		} else if len(host) <= 253 && hosts.MatchString(host) {
			template.DNSNames = append(template.DNSNames, host)
		} else {
			return Pair{}, fmt.Errorf("%.80q is neither a DNS name nor an IP address: %w", host, ErrBadOption)
		}
	}
	if len(o.Hosts) > 0 {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if len(o.Hosts) == 0 || o.Client {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, err
	}
	if o.Dir == "" {
		o.Dir = dir
	}
	return write(filepath.Join(o.Dir, o.Name), template, authority, key, signer, o.Renew)
}

// load reads an authority.
func load(dir string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	certPath, keyPath := filepath.Join(dir, Name+certSuffix), filepath.Join(dir, Name+keySuffix)
	fail := func(err error) (*x509.Certificate, *ecdsa.PrivateKey, error) {
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w in %s: %w", ErrNoCA, dir, err)
		}
		return nil, nil, err
	}
	st, err := os.Stat(keyPath)
	if err != nil {
		return fail(err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return fail(fmt.Errorf("%s can be read by others (%s): %w", keyPath, st.Mode().Perm(), fs.ErrPermission))
	}
	der, err := readPEM(certPath, "CERTIFICATE")
	if err != nil {
		return fail(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return fail(fmt.Errorf("%s: %w", certPath, err))
	}
	if der, err = readPEM(keyPath, "EC PRIVATE KEY"); err != nil {
		return fail(err)
	}
	key, err := x509.ParseECPrivateKey(der)
	if err != nil {
		return fail(fmt.Errorf("%s: %w", keyPath, err))
	}
	if public, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || !public.Equal(&key.PublicKey) {
		return fail(fmt.Errorf("%s is not the key of %s: %w", keyPath, certPath, ErrBadOption))
	}
	if !cert.IsCA {
		return fail(fmt.Errorf("%s is not of an authority: %w", certPath, ErrBadOption))
	}
	return cert, key, nil
}

func readPEM(path, kind string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != kind {
		return nil, fmt.Errorf("%s has no %s in PEM: %w", path, kind, ErrBadOption)
	}
	return block.Bytes, nil
}

// write signs a certificate and writes it and its key: the key first, so that a certificate is never there alone.
func write(path string, template, parent *x509.Certificate, key, signer *ecdsa.PrivateKey, replace bool) (Pair, error) {
	pair := Pair{
		Cert: path + certSuffix, Key: path + keySuffix, Name: template.Subject.CommonName, NotAfter: template.NotAfter,
		Client: len(template.ExtKeyUsage) > 0 && template.ExtKeyUsage[len(template.ExtKeyUsage)-1] == x509.ExtKeyUsageClientAuth,
	}
	if template != parent {
		pair.Authority = parent.Subject.CommonName
	}
	pair.Hosts = template.DNSNames
	for _, ip := range template.IPAddresses {
		pair.Hosts = append(pair.Hosts, ip.String())
	}
	for _, p := range []string{pair.Cert, pair.Key} {
		if _, err := os.Lstat(p); err == nil && !replace {
			return pair, fmt.Errorf("%s: %w", p, ErrExists)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		return pair, err
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return pair, err
	}
	if err := writeFile(pair.Key, "EC PRIVATE KEY", keyDER, 0o600, replace); err != nil {
		return pair, err
	}
	if err := writeFile(pair.Cert, "CERTIFICATE", der, 0o644, replace); err != nil {
		if !replace {
			err = errors.Join(err, os.Remove(pair.Key))
		}
		return pair, err
	}
	return pair, nil
}

// writeFile makes a file appear all at once.
func writeFile(path, kind string, der []byte, mode fs.FileMode, replace bool) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // after a rename there is nothing to remove
	err = errors.Join(f.Chmod(mode), pem.Encode(f, &pem.Block{Type: kind, Bytes: der}), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if replace {
		return os.Rename(f.Name(), path)
	}
	if err := os.Link(f.Name(), path); errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s: %w", path, ErrExists)
	} else if err != nil {
		return err
	}
	return nil
}
