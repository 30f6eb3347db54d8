package node_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coppice/node"
	"coppice/node/nodetest"
	"coppice/union"
)

const (
	mib       = 1 << 20
	rootSize  = 3*mib + 512
	storeSize = 64 * mib
)

// rig is a machine: a kernel, a root, a leaf store, and daemons one after another.
type rig struct {
	t      *testing.T
	kernel *nodetest.Kernel
	dir    string
	root   string
	store  string
	log    *logBuffer
	cfg    node.Config
}

func newRig(t *testing.T) *rig {
	t.Helper()
	// Not t.TempDir: the path of a Unix socket has at most 108 bytes (unix(7)).
	dir, err := os.MkdirTemp("", "node")
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &rig{
		t: t, kernel: nodetest.NewKernel(), dir: dir,
		root: filepath.Join(dir, "root.img"), store: filepath.Join(dir, "leaf"), log: &logBuffer{},
	}
	check(t, os.WriteFile(r.root, bytes.Repeat([]byte("root"), rootSize/4), 0o600))
	_, err = union.Format(r.store, union.FormatOptions{SizeBytes: storeSize})
	check(t, err)
	r.cfg = node.Config{
		RunDir: filepath.Join(dir, "run"), Version: "test",
		Cache: node.CacheConfig{TracesPath: filepath.Join(dir, "traces")},
		Log:   slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	return r
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// start runs a daemon until the test or stop ends it.
func (r *rig) start() *nodetest.Daemon {
	r.t.Helper()
	d, err := nodetest.Start(r.kernel, r.cfg)
	check(r.t, err)
	r.t.Cleanup(func() { check(r.t, d.Stop()) })
	return d
}

func (r *rig) client() *node.Client { return node.NewClient(r.cfg.RunDir, "test") }

// request asks for a device with nothing special.
func (r *rig) request(name string) node.CreateRequest {
	return node.CreateRequest{Name: name, Root: r.root, Store: r.store, ID: node.AutoID}
}

func (r *rig) create(req node.CreateRequest) node.Device {
	r.t.Helper()
	d, err := r.client().Create(context.Background(), req)
	check(r.t, err)
	return d
}

// write puts data on the device through the driver, and read gets it back.
func (r *rig) write(id int, data string, off int64) {
	r.t.Helper()
	p := make([]byte, 4096)
	copy(p, data)
	_, err := r.kernel.Disk(id).WriteAt(p, off)
	check(r.t, err)
}

func (r *rig) read(id int, off int64, n int) string {
	r.t.Helper()
	p := make([]byte, 4096)
	_, err := r.kernel.Disk(id).ReadAt(p, off)
	check(r.t, err)
	return string(p[:n])
}

func (r *rig) layers() []string {
	r.t.Helper()
	st, err := union.OpenStore(r.store, union.StoreOptions{ReadOnly: true})
	check(r.t, err)
	var names []string
	for _, l := range st.Info().Layers {
		names = append(names, l.Name)
	}
	check(r.t, st.Close())
	return names
}

func (r *rig) recordPath(name string) string {
	return filepath.Join(r.cfg.RunDir, "devices", name+".json")
}

func (r *rig) hasRecord(name string) bool {
	_, err := os.Stat(r.recordPath(name))
	return err == nil
}

// nothingLeft asserts that a failed creation left no trace.
func (r *rig) nothingLeft(name string) {
	r.t.Helper()
	if ids := r.kernel.IDs(); len(ids) != 0 {
		r.t.Errorf("kernel devices left: %v", ids)
	}
	if r.hasRecord(name) {
		r.t.Errorf("record of %s left", name)
	}
	if l, err := r.client().List(context.Background()); err != nil || len(l) != 0 {
		r.t.Errorf("list: %v, %v", l, err)
	}
}

func state(t *testing.T, r *rig, name string) node.Device {
	t.Helper()
	d, err := r.client().Inspect(context.Background(), name)
	check(t, err)
	return d
}

func TestCreateServesUnionOfRootAndLeaf(t *testing.T) {
	r := newRig(t)
	r.start()
	d := r.create(r.request("web1"))
	if d.ID != 0 || d.Path != "/dev/ublkb0" || d.State != node.StateLive || d.SizeBytes != rootSize {
		t.Fatalf("created %+v", d)
	}
	if d.CreateMS <= 0 || d.Root.Verified || d.Root.Content == "" || d.Root.Modified == nil {
		t.Errorf("report lacks figures: %+v", d)
	}
	if got := r.read(0, 4096, 8); got != "rootroot" {
		t.Errorf("read %q from the root", got)
	}
	r.write(0, "mine", 4096)
	if got := r.read(0, 4096, 4); got != "mine" {
		t.Errorf("read %q after the write", got)
	}
	s := state(t, r, "web1")
	if s.Stats == nil || s.Stats.Writes != 1 || s.Stats.RootReadBytes == 0 || s.Leaf.Info == nil {
		t.Errorf("inspect lacks statistics: %+v", s)
	}
	root, err := os.ReadFile(r.root)
	check(t, err)
	if !bytes.Equal(root, bytes.Repeat([]byte("root"), rootSize/4)) {
		t.Error("the root changed")
	}
}

func TestDeleteKeepsLayerForTheNextDevice(t *testing.T) {
	r := newRig(t)
	r.start()
	r.create(r.request("web1"))
	r.write(0, "mine", 8192)
	was, err := r.client().Delete(context.Background(), "web1")
	check(t, err)
	if was.Leaf.Layer != "web1" {
		t.Errorf("deleted %+v", was)
	}
	r.nothingLeft("web1")
	if got := r.layers(); len(got) != 1 || got[0] != "web1" {
		t.Fatalf("layers: %v", got)
	}
	r.create(r.request("web1"))
	if got := r.read(0, 8192, 4); got != "mine" {
		t.Errorf("read %q after re-creation", got)
	}
}

func TestDeleteRefusesDeviceInUse(t *testing.T) {
	r := newRig(t)
	r.start()
	r.create(r.request("web1"))
	r.kernel.Hold(0, true)
	_, err := r.client().Delete(context.Background(), "web1")
	if node.CodeOf(err) != node.CodeInUse || node.HintOf(err) == "" {
		t.Fatalf("delete of a device in use: %v", err)
	}
	if got := state(t, r, "web1").State; got != node.StateLive {
		t.Fatalf("state %s after the refusal", got)
	}
	r.write(0, "goes on", 0)
	r.kernel.Hold(0, false)
	_, err = r.client().Delete(context.Background(), "web1")
	check(t, err)
}

func TestDevicesShareOneStore(t *testing.T) {
	r := newRig(t)
	r.start()
	link := filepath.Join(r.dir, "link")
	check(t, os.Symlink(r.store, link))
	req := r.request("b")
	req.Store = link
	r.create(r.request("a"))
	if d := r.create(req); d.ID != 1 {
		t.Fatalf("second device has number %d", d.ID)
	}
	r.write(0, "of a", 0)
	r.write(1, "of b", 0)
	if got := r.read(0, 0, 4); got != "of a" {
		t.Errorf("a reads %q", got)
	}
	_, err := r.client().Delete(context.Background(), "a")
	check(t, err)
	if got := r.read(1, 0, 4); got != "of b" {
		t.Errorf("b reads %q after a has gone", got)
	}
	if d := r.create(r.request("c")); d.ID != 0 {
		t.Errorf("the lowest free number is 0, got %d", d.ID)
	}
}

func TestGeometryAndNumber(t *testing.T) {
	r := newRig(t)
	r.start()
	req := r.request("big")
	req.ID, req.BlockSize, req.Queues, req.Depth, req.ReadOnly = 7, 4096, 2, 16, true
	req.SizeBytes, req.Layer = 8*mib, "other"
	d := r.create(req)
	if d.Path != "/dev/ublkb7" || d.SizeBytes != 8*mib || d.Leaf.Layer != "other" {
		t.Errorf("created %+v", d)
	}
	p := r.kernel.Params(7)
	if p.BlockSize != 4096 || p.Queues != 2 || p.Depth != 16 || !p.ReadOnly || !p.Recoverable {
		t.Errorf("driver was asked for %+v", p)
	}
	if got := r.read(7, 4*mib, 1); got != "\x00" {
		t.Errorf("read %q beyond the root", got)
	}
	req = r.request("rounded")
	req.BlockSize = 4096
	if d := r.create(req); d.SizeBytes != rootSize-512+4096 {
		t.Errorf("a root of %d bytes makes a device of %d in blocks of 4096", rootSize, d.SizeBytes)
	}
}

func TestIdleDeviceComesBackAfterRestart(t *testing.T) {
	r := newRig(t)
	d := r.start()
	r.create(r.request("first"))
	req := r.request("web1")
	req.ID = 5
	r.create(req)
	r.write(5, "mine", 4096)
	check(t, d.Stop())
	if ids := r.kernel.IDs(); len(ids) != 0 {
		t.Fatalf("idle devices left in the kernel: %v", ids)
	}
	if !r.hasRecord("web1") {
		t.Fatal("record gone")
	}
	r.start()
	s := state(t, r, "web1")
	if s.ID != 5 || s.State != node.StateLive || s.Restored == nil {
		t.Fatalf("restored as %+v", s)
	}
	if got := r.read(5, 4096, 4); got != "mine" {
		t.Errorf("read %q after the restart", got)
	}
}

func TestDeviceInUseIsLeftQuiescedAndTakenUpAgain(t *testing.T) {
	r := newRig(t)
	d := r.start()
	r.create(r.request("web1"))
	r.write(0, "unflushed", 4096)
	r.kernel.Hold(0, true)
	check(t, d.Stop())
	if !r.log.contains("LEFT QUIESCED") {
		t.Errorf("no warning in the log:\n%s", r.log)
	}
	if ids := r.kernel.IDs(); len(ids) != 1 {
		t.Fatalf("kernel devices: %v", ids)
	}
	r.start()
	if got := state(t, r, "web1").State; got != node.StateLive {
		t.Fatalf("state %s", got)
	}
	if got := r.read(0, 4096, 9); got != "unflushed" {
		t.Errorf("read %q from the recovered device", got)
	}
}

func TestDeviceThatCannotBeLeftKeepsTheDaemon(t *testing.T) {
	r := newRig(t)
	d := r.start()
	r.create(r.request("web1"))
	r.kernel.Hold(0, true)
	r.kernel.FailDetach(0, errors.New("no recovery here"))
	d.Signal()
	d.Signal() // a second one changes nothing
	r.log.wait(t, "CAN NEITHER BE STOPPED NOR LEFT")
	select {
	case <-d.Ended():
		t.Fatal("the daemon ended with a device in use")
	default:
	}
	r.write(0, "served", 0)
	if _, err := r.client().Create(context.Background(), r.request("late")); node.CodeOf(err) != node.CodeStopping {
		t.Errorf("creation while stopping: %v", err)
	}
	r.kernel.Hold(0, false)
	select {
	case <-d.Ended():
	case <-time.After(2 * time.Minute):
		t.Fatal("the daemon did not end when the device was released")
	}
}

func TestRestartReportsWhatFailedAndKeepsIt(t *testing.T) {
	r := newRig(t)
	d := r.start()
	r.create(r.request("good"))
	other := filepath.Join(r.dir, "other.img")
	check(t, os.WriteFile(other, bytes.Repeat([]byte("othr"), rootSize/4), 0o600))
	req := r.request("bad")
	req.Root = other
	r.create(req)
	r.kernel.Hold(1, true)
	check(t, d.Stop())
	check(t, os.Rename(other, other+".away"))

	d = r.start()
	s := state(t, r, "bad")
	if s.State != node.StateFailed || !strings.Contains(s.Error, "other.img") || s.Hint == "" {
		t.Fatalf("failed device reported as %+v", s)
	}
	if state(t, r, "good").State != node.StateLive {
		t.Error("the other device is not served")
	}
	if !r.log.contains("device not restored") {
		t.Error("nothing in the log")
	}
	if _, err := r.client().Create(context.Background(), r.request("bad")); node.CodeOf(err) != node.CodeNameTaken {
		t.Errorf("the name is free: %v", err)
	}
	if d := r.create(r.request("third")); d.ID != 2 {
		t.Errorf("number %d given away", d.ID)
	}
	if _, err := r.client().Delete(context.Background(), "bad"); node.CodeOf(err) != node.CodeInUse {
		t.Errorf("delete of a failed device in use: %v", err)
	}
	check(t, d.Stop())
	check(t, os.Rename(other+".away", other))
	r.start()
	if s := state(t, r, "bad"); s.State != node.StateLive {
		t.Errorf("not restored when its root was back: %+v", s)
	}
}

func TestDeleteOfFailedDeviceForgetsIt(t *testing.T) {
	r := newRig(t)
	d := r.start()
	r.create(r.request("bad"))
	check(t, d.Stop())
	check(t, os.Remove(r.root))
	r.start()
	if s := state(t, r, "bad"); s.State != node.StateFailed {
		t.Fatalf("state %+v", s)
	}
	_, err := r.client().Delete(context.Background(), "bad")
	check(t, err)
	r.nothingLeft("bad")
}

// A device whose store another node has taken cannot be written back, and is deleted all the same.
func TestDeleteOfDeviceOfFailedStore(t *testing.T) {
	r := newRig(t)
	r.cfg.Lease, r.cfg.NodeID = "6s", "c0991ce0-0000-4000-8000-000000000002"
	r.start()
	r.create(r.request("web1"))
	const leaseBytes, leaseOff = 4096, 24 * 4096
	f, err := os.OpenFile(r.store, os.O_WRONLY, 0)
	check(t, err)
	_, err = f.WriteAt(make([]byte, leaseBytes), leaseOff)
	check(t, errors.Join(err, f.Close()))
	r.eventually("fenced", func() bool { return state(t, r, "web1").Leaf.Info.Failed })
	_, err = r.client().Delete(context.Background(), "web1")
	check(t, err)
	r.nothingLeft("web1")
	r.log.wait(t, "device of a failed store deleted")
}

// Creation takes the same time whatever the size of the root.
func TestCreationDoesNotDependOnRootSize(t *testing.T) {
	r := newRig(t)
	r.start()
	for _, size := range []int64{1 << 30, 1 << 40} {
		root := filepath.Join(r.dir, "sparse.img")
		check(t, os.WriteFile(root, nil, 0o600))
		check(t, os.Truncate(root, size))
		req := r.request("sparse")
		req.Root, req.Layer = root, ""
		req.Name = "sparse" + time.Duration(size).String()[:3]
		d := r.create(req)
		t.Logf("root of %d GiB: %.1f ms", size>>30, d.CreateMS)
		if d.CreateMS > 2000 {
			t.Errorf("creation over a root of %d bytes took %.0f ms", size, d.CreateMS)
		}
	}
}
