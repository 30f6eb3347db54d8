package node_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"coppice/image"
	"coppice/node"
)

// place is a directory with images, on a web server that can be taken down, or be silent.
type place struct {
	t      *testing.T
	layout *image.Layout
	dir    string
	url    string
	up     atomic.Bool
	served atomic.Int64 // requests
	slow   atomic.Int64 // nanoseconds that each takes
	silent atomic.Bool  // it answers none
	asked  atomic.Int64 // requests that it has not answered for that
}

func newPlace(t *testing.T, dir string) *place {
	t.Helper()
	l, err := image.CreateLayout(dir)
	check(t, err)
	p := &place{t: t, layout: l, dir: dir}
	p.up.Store(true)
	files, end := http.FileServer(http.Dir(dir)), make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p.silent.Load() {
			p.asked.Add(1)
			select {
			case <-r.Context().Done():
			case <-end:
			}
			return
		}
		time.Sleep(time.Duration(p.slow.Load()))
		if !p.up.Load() {
			http.Error(w, "down", http.StatusBadGateway)
			return
		}
		p.served.Add(1)
		files.ServeHTTP(w, r)
	}))
	p.url = s.URL
	t.Cleanup(func() { close(end); s.Close(); l.Close() })
	return p
}

const imageSize = 4 * mib

func imageContent(seed uint64) []byte {
	content := make([]byte, imageSize)
	rng := rand.New(rand.NewPCG(seed, 1))
	for i := range content {
		content[i] = byte(rng.Uint32())
	}
	copy(content, "image")
	return content
}

// build makes an image, and returns its references in the directory and on the server.
func (p *place) build(name string, content []byte) (local, web string) {
	p.t.Helper()
	_, err := image.Build(context.Background(), p.layout, name, bytes.NewReader(content), int64(len(content)), image.BuildOptions{ChunkSize: 64 << 10})
	check(p.t, err)
	return p.layout.String() + ":" + name, p.url + "/:" + name
}

// imageRig is a rig with an image in two places.
type imageRig struct {
	*rig
	a, b       *place
	refA, refB string
	content    []byte
}

func newImageRig(t *testing.T) *imageRig {
	t.Helper()
	r := &imageRig{rig: newRig(t), content: imageContent(1)}
	r.cfg.Images = node.ImageConfig{Patience: "1m", LocalPath: filepath.Join(r.dir, "local")}
	r.a, r.b = newPlace(t, filepath.Join(r.dir, "a")), newPlace(t, filepath.Join(r.dir, "b"))
	_, r.refA = r.a.build("debian:1", r.content)
	_, r.refB = r.b.build("debian:1", r.content)
	return r
}

func (r *imageRig) on(name string, roots ...string) node.CreateRequest {
	q := r.request(name)
	q.Root, q.Roots = "", roots
	return q
}

// same reads from the device what the image has.
func (r *imageRig) same(id int, off int64) {
	r.t.Helper()
	if got, want := r.read(id, off, 4096), string(r.content[off:off+4096]); got != want {
		r.t.Errorf("device %d has other content at %d", id, off)
	}
}

func refsOf(all []image.ReplicaStatus) (refs []string) {
	for _, s := range all {
		refs = append(refs, s.Ref)
	}
	return refs
}

// isRead tells whether a replica can be read; on a busy machine one may be found slow.
func isRead(s image.ReplicaStatus) bool {
	return s.State == image.StateReady || s.State == image.StateSlow
}

// wait polls until ok.
func wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for began := time.Now(); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > 2*time.Minute {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func TestDeviceReadsWhicheverReplicaAnswers(t *testing.T) {
	r := newImageRig(t)
	d := r.start()
	v := r.create(r.on("web1", r.refA, r.refB))
	if v.Root.Path != r.refA || !slices.Equal(v.Root.Refs, []string{r.refA, r.refB}) || !v.Root.Verified || len(v.Root.Replicas) != 2 {
		t.Errorf("created %+v", v.Root)
	}
	r.same(0, 0)
	r.a.up.Store(false)
	r.same(0, 1*mib)
	r.a.up.Store(true)
	r.b.up.Store(false)
	r.same(0, 2*mib)

	// So it does after a restart, whichever is down then, and whatever the tag means by then.
	for _, down := range []*place{r.a, r.b} {
		check(t, d.Stop())
		r.a.up.Store(true)
		r.b.up.Store(true)
		down.up.Store(false)
		d = r.start()
		r.same(0, 3*mib)
		s := state(t, r.rig, "web1")
		if s.State != node.StateLive || !slices.Equal(refsOf(s.Root.Replicas), []string{r.refA, r.refB}) {
			t.Errorf("%s, %+v", s.State, s.Root)
		}
	}
	check(t, d.Stop())
	r.b.up.Store(true)
	_, _ = r.a.build("debian:1", imageContent(2))
	_, _ = r.b.build("debian:1", imageContent(2))
	d = r.start()
	r.same(0, 3*mib)
	if s := state(t, r.rig, "web1"); s.State != node.StateLive || s.Root.Replicas[0].State == image.StateRefused {
		t.Errorf("a tag that moved: %s, %+v", s.State, s.Root.Replicas)
	}
	// Where the tag moved and its former manifest is gone, the other one serves.
	check(t, d.Stop())
	check(t, r.a.layout.Remove(context.Background(), "debian:1"))
	_, _ = r.a.build("debian:1", imageContent(3))
	r.start()
	r.same(0, 3*mib)
	wait(t, "the moved replica is refused", func() bool {
		s := state(t, r.rig, "web1").Root.Replicas
		return s[0].State == image.StateRefused && isRead(s[1])
	})
	if !strings.Contains(r.log.String(), "other content") {
		t.Error("the log does not tell of it")
	}
}

func TestReplicaThatIsDownAtCreationJoins(t *testing.T) {
	r := newImageRig(t)
	r.start()
	r.a.up.Store(false)
	v := r.create(r.on("web1", r.refA, r.refB))
	if s := v.Root.Replicas; s[0].State != image.StateDown || s[0].Error == "" || !isRead(s[1]) {
		t.Errorf("%+v", s)
	}
	r.same(0, 0)
	r.a.up.Store(true)
	wait(t, "it joins", func() bool { return isRead(state(t, r.rig, "web1").Root.Replicas[0]) })

	// A second device brings one that is down, while the root is open.
	_, web := r.b.build("same:1", r.content)
	r.b.up.Store(false)
	r.create(r.on("web2", r.refA, web))
	for _, name := range []string{"web1", "web2"} {
		if got := refsOf(state(t, r.rig, name).Root.Replicas); !slices.Equal(got, []string{r.refA, r.refB, web}) {
			t.Errorf("%s has %v", name, got)
		}
	}
	r.b.up.Store(true)
	wait(t, "it joins", func() bool { return isRead(state(t, r.rig, "web1").Root.Replicas[2]) })
}

func TestRootsThatAreRefused(t *testing.T) {
	r := newImageRig(t)
	r.start()
	_, other := r.b.build("other:1", imageContent(9))
	down := newPlace(t, filepath.Join(r.dir, "down"))
	down.up.Store(false)
	many := make([]string, node.MaxReplicas+1)
	for i := range many {
		many[i] = r.refA + strings.Repeat("x", i)
	}
	for _, c := range []struct {
		roots []string
		code  node.Code
		say   string
	}{
		{[]string{r.refA, r.refA}, node.CodeBadRequest, "is given twice"},
		{[]string{r.refA, r.root}, node.CodeBadRequest, "is a raw disk, which can have no replicas"},
		{[]string{r.root, r.root + "2"}, node.CodeBadRequest, "is a raw disk, which can have no replicas"},
		{[]string{r.refA, "oci:relative:a:1"}, node.CodeBadRequest, "is not an absolute path"},
		{[]string{r.refA, "http://x/y"}, node.CodeBadRequest, "write http://HOST/DIR:NAME:TAG"},
		{[]string{r.refA, ""}, node.CodeBadRequest, "reference is empty"},
		{[]string{r.refA, other}, node.CodeOtherRoot, "other content"},
		{many, node.CodeBadRequest, "33 roots are more than 32"},
		{[]string{down.url + "/:a:1", down.url + "/:a:2"}, node.CodeBadRoot, "none of 2 replicas can be used"},
		{[]string{r.refA + "9", r.refB + "9"}, node.CodeBadRoot, "not found"},
	} {
		_, err := r.client().Create(context.Background(), r.on("bad", c.roots...))
		r.refused(err, c.code, c.say)
		r.nothingLeft("bad")
	}
	q := r.on("bad", r.refA)
	q.Root = r.refB
	_, err := r.client().Create(context.Background(), q)
	r.refused(err, node.CodeBadRequest, "is not the first of the roots")
	q = r.request("bad")
	q.Hydrate = true
	_, err = r.client().Create(context.Background(), q)
	r.refused(err, node.CodeBadRequest, "only an image is copied")
	if l := r.layers(); len(l) != 0 {
		t.Errorf("layers are left: %v", l)
	}
}

func TestReplicasAreAddedAndRemoved(t *testing.T) {
	r := newImageRig(t)
	d := r.start()
	r.create(r.on("web1", r.refA))
	r.create(r.on("web2", r.refA))
	c, ctx := r.client(), context.Background()
	add := func(name, ref string) (node.RootReport, error) {
		return c.AddRoot(ctx, name, node.RootRequest{Ref: ref})
	}
	remove := func(name, ref string) (node.RootReport, error) {
		return c.RemoveRoot(ctx, name, node.RootRequest{Ref: ref})
	}
	rep, err := add("web1", r.refB)
	check(t, err)
	if rep.Ref != r.refB || !slices.Equal(rep.Devices, []string{"web1", "web2"}) || len(rep.Root.Replicas) != 2 {
		t.Errorf("%+v", rep)
	}
	r.a.up.Store(false)
	r.same(1, 1*mib)

	_, other := r.b.build("other:1", imageContent(9))
	for _, c := range []struct {
		do   func(name, ref string) (node.RootReport, error)
		name string
		ref  string
		code node.Code
		say  string
	}{
		{add, "web1", r.refB, node.CodeNameTaken, "exists"},
		{add, "web1", other, node.CodeOtherRoot, "other content"},
		{add, "web1", r.root, node.CodeBadRequest, "is a raw disk, which can be no replica"},
		{add, "web1", "oci:a:b:1", node.CodeBadRequest, "is not an absolute path"},
		{add, "web1", "", node.CodeBadRequest, "reference is empty"},
		{add, "web1", "http://127.0.0.1:1/x:a:1", node.CodeBadRoot, "connection refused"},
		{add, "web1", r.refB + "9", node.CodeBadRoot, "not found"},
		{add, "web9", r.refB, node.CodeNotFound, "no such device"},
		{remove, "web1", other, node.CodeNotFound, "no such replica"},
		{remove, "web9", r.refB, node.CodeNotFound, "no such device"},
	} {
		_, err := c.do(c.name, c.ref)
		r.refused(err, c.code, c.say)
	}
	_, err = remove("web2", r.refA)
	check(t, err)
	_, err = remove("web2", r.refB)
	r.refused(err, node.CodeInUse, "last replica")
	r.same(0, 2*mib)

	// It stays so after a restart.
	check(t, d.Stop())
	d = r.start()
	for _, name := range []string{"web1", "web2"} {
		if s := state(t, r.rig, name); s.State != node.StateLive || s.Root.Path != r.refB || !slices.Equal(refsOf(s.Root.Replicas), []string{r.refB}) {
			t.Errorf("%s is %s on %+v", name, s.State, s.Root)
		}
	}
	r.same(0, 3*mib)

	r.create(r.request("raw"))
	_, err = add("raw", r.refB)
	r.refused(err, node.CodeBadRequest, "the root of device raw is a raw disk")
	check(t, c2(c.Detach(ctx, node.DetachRequest{Device: "web2"}, func(node.DetachStatus) {})))
	_, err = c.Delete(ctx, "web2")
	check(t, err)
	q := r.on("web2")
	r.create(q)
	_, err = add("web2", r.refB)
	r.refused(err, node.CodeBadRequest, "is complete: it has no root")
	check(t, d.Stop())
}

func c2(_ any, err error) error { return err }

// While all replicas are gone, reads wait as long as the patience lasts, then fail, and heal when one is back.
func TestReadsWaitForReplicas(t *testing.T) {
	r := newImageRig(t)
	r.cfg.Images.Patience = "8s"
	r.start()
	r.create(r.on("web1", r.refA, r.refB))
	r.same(0, 0)
	r.a.up.Store(false)
	r.b.up.Store(false)
	time.AfterFunc(300*time.Millisecond, func() { r.b.up.Store(true) })
	r.same(0, 1*mib) // waited
	r.b.up.Store(false)
	began := time.Now()
	_, err := r.kernel.Disk(0).ReadAt(make([]byte, 4096), 2*mib)
	if took := time.Since(began); err == nil || took < 7500*time.Millisecond || took > 2*time.Minute {
		t.Errorf("%v after %v", err, took)
	}
	r.write(0, "mine", 2*mib) // the leaf needs nobody
	if got := r.read(0, 2*mib, 4); got != "mine" {
		t.Errorf("read %q", got)
	}
	r.a.up.Store(true)
	wait(t, "reads work again", func() bool {
		_, err := r.kernel.Disk(0).ReadAt(make([]byte, 4096), 3*mib)
		return err == nil
	})
	r.same(0, 3*mib)
}

// A replica that gives wrong bytes is told of; no byte of them reaches the device, though nobody else answers.
func TestLyingReplica(t *testing.T) {
	r := newImageRig(t)
	r.cfg.Images.Patience = "30s"
	blobs, err := filepath.Glob(filepath.Join(r.b.dir, "blobs/sha256/*"))
	check(t, err)
	for _, path := range blobs {
		data, err := os.ReadFile(path)
		check(t, err)
		if len(data) > mib { // the packs
			for i := range data {
				data[i] ^= 0x40
			}
			check(t, os.WriteFile(path, data, 0o600))
		}
	}
	r.start()
	r.create(r.on("web1", r.refA, r.refB))
	r.a.up.Store(false)
	time.AfterFunc(500*time.Millisecond, func() { r.a.up.Store(true) })
	for off := int64(0); off < imageSize; off += mib / 2 {
		r.same(0, off)
	}
	s := state(t, r.rig, "web1").Root.Replicas
	if s[1].State != image.StateLiar || !strings.Contains(s[1].Error, "is corrupt") || s[0].State == image.StateLiar {
		t.Errorf("%+v", s)
	}
}

func TestRootIsReplicated(t *testing.T) {
	r := newImageRig(t)
	r.start()
	r.create(r.on("web1", r.refA))
	c, ctx := r.client(), context.Background()
	dest := "oci:" + filepath.Join(r.dir, "copy") + ":debian:1"
	replicate := func(dest string) (*node.ReplicateReport, error) {
		return c.ReplicateRoot(ctx, "web1", node.ReplicateRequest{Dest: dest}, func(string, int64, int64) {})
	}
	rep, err := replicate(dest)
	check(t, err)
	if rep.CopiedBytes < imageSize || rep.Ref != dest || !slices.Equal(refsOf(rep.Root.Replicas), []string{r.refA, dest}) {
		t.Errorf("%+v", rep)
	}
	r.a.up.Store(false)
	r.same(0, 2*mib)
	check(t, os.WriteFile(filepath.Join(r.dir, "taken"), nil, 0o600))
	for dest, say := range map[string]string{
		dest:   "is a replica of it already",
		r.refB: "a web server cannot be written to",
		r.root: "is a raw disk",
		"oci:" + r.dir + "/x:a@" + (image.Digest{}).String(): "is copied to a tag",
		"oci:" + r.dir + "/taken:a:1":                        "not a directory",
	} {
		if _, err := replicate(dest); err == nil || !strings.Contains(err.Error(), say) || strings.Contains(err.Error(), "\n") {
			t.Errorf("replicate to %s: %v", dest, err)
		}
	}
	if got := refsOf(state(t, r.rig, "web1").Root.Replicas); len(got) != 2 {
		t.Errorf("replicas %v", got)
	}
}

// The whole image is copied to this machine, behind reads and over restarts, and then nobody else is needed.
func TestHydration(t *testing.T) {
	r := newImageRig(t)
	d := r.start()
	r.a.slow.Store(int64(2 * time.Millisecond))
	q := r.on("web1", r.refA)
	q.Hydrate = true
	r.create(q)
	r.same(0, 0)
	hydration := func() node.Hydration {
		t.Helper()
		h := state(t, r.rig, "web1").Root.Hydration
		if h == nil {
			t.Fatal("no hydration is reported")
		}
		return *h
	}
	complete := func() bool { return hydration().State == node.HydrationComplete }
	wait(t, "it is complete", complete)
	h := hydration()
	if h.DoneBytes != h.TotalBytes || h.TotalBytes < imageSize || !strings.HasPrefix(h.Ref, "oci:"+r.cfg.Images.LocalPath+":root:") {
		t.Errorf("%+v", h)
	}
	r.a.up.Store(false)
	for off := int64(0); off < imageSize; off += mib {
		r.same(0, off)
	}
	check(t, d.Stop())
	d = r.start()
	r.same(0, 3*mib+4096)
	wait(t, "it is complete after a restart", complete)

	if h := hydration(); h.DoneBytes != h.TotalBytes || h.TotalBytes < imageSize {
		t.Errorf("%+v", h)
	}

	// A copy that is lost is made anew.
	check(t, d.Stop())
	check(t, os.RemoveAll(r.cfg.Images.LocalPath))
	r.a.up.Store(true)
	d = r.start()
	wait(t, "it is complete again", complete)
	r.a.up.Store(false)
	r.same(0, 2*mib+8192)

	// Another device gains by it, and a deletion of all leaves the copy, which is found again.
	r.create(r.on("web2", h.Ref))
	for _, name := range []string{"web1", "web2"} {
		_, err := r.client().Delete(context.Background(), name)
		check(t, err)
	}
	r.create(r.on("web1", h.Ref))
	r.same(0, mib)

	// To remove the copy from the replicas ends the hydration for good.
	r.a.up.Store(true)
	_, err := r.client().AddRoot(context.Background(), "web1", node.RootRequest{Ref: r.refA})
	check(t, err)
	rep, err := r.client().HydrateRoot(context.Background(), "web1")
	check(t, err)
	if rep.Ref != h.Ref {
		t.Errorf("%+v", rep)
	}
	wait(t, "it is complete again", complete)
	_, err = r.client().RemoveRoot(context.Background(), "web1", node.RootRequest{Ref: h.Ref})
	check(t, err)
	check(t, d.Stop())
	r.start()
	if s := state(t, r.rig, "web1"); s.Root.Hydration != nil || !slices.Equal(refsOf(s.Root.Replicas), []string{r.refA}) {
		t.Errorf("%+v", s.Root)
	}
}

// A copy that cannot go on says why, is tried again, and ends with the device.
func TestHydrationThatWaits(t *testing.T) {
	r := newImageRig(t)
	check(t, os.WriteFile(r.cfg.Images.LocalPath, nil, 0o600))
	r.start()
	q := r.on("web1", r.refA)
	q.Hydrate = true
	r.create(q)
	wait(t, "it waits", func() bool {
		h := state(t, r.rig, "web1").Root.Hydration
		return h.State == node.HydrationWaiting && strings.Contains(h.Error, "not a directory")
	})
	check(t, os.Remove(r.cfg.Images.LocalPath))
	wait(t, "it goes on", func() bool { return state(t, r.rig, "web1").Root.Hydration.State == node.HydrationComplete })
	_, err := r.client().Delete(context.Background(), "web1")
	check(t, err)
}

// A device whose root could not be reached when the daemon started is taken up when it can be, with what is written to it waiting meanwhile.
func TestDeviceComesBackWithItsRoot(t *testing.T) {
	r := newImageRig(t)
	d := r.start()
	r.create(r.on("web1", r.refA, r.refB))
	r.write(0, "mine", 0)
	r.kernel.Hold(0, true)
	check(t, d.Stop())
	r.a.up.Store(false)
	r.b.up.Store(false)
	r.start()
	if s := state(t, r.rig, "web1"); s.State != node.StateFailed || !strings.Contains(s.Error, "none of 2 replicas") {
		t.Errorf("%s: %s", s.State, s.Error)
	}
	got := make(chan string, 1)
	go func() {
		p := make([]byte, 4096)
		if _, err := r.kernel.Disk(0).ReadAt(p, 0); err != nil {
			got <- err.Error()
		}
		got <- string(p[:4])
	}()
	r.b.up.Store(true)
	wait(t, "it is served", func() bool { return state(t, r.rig, "web1").State == node.StateLive })
	if s := <-got; s != "mine" {
		t.Errorf("what waited read %q", s)
	}
	r.same(0, mib)
	r.kernel.Hold(0, false)
}

// Records of daemons that knew only one root are taken up.
func TestRecordWithOneRoot(t *testing.T) {
	r := newImageRig(t)
	d := r.start()
	r.create(r.on("web1", r.refA))
	check(t, d.Stop())
	r.edit("web1", func(rec map[string]any) {
		delete(rec, "manifests")
		delete(rec["device"].(map[string]any), "roots")
	})
	r.start()
	r.same(0, mib)
	if s := state(t, r.rig, "web1"); s.State != node.StateLive || s.Root.Path != r.refA {
		t.Errorf("%s, %+v", s.State, s.Root)
	}
}
