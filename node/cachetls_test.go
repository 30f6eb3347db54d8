package node_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coppice/appliance"
	"coppice/ca"
	"coppice/certs"
	"coppice/image"
	"coppice/node"
)

// certificates makes an authority, as coppice ca does, and puts certificates of it where nodes and appliances have theirs.
func certificates(t *testing.T, dirs ...string) {
	t.Helper()
	authority := filepath.Join(t.TempDir(), "authority")
	own, err := ca.Init(authority, ca.Options{})
	check(t, err)
	pem, err := os.ReadFile(own.Cert)
	check(t, err)
	for _, dir := range dirs {
		check(t, os.MkdirAll(dir, 0o700))
		_, err := ca.Issue(authority, ca.Options{Name: "node", Hosts: []string{ownLoopback()}, Client: true, Dir: dir, Renew: true})
		check(t, err)
		check(t, os.WriteFile(filepath.Join(dir, "new"), pem, 0o600))
		check(t, os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "ca.crt")))
	}
}

// certificatePaths are those of the files in a directory that certificates has filled.
func certificatePaths(dir string) (authority, cert, key string) {
	return filepath.Join(dir, "ca.crt"), filepath.Join(dir, "node.crt"), filepath.Join(dir, "node.key")
}

// readUntil has the first device read chunk after chunk of its root past memory. None of these reads may fail, whoever is there.
func (r *imageRig) readUntil(what string, enough func(*node.DeviceCache) bool) {
	r.t.Helper()
	off := int64(0)
	wait(r.t, what, func() bool {
		_, err := r.client().DropCache(context.Background(), node.CacheDropRequest{})
		check(r.t, err)
		r.same(0, off)
		off = (off + 64<<10) % imageSize
		return enough(&r.cacheStats().Devices[0])
	})
}

// Two daemons share their caches over TLS. One is started again with certificates of another authority, and the other one takes its own new ones as it runs.
func TestPeersWithCertificates(t *testing.T) {
	a, b := newCacheRig(t), newCacheRig(t)
	peers := filepath.Join(a.dir, "peers")
	urls := []string{"https://" + freeAddress(t), "https://" + freeAddress(t)}
	check(t, os.WriteFile(peers, []byte(strings.Join(urls, "\n")+"\n"), 0o600))
	dirs := []string{filepath.Join(a.dir, "tls"), filepath.Join(b.dir, "tls")}
	certificates(t, dirs...)
	for i, r := range []*imageRig{a, b} {
		c := &r.cfg.Cache
		c.Peers, c.Self, c.Listen = peers, urls[i], strings.TrimPrefix(urls[i], "https://")
		c.CA, c.TLSCert, c.TLSKey = certificatePaths(dirs[i])
	}
	first := a.start()
	b.start()
	for _, r := range []*imageRig{a, b} {
		r.create(r.on("web1", a.refA))
		r.readAll(0, 128<<10)
	}
	given := func(n uint64) func(*node.DeviceCache) bool {
		return func(d *node.DeviceCache) bool { return d.Peers.Bytes > n }
	}
	b.readUntil("the first gives chunks to the second", given(0))
	wait(t, "the first counts them", func() bool { return a.cacheStats().Given.Bytes > 0 })

	before := b.cacheStats().Devices[0].Peers.Bytes
	check(t, first.Stop())
	certificates(t, dirs...)
	b.readAll(0, 128<<10)
	a.start()
	a.readUntil("the second gives chunks to the first, which has new certificates", given(0))
	b.readUntil("the first gives chunks to the second again", given(before))
}

// A daemon takes chunks from an appliance, goes on without it, and takes them again when it is back with certificates of another authority.
func TestApplianceWithCertificates(t *testing.T) {
	r := newCacheRig(t)
	dirs := []string{filepath.Join(r.dir, "tls"), filepath.Join(r.dir, "tls-appliance")}
	certificates(t, dirs...)
	address := freeAddress(t)
	serve := func() *appliance.Appliance {
		t.Helper()
		files, err := certs.Open(certificatePaths(dirs[1]))
		check(t, err)
		a, err := appliance.Start(context.Background(), appliance.Options{
			Listen: address, Roots: []image.Ref{mustRef(t, "oci:"+r.a.dir+":debian:1")}, MemoryBytes: 16 * mib, TLS: files, Log: slog.New(slog.DiscardHandler),
		})
		check(t, err)
		return a
	}
	c := &r.cfg.Cache
	c.Appliances = []string{"https://" + address}
	c.CA, c.TLSCert, c.TLSKey = certificatePaths(dirs[0])
	a := serve()
	defer func() { check(t, a.Close()) }()
	r.start()
	r.create(r.on("web1", r.refA))
	r.readAll(0, 128<<10)
	r.readUntil("the appliance gives chunks", func(d *node.DeviceCache) bool { return d.Appliance.Bytes > 0 })
	wait(t, "the appliance counts them", func() bool { s := a.Stats(); return s.Chunks.Bytes > 0 && s.Cache.Origin.Bytes > 0 })

	check(t, a.Close())
	gone := r.cacheStats().Devices[0]
	r.readUntil("the origin gives chunks", func(d *node.DeviceCache) bool { return d.Origin.Bytes > gone.Origin.Bytes })
	r.readAll(0, 128<<10)
	if s := r.cacheStats().Devices[0]; s.Errors != 0 || s.Appliance.Bytes != gone.Appliance.Bytes {
		t.Errorf("without the appliance %d reads failed, and it gave %d bytes", s.Errors, s.Appliance.Bytes-gone.Appliance.Bytes)
	}

	certificates(t, dirs...)
	a = serve()
	r.readUntil("the appliance gives chunks again", func(d *node.DeviceCache) bool { return d.Appliance.Bytes > gone.Appliance.Bytes })
}
