package node_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"aead.dev/minisign"

	"coppice/image"
	"coppice/image/imagetest"
	"coppice/node"
)

// signer makes images in a directory, and signs them.
type signer struct {
	t      *testing.T
	layout *image.Layout
	key    minisign.PrivateKey
	public string // path
}

func newSigner(t *testing.T, dir string) *signer {
	t.Helper()
	l, err := image.CreateLayout(filepath.Join(dir, "images"))
	check(t, err)
	t.Cleanup(func() { l.Close() })
	key, public := imagetest.Key(t)
	return &signer{t, l, key, public}
}

// build makes an image and returns its reference.
func (s *signer) build(name string) string {
	s.t.Helper()
	content := bytes.Repeat([]byte(name), 1<<20)
	_, err := image.Build(context.Background(), s.layout, name, bytes.NewReader(content), 1<<20, image.BuildOptions{})
	check(s.t, err)
	return s.layout.String() + ":" + name
}

func (s *signer) sign(name string, statement image.Statement) {
	s.t.Helper()
	im, err := image.Open(context.Background(), s.layout, name)
	check(s.t, err)
	_, err = image.Sign(context.Background(), im, s.layout, s.key, statement)
	check(s.t, err)
	check(s.t, im.Close())
}

// A machine that requires signatures makes new layers on nothing else, and never on an older version than it has taken; layers that it
// has stay, whatever becomes of the signature.
func TestOnlySignedRootsAreTaken(t *testing.T) {
	r := newRig(t)
	s := newSigner(t, r.dir)
	r.cfg.Images = node.ImageConfig{RequireSignature: true, TrustedKeys: []string{s.public}, SerialsPath: filepath.Join(r.dir, "state", "serials.json")}
	v1, v2, v3 := s.build("debian:1"), s.build("debian:2"), s.build("debian:3")
	d := r.start()
	on := func(name, root string) node.CreateRequest { q := r.request(name); q.Root = root; return q }
	refused := func(root, say string) {
		t.Helper()
		_, err := r.client().Create(context.Background(), on("bad", root))
		r.refused(err, node.CodeUntrusted, say)
		if r.hasRecord("bad") {
			t.Errorf("something is left of a device on %s", root)
		}
	}
	refused(r.root, "a raw disk, which cannot be signed")
	refused(v1, "not signed")
	s.sign("debian:1", image.Statement{Name: "ubuntu", Serial: 1})
	refused(v1, `as "ubuntu", not "debian": signed under another name`)
	s.sign("debian:1", image.Statement{Name: "debian", Serial: 1, Expires: time.Now().Add(-time.Hour)})
	refused(v1, "signature has expired")

	s.sign("debian:1", image.Statement{Name: "debian", Serial: 1})
	s.sign("debian:2", image.Statement{Name: "debian", Serial: 2})
	s.sign("debian:3", image.Statement{Name: "debian", Serial: 2})
	one := r.create(on("one", v1))
	if got := r.read(one.ID, 0, 8); got != "debian:1" {
		t.Errorf("read %q", got)
	}
	r.create(on("two", v2))
	refused(v1, "serial 1, and this machine has taken 2 before")
	refused(v3, "serial 2, under which this machine has taken other content before")

	// What is there stays: after a restart, and when it is made again, though it could not be made anew.
	s.sign("debian:1", image.Statement{Name: "debian", Serial: 1, Expires: time.Now().Add(-time.Hour)})
	check(t, d.Stop())
	if layers := r.layers(); !slices.Equal(layers, []string{"one", "two"}) {
		t.Errorf("layers %v", layers)
	}
	r.start()
	if got := r.read(one.ID, 0, 8); got != "debian:1" {
		t.Errorf("read %q", got)
	}
	_, err := r.client().Delete(context.Background(), "one")
	check(t, err)
	r.create(on("one", v1))
	refused(v1, "signature has expired")

	// A damaged memory of serials is not taken for an empty one.
	check(t, os.WriteFile(r.cfg.Images.SerialsPath, []byte("{"), 0o600))
	_, err = r.client().Create(context.Background(), on("bad", v2))
	r.refused(err, node.CodeBadLeaf, "read serials of images")
	check(t, os.Remove(s.public))
	refused(v2, "read trusted key")
}

// Where none is required, what is signed is still held to its serials.
func TestSignaturesThatAreNotRequired(t *testing.T) {
	r := newRig(t)
	s := newSigner(t, r.dir)
	r.cfg.Images = node.ImageConfig{TrustedKeys: []string{s.public}, SerialsPath: filepath.Join(r.dir, "serials.json")}
	r.start()
	for i, name := range []string{"debian:1", "debian:2", "unsigned:1", "expired:1"} {
		ref := s.build(name)
		switch i {
		case 0, 1:
			s.sign(name, image.Statement{Name: "debian", Serial: uint64(i)})
		case 3:
			s.sign(name, image.Statement{Name: "expired", Expires: time.Unix(1, 0)})
		}
		q := r.request(strings.ReplaceAll(name, ":", "-"))
		q.Root = ref
		r.create(q)
	}
	r.create(r.request("raw"))
	r.seen("its signature does not count", "expired")
	q := r.request("again")
	q.Root = s.layout.String() + ":debian:1"
	_, err := r.client().Create(context.Background(), q)
	r.refused(err, node.CodeUntrusted, "serial 0, and this machine has taken 1 before")
}

func TestImageConfigIsChecked(t *testing.T) {
	for say, c := range map[string]node.ImageConfig{
		"refuses everything":                {RequireSignature: true},
		`"ann.pub" is not an absolute path`: {TrustedKeys: []string{"ann.pub"}},
		"belong together":                   {TLSCert: "/a"},
		`"here" is not an absolute path`:    {SerialsPath: "here"},
	} {
		if err := (node.Config{Images: c}).Validate(); err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("%s: %v", say, err)
		}
	}
}
