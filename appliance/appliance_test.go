package appliance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coppice/ca"
	"coppice/cache"
	"coppice/cache/peer"
	"coppice/certs"
	"coppice/image"
)

var quiet = slog.New(slog.DiscardHandler)

// layout makes a directory images with the image debian:1, whose content it returns.
func layout(t *testing.T) (dir string, content []byte) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "images")
	l, err := image.CreateLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	content = make([]byte, 2<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(content)
	if _, err := image.Build(t.Context(), l, "debian:1", bytes.NewReader(content), int64(len(content)), image.BuildOptions{}); err != nil {
		t.Fatal(err)
	}
	return dir, content
}

// nodes is an authority with the certificates of an appliance and of a node.
type nodes struct{ dir string }

func newNodes(t *testing.T) nodes {
	t.Helper()
	n := nodes{filepath.Join(t.TempDir(), "authority")}
	_, err := ca.Init(n.dir, ca.Options{})
	_, serverErr := ca.Issue(n.dir, ca.Options{Name: "appliance", Hosts: []string{"127.0.0.1"}, Client: true})
	_, nodeErr := ca.Issue(n.dir, ca.Options{Name: "node"})
	if err := errors.Join(err, serverErr, nodeErr); err != nil {
		t.Fatal(err)
	}
	return n
}

func (n nodes) path(name string) string { return filepath.Join(n.dir, name) }

func (n nodes) files(t *testing.T, name string) *certs.Files {
	t.Helper()
	f, err := certs.Open(n.path("ca.crt"), n.path(name+".crt"), n.path(name+".key"))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func (n nodes) source(t *testing.T) image.SourceOptions {
	t.Helper()
	o, err := image.NewSourceOptions(n.path("ca.crt"), n.path("node.crt"), n.path("node.key"))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func run(t *testing.T, o Options) *Appliance {
	t.Helper()
	o.Log, o.MemoryBytes = quiet, 64<<20
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	a, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func parse(t *testing.T, text string) image.Ref {
	t.Helper()
	ref, err := image.ParseRef(text)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// Two appliances are replicas of an image for a node. One of them is lost, and then comes back.
func TestAppliancesAreReplicas(t *testing.T) {
	dir, content := layout(t)
	n := newNodes(t)
	o := Options{Images: []string{dir}, TLS: n.files(t, "appliance")}
	a, b := run(t, o), run(t, o)
	defer b.Close()
	refs := []image.Ref{parse(t, "https://"+a.Addr().String()+"/images:debian:1"), parse(t, "https://"+b.Addr().String()+"/images:debian:1")}
	set, err := image.OpenSet(t.Context(), refs, image.Digest{}, image.SetOptions{Source: n.source(t), Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	read := func(off, size int) {
		t.Helper()
		p := make([]byte, size)
		if err := set.Read(t.Context(), p, int64(off)); err != nil || !bytes.Equal(p, content[off:off+size]) {
			t.Fatalf("%v, or other content", err)
		}
	}
	half := len(content) / 2
	read(0, half)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	read(half, half)
	o.Listen = a.Addr().String()
	defer run(t, o).Close()
	read(0, len(content))
}

// Nodes take chunks from an appliance, which reads its root once, and read the root themselves when it is lost.
func TestChunksOfRoots(t *testing.T) {
	dir, content := layout(t)
	n := newNodes(t)
	ref := parse(t, "oci:"+dir+":debian:1")
	a := run(t, Options{Roots: []image.Ref{ref}, TLS: n.files(t, "appliance")})
	url := "https://" + a.Addr().String()
	read := func() cache.Stats {
		t.Helper()
		set, err := image.OpenSet(t.Context(), []image.Ref{ref}, image.Digest{}, image.SetOptions{Log: quiet})
		if err != nil {
			t.Fatal(err)
		}
		defer set.Close()
		return n.read(t, url, set, content)
	}
	for i := range 2 {
		if s := read(); s.Origin.Bytes > 0 || s.Appliance.Hits < 32 { // and parts of the table
			t.Errorf("node %d: %+v, %+v", i, s.Appliance, s.Origin)
		}
	}
	if s := a.Stats(); s.Cache.Origin.Bytes != uint64(len(content)) || s.Chunks.Hits < 64 || len(s.Roots) != 1 || s.Roots[0].Error != "" {
		t.Errorf("%+v", s)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if s := read(); s.Origin.Bytes != uint64(len(content)) {
		t.Errorf("without the appliance: %+v, %+v", s.Appliance, s.Origin)
	}
}

// read reads a content as a node does that has an appliance.
func (n nodes) read(t *testing.T, url string, set *image.Set, content []byte) cache.Stats {
	t.Helper()
	client, err := peer.New([]string{url}, peer.Options{All: true, TLS: n.files(t, "node"), Log: quiet, Silence: time.Minute, Patience: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	c, err := cache.New(cache.Options{MemoryBytes: 64 << 20, Appliance: client, ApplianceTime: time.Minute, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	root := c.Open(set)
	defer root.Close()
	p := make([]byte, len(content))
	if err := root.Reader().Read(t.Context(), p, 0); err != nil || !bytes.Equal(p, content) {
		t.Fatalf("%v, or other content", err)
	}
	return c.Stats()
}

// An appliance gives chunks of the index of a root, too, and of the one that is attached later instead of it.
func TestChunksOfIndexes(t *testing.T) {
	dir, _ := layout(t)
	n := newNodes(t)
	ref := parse(t, "oci:"+dir+":debian:1")
	a := run(t, Options{Roots: []image.Ref{ref}, TLS: n.files(t, "appliance")})
	defer a.Close()
	l, err := image.OpenLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	set, err := image.OpenSet(t.Context(), []image.Ref{ref}, image.Digest{}, image.SetOptions{Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	for seed := range byte(2) {
		im, err := image.Open(t.Context(), l, "debian:1")
		if err != nil {
			t.Fatal(err)
		}
		content := make([]byte, 1<<20)
		_, _ = rand.NewChaCha8([32]byte{seed, 2}).Read(content)
		_, err = image.AttachIndex(t.Context(), im, l, image.IndexFile{Root: im.ContentRoot(), Content: bytes.NewReader(content), SizeBytes: int64(len(content))}, image.IndexOptions{})
		if err := errors.Join(err, im.Close()); err != nil {
			t.Fatal(err)
		}
		found, err := set.FindIndex(t.Context(), nil, func(*image.Index) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		index, err := image.OpenSet(t.Context(), found.Refs, found.Statement.Index, image.SetOptions{Log: quiet})
		if err != nil {
			t.Fatal(err)
		}
		s := n.read(t, "https://"+a.Addr().String(), index, content)
		if s.Origin.Bytes > 0 || s.Appliance.Hits < 16 {
			t.Errorf("index %d: %+v, %+v", seed, s.Appliance, s.Origin)
		}
		if err := index.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A root that cannot be opened at first is there later, and one with the same content is a replica of it.
func TestRootThatComesLater(t *testing.T) {
	dir, _ := layout(t)
	away := dir + ".away"
	if err := os.Rename(dir, away); err != nil {
		t.Fatal(err)
	}
	second, _ := layout(t)
	refs := []image.Ref{parse(t, "oci:"+dir+":debian:1"), parse(t, "oci:"+second+":debian:1")}
	a := run(t, Options{Roots: refs, retry: 5 * time.Millisecond})
	defer a.Close()
	if s := a.Stats(); len(s.Roots) != 2 {
		t.Errorf("%+v", s.Roots)
	}
	if err := os.Rename(away, dir); err != nil {
		t.Fatal(err)
	}
	for range 2000 {
		if s := a.Stats(); len(s.Roots) == 1 && len(s.Roots[0].Replicas) == 2 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Errorf("%+v", a.Stats().Roots)
}

func TestNobodyElseIsServed(t *testing.T) {
	dir, _ := layout(t)
	n := newNodes(t)
	a := run(t, Options{Images: []string{dir}, TLS: n.files(t, "appliance")})
	defer a.Close()
	other := newNodes(t)
	for name, o := range map[string]image.SourceOptions{"none": {}, "of another authority": other.source(t)} {
		im, src, err := image.OpenRef(t.Context(), parse(t, "https://"+a.Addr().String()+"/images:debian:1"), o)
		if err == nil {
			t.Errorf("a certificate, %s: served", name)
			_ = errors.Join(im.Close(), src.Close())
		}
	}
}

// Of a directory exactly the files of a layout are served, whole and by range, and nothing that a link leads to elsewhere.
func TestFiles(t *testing.T) {
	dir, _ := layout(t)
	a := run(t, Options{Images: []string{dir}})
	defer a.Close()
	index, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	blobs, err := filepath.Glob(filepath.Join(dir, "blobs/sha256/*"))
	if err != nil || len(blobs) == 0 {
		t.Fatalf("%q, %v", blobs, err)
	}
	zeros := strings.Repeat("0", 64)
	secret := filepath.Join(t.TempDir(), "secret")
	err = errors.Join(os.WriteFile(secret, []byte("secret"), 0o600), os.WriteFile(filepath.Join(dir, "other"), []byte("secret"), 0o600),
		os.Symlink(secret, filepath.Join(dir, "blobs/sha256", zeros[1:]+"1")), unix.Mkfifo(filepath.Join(dir, "blobs/sha256", zeros[1:]+"2"), 0o600),
		os.Mkdir(filepath.Join(dir, "blobs/sha256", zeros[1:]+"3"), 0o700))
	if err != nil {
		t.Fatal(err)
	}
	ask := func(method, path, bytes string) (int, string) {
		r := httptest.NewRequest(method, "/", nil)
		r.URL.Path = path
		if bytes != "" {
			r.Header.Set("Range", "bytes="+bytes)
		}
		w := httptest.NewRecorder()
		a.ServeHTTP(w, r)
		data, _ := io.ReadAll(w.Body)
		return w.Code, string(data)
	}
	blob := "/images/blobs/sha256/" + filepath.Base(blobs[0])
	for _, c := range []struct {
		method, path, bytes string
		status              int
	}{
		{"GET", "/images/index.json", "", 200}, {"GET", "/images/index.json", "1-3", 206}, {"HEAD", "/images/index.json", "", 200},
		{"GET", "/images/oci-layout", "", 200}, {"GET", blob, "0-9", 206}, {"GET", blob, "99999999999-", 416},
		{"POST", "/images/index.json", "", 405}, {"DELETE", blob, "", 405}, {"PUT", "/images/new", "", 405},
		{"GET", "/", "", 404}, {"GET", "/images", "", 404}, {"GET", "/images/", "", 404}, {"GET", "/images/blobs/sha256/", "", 404},
		{"GET", "/images/other", "", 404}, {"GET", "/images/.coppice/index.lock", "", 404}, {"GET", "/images/../images/index.json", "", 404},
		{"GET", "/images/blobs/sha256/../../other", "", 404}, {"GET", "//images/index.json", "", 404}, {"GET", "/images//index.json", "", 404},
		{"GET", "/etc/passwd", "", 404}, {"GET", "/images/blobs/sha256/" + zeros, "", 404}, {"GET", "/v1/other", "", 404},
		{"GET", "/images/blobs/sha256/" + zeros[1:] + "1", "", 500}, {"GET", "/images/blobs/sha256/" + zeros[1:] + "2", "", 500},
		{"GET", "/images/blobs/sha256/" + zeros[1:] + "3", "", 500}, {"GET", "/images/index.json\x00", "", 404},
	} {
		status, got := ask(c.method, c.path, c.bytes)
		if status != c.status || strings.Contains(got, "secret") {
			t.Errorf("%s %q %s: %d, not %d, %.40q", c.method, c.path, c.bytes, status, c.status, got)
		}
	}
	if _, got := ask("GET", "/images/index.json", ""); got != string(index) {
		t.Errorf("%q, not %q", got, index)
	}
	if _, got := ask("GET", "/images/index.json", "1-3"); got != string(index[1:4]) {
		t.Errorf("%q, not %q", got, index[1:4])
	}
	var s Stats
	if status, got := ask("GET", "/v1/stats", ""); status != 200 || json.Unmarshal([]byte(got), &s) != nil || s.Cache.Memory.ThresholdBytes != 64<<20 {
		t.Errorf("%d %s", status, got)
	}
}

func TestOptionsThatMakeNoSense(t *testing.T) {
	dir, _ := layout(t)
	other, _ := layout(t)
	named := filepath.Join(filepath.Dir(dir), "v1")
	if err := os.Rename(dir, named); err != nil {
		t.Fatal(err)
	}
	taken := run(t, Options{})
	defer taken.Close()
	for name, c := range map[string]struct {
		o    Options
		want error
	}{
		"no layout":      {Options{Images: []string{t.TempDir()}}, image.ErrNotFound},
		"nothing there":  {Options{Images: []string{dir}}, image.ErrNotFound},
		"the API's name": {Options{Images: []string{named}}, ErrBadOption},
		"the same name":  {Options{Images: []string{other, other}}, ErrBadOption},
		"a raw disk":     {Options{Roots: []image.Ref{parse(t, "./disk.img")}}, ErrBadOption},
		"address taken":  {Options{Listen: taken.Addr().String()}, unix.EADDRINUSE},
		"no memory":      {Options{MemoryBytes: 1}, nil},
	} {
		c.o.Log = quiet
		if c.o.MemoryBytes == 0 {
			c.o.MemoryBytes = 64 << 20
		}
		if c.o.Listen == "" {
			c.o.Listen = "127.0.0.1:0"
		}
		if a, err := Start(context.Background(), c.o); err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
			if err == nil {
				a.Close()
			}
		}
	}
}
