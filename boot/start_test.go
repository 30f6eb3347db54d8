package boot

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"coppice/image"
	"coppice/node"
	"coppice/union"
)

// screen is a console that is read while it is written.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func newStarter(t *testing.T, p Params) (*starter, *screen) {
	t.Helper()
	out := &screen{}
	return &starter{params: p, given: Given{Params: p}, console: &console{w: out}, root: t.TempDir()}, out
}

// example makes a directory with an image, in which each version has content of its own, and returns its OCI layout.
func example(t *testing.T, tags ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "images")
	layout, err := image.CreateLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, tag := range tags {
		in := bytes.NewReader(bytes.Repeat([]byte(tag+strings.Repeat(".", 15)), 1<<16))
		if _, err := image.Build(t.Context(), layout, "debian:"+tag, in, in.Size(), image.BuildOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := layout.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

func contentOf(t *testing.T, dir, name string) image.Digest {
	t.Helper()
	s, _ := newStarter(t, Params{Roots: []string{"oci:" + dir + ":" + name}})
	pin, err := s.waitRoot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return image.Digest(pin.Digest)
}

func wantProblem(t *testing.T, err error, code node.Code, texts ...string) {
	t.Helper()
	if err == nil || node.CodeOf(err) != code {
		t.Errorf("error %v has code %s, want %s", err, node.CodeOf(err), code)
		return
	}
	all := err.Error() + " " + node.HintOf(err)
	for _, text := range texts {
		if !strings.Contains(all, text) {
			t.Errorf("error %q lacks %q", all, text)
		}
	}
}

func disk(t *testing.T, begin string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, []byte(begin), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 32<<20); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFormatLeaf(t *testing.T) {
	path := disk(t, "")
	s, out := newStarter(t, Params{Leaf: Leaf{Device: path}})
	wantProblem(t, s.checkLeaf(path), node.CodeNotFormatted, "is no leaf store,", path+",format")
	if data, err := os.ReadFile(path); err != nil || !bytes.Equal(data, make([]byte, 32<<20)) {
		t.Fatalf("the disk was written to without consent (%v)", err)
	}
	s.params.Leaf.Format = true
	if err := errors.Join(s.checkLeaf(path), s.formatLeaf(path)); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "was empty: formatted") {
		t.Errorf("console: %s", out)
	}
	before, err := union.Identify(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.formatLeaf(path); err != nil {
		t.Fatal(err)
	}
	if after, err := union.Identify(path); err != nil || after != before {
		t.Errorf("store %s was formatted again: %s, %v", before, after, err)
	}
}

// A disk that holds anything is left as it is, with consent too.
func TestFormatLeafKeeps(t *testing.T) {
	for _, c := range []struct{ begin, what string }{
		{strings.Repeat("\x00", 0x438) + "\x53\xef", "ext4 file system"},
		{strings.Repeat("\x00", 510) + "\x55\xaa" + "EFI PART", "GPT partition table"},
		{"XFSB", "xfs file system"},
		{"LUKS\xba\xbe", "encrypted volume"},
		{"just some text", ""},
	} {
		path := disk(t, c.begin)
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		s, _ := newStarter(t, Params{Leaf: Leaf{Device: path, Format: true}})
		if c.what != "" {
			wantProblem(t, s.checkLeaf(path), node.CodeNotFormatted, c.what, "blkdiscard")
		}
		wantProblem(t, s.formatLeaf(path), node.CodeNotFormatted, "is not empty", "blkdiscard")
		if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, before) {
			t.Errorf("%s: the disk was changed (%v)", c.what, err)
		}
	}
}

// A store whose superblocks are damaged is not taken for an empty disk.
func TestFormatLeafKeepsDamagedStore(t *testing.T) {
	path := disk(t, "")
	s, _ := newStarter(t, Params{Leaf: Leaf{Device: path, Format: true}})
	if err := s.formatLeaf(path); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := 100; i < len(data); i++ {
		if data[i] != 0 {
			data[i] ^= 0xff
		}
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	_ = s.formatLeaf(path) // whether it is a store is the daemon's to say
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, data) {
		t.Errorf("the disk was changed (%v)", err)
	}
}

func TestWaitDisk(t *testing.T) {
	s, _ := newStarter(t, Params{})
	for name, size := range map[string]string{"vda": "2048", "loop0": "0"} {
		if err := writeFile(filepath.Join(s.root, "sys/class/block", name, "size"), []byte(size+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(s.root, "dev/disk/by-id"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../vda", filepath.Join(s.root, "dev/disk/by-id/virtio-data")); err != nil {
		t.Fatal(err)
	}
	_, err := s.waitDisk(t.Context(), "leaf disk", "LABEL=gone", 10*time.Millisecond)
	wantProblem(t, err, node.CodeBadLeaf, "leaf disk LABEL=gone has not appeared in 10ms", "/dev/vda of 1.0 MiB (/dev/disk/by-id/virtio-data)", ",wait=5m")
	if strings.Contains(err.Error(), "loop0") {
		t.Errorf("error %v names a disk without a medium", err)
	}
	_, err = s.waitDisk(t.Context(), "leaf disk", "/dev/null", time.Minute)
	wantProblem(t, err, node.CodeBadRequest, "/dev/null is no block device")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.waitDisk(ctx, "leaf disk", "/dev/gone", time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("called off: %v", err)
	}
}

// A store is found by its own UUID.
func TestStoreOf(t *testing.T) {
	s, _ := newStarter(t, Params{})
	for _, name := range []string{"vda", "vdb"} {
		if err := writeFile(filepath.Join(s.root, sysBlock, name, "size"), []byte("65536\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := writeFile(filepath.Join(s.root, "dev", name), make([]byte, 32<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(s.root, "dev/vdb")
	info, err := union.Format(path, union.FormatOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.storeOf("UUID=" + strings.ToUpper(info.UUID)); got != path {
		t.Errorf("found %q, want %q", got, path)
	}
	for _, device := range []string{"UUID=1234-ABCD", "UUID=" + strings.Repeat("0", 32), "LABEL=" + info.UUID, path} {
		if got := s.storeOf(device); got != "" {
			t.Errorf("%s: found %q", device, got)
		}
	}
}

// A server that does not answer yet is waited for, one that says that it has no such image is not.
func TestWaitRoot(t *testing.T) {
	dir := example(t, "1")
	var down atomic.Bool
	down.Store(true)
	tried := make(chan struct{}, 1)
	files := http.FileServer(http.Dir(dir))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !down.Load() {
			files.ServeHTTP(w, r)
			return
		}
		select {
		case tried <- struct{}{}:
		default:
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	defer server.Close()
	s, out := newStarter(t, Params{Roots: []string{server.URL + "/x:debian:1"}})
	server.Config.Handler = http.StripPrefix("/x", server.Config.Handler)
	go func() {
		<-tried
		down.Store(false)
	}()
	pin, err := s.waitRoot(t.Context())
	if err != nil || pin.Kind != union.PinImage || pin.SizeBytes != 1<<20 {
		t.Fatalf("%+v, %v; console: %s", pin, err, out)
	}
	for _, want := range []string{"no server of the root answers; trying again until one does", "503", "going on"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("console %q lacks %q", out, want)
		}
	}
	s.params.Roots = []string{server.URL + "/x:debian:7"}
	_, err = s.waitRoot(t.Context())
	wantProblem(t, err, node.CodeBadRoot, "debian:7", "not found", keyRoot)
}

// Where one replica says no, and another does not answer, the other may still say yes.
func TestWaitRootOfReplicas(t *testing.T) {
	dir := example(t, "1")
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	s, out := newStarter(t, Params{Roots: []string{gone.URL + "/x:debian:1", "oci:" + dir + ":debian:9"}})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for !strings.Contains(out.String(), "trying again") {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	if _, err := s.waitRoot(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v; console: %s", err, out)
	}
	s.params.Roots[1] = "oci:" + dir + ":debian:1"
	if _, err := s.waitRoot(t.Context()); err != nil {
		t.Error(err)
	}
}

// daemon answers creations in place of one.
type daemon struct {
	mu      sync.Mutex
	asked   []node.CreateRequest
	answers func(n int, r node.CreateRequest) *node.Error
}

func (d *daemon) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(node.VersionHeader, "test")
	var req node.CreateRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	d.mu.Lock()
	d.asked = append(d.asked, req)
	refusal := d.answers(len(d.asked), req)
	d.mu.Unlock()
	if refusal != nil {
		w.WriteHeader(http.StatusUnprocessableEntity)
		_ = json.NewEncoder(w).Encode(map[string]any{"error": refusal})
		return
	}
	_ = json.NewEncoder(w).Encode(node.Device{Name: req.Name, Path: "/dev/ublkb0"})
}

func (d *daemon) serve(t *testing.T, s *starter) {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("unix", node.SocketPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: d}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	s.client = node.NewClient(dir, "test")
}

// layered is a store with a layer for an image.
func layered(t *testing.T, layer string, content image.Digest, size int64) string {
	t.Helper()
	path := disk(t, "")
	if _, err := union.Format(path, union.FormatOptions{}); err != nil {
		t.Fatal(err)
	}
	st, err := union.OpenStore(path, union.StoreOptions{NoLease: true})
	if err != nil {
		t.Fatal(err)
	}
	pin := union.Pin{Kind: union.PinImage, SizeBytes: size, Digest: union.Digest(content)}
	l, err := st.OpenLayer(layer, union.LayerOptions{Create: true, SizeBytes: size, Pin: pin})
	if err != nil {
		t.Fatal(err)
	}
	l.Release()
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func otherRoot(wanted string) func(int, node.CreateRequest) *node.Error {
	return func(_ int, r node.CreateRequest) *node.Error {
		if r.Layer == wanted {
			return &node.Error{Code: node.CodeOtherRoot, Message: "made for another root"}
		}
		return nil
	}
}

func TestPolicies(t *testing.T) {
	dir := example(t, "1", "2")
	first := contentOf(t, dir, "debian:1")
	path := layered(t, "web", first, 1<<20)
	s, out := newStarter(t, Params{Name: "web", Roots: []string{"oci:" + dir + ":debian:2"}, Leaf: Leaf{Device: path, Layer: "web", Policy: PolicyRefuse}})
	pin, err := s.waitRoot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{answers: otherRoot("web")}
	d.serve(t, s)
	_, err = s.create(t.Context(), path, pin)
	wantProblem(t, err, node.CodeOtherRoot, "another root", "policy=fresh", "policy=keep")

	s.params.Leaf.Policy = PolicyFresh
	if _, err = s.create(t.Context(), path, pin); err != nil {
		t.Fatal(err)
	}
	if got := d.asked[len(d.asked)-1]; got.Layer != freshLayer("web", pin) || !strings.HasPrefix(got.Layer, "web-") || got.ID != 0 {
		t.Errorf("fresh: %+v", got)
	}

	s.params.Leaf.Policy = PolicyKeep
	d.answers = func(_ int, r node.CreateRequest) *node.Error {
		if r.Roots[0] != "oci:"+dir+":debian:1" {
			return &node.Error{Code: node.CodeOtherRoot, Message: "made for another root"}
		}
		return nil
	}
	if _, err = s.create(t.Context(), path, pin); err != nil {
		t.Fatal(err)
	}
	if got := d.asked[len(d.asked)-1]; got.Layer != "web" {
		t.Errorf("keep: %+v", got)
	}
	if text := "staying with that, oci:" + dir + ":debian:1"; !strings.Contains(out.String(), text) {
		t.Errorf("console %q lacks %q", out, text)
	}

	s.params.Roots = []string{"oci:" + example(t, "3") + ":debian:3"}
	_, err = s.create(t.Context(), path, pin)
	wantProblem(t, err, node.CodeOtherRoot, "is not to be found", "policy=fresh")
}

// A layer keeps the size that it was made with.
func TestSizeOfLayer(t *testing.T) {
	dir := example(t, "1")
	path := layered(t, "web", contentOf(t, dir, "debian:1"), 1<<20)
	s, out := newStarter(t, Params{Name: "web", Roots: []string{"oci:" + dir + ":debian:1"}, SizeBytes: 4 << 20, Leaf: Leaf{Device: path, Layer: "web"}})
	d := &daemon{answers: func(int, node.CreateRequest) *node.Error { return nil }}
	d.serve(t, s)
	for layer, want := range map[string]int64{"web": 0, "new": 4 << 20} {
		s.params.Leaf.Layer = layer
		if _, err := s.create(t.Context(), path, union.Pin{}); err != nil {
			t.Fatal(err)
		}
		if got := d.asked[len(d.asked)-1].SizeBytes; got != want {
			t.Errorf("layer %s: asked for %d bytes, want %d", layer, got, want)
		}
	}
	if !strings.Contains(out.String(), "layer web stays at 1048576 bytes") {
		t.Errorf("console: %s", out)
	}
}

// Servers that go while the device is made are waited for; what they cannot mend is not.
func TestCreateAgain(t *testing.T) {
	dir := example(t, "1")
	var up atomic.Bool
	up.Store(true)
	files := http.FileServer(http.Dir(dir))
	server := httptest.NewServer(http.StripPrefix("/x", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if up.Swap(true) {
			files.ServeHTTP(w, r)
			return
		}
		w.WriteHeader(http.StatusBadGateway)
	})))
	defer server.Close()
	s, out := newStarter(t, Params{Name: "web", Roots: []string{server.URL + "/x:debian:1"}, Leaf: Leaf{Device: "/dev/vda", Layer: "web"}})
	d := &daemon{answers: func(n int, _ node.CreateRequest) *node.Error {
		if n == 1 {
			up.Store(false)
			return &node.Error{Code: node.CodeBadRoot, Message: "connection refused"}
		}
		return nil
	}}
	d.serve(t, s)
	if _, err := s.create(t.Context(), "/dev/vda", union.Pin{}); err != nil || len(d.asked) != 2 {
		t.Errorf("%d tries, %v; console: %s", len(d.asked), err, out)
	}
	d.answers = func(int, node.CreateRequest) *node.Error {
		return &node.Error{Code: node.CodeUntrusted, Message: "not signed", Hint: "have it signed"}
	}
	_, err := s.create(t.Context(), "/dev/vda", union.Pin{})
	wantProblem(t, err, node.CodeUntrusted, "not signed", "have it signed")
}

func TestPrepare(t *testing.T) {
	s, _ := newStarter(t, Params{})
	s.given.values = map[string]string{keyConfig: "log_level = \"debug\"\n"}
	if err := s.prepare(); err != nil || s.config.LogLevel != "debug" {
		t.Errorf("%+v, %v", s.config, err)
	}
	wantFile(t, filepath.Join(s.root, node.DefaultConfigPath), "log_level = \"debug\"\n", 0o600)
	s.given.values[keyConfig] = "log_levl = 1"
	wantProblem(t, s.prepare(), node.CodeBadRequest, "log_levl", "initramfs")
}
