package node_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"coppice/node"
	"coppice/union"
)

// fullRoot gives the rig a root without holes.
func (r *rig) fullRoot() []byte {
	r.t.Helper()
	p := make([]byte, rootSize)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	check(r.t, os.WriteFile(r.root, p, 0o600))
	return p
}

func (r *rig) detach(q node.DetachRequest) node.DetachStatus {
	r.t.Helper()
	s, err := r.client().Detach(context.Background(), q, func(node.DetachStatus) {})
	check(r.t, err)
	return s
}

// eventually waits for a condition that a daemon brings about by itself.
func (r *rig) eventually(what string, ok func() bool) {
	r.t.Helper()
	for began := time.Now(); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > 2*time.Minute {
			r.t.Fatalf("%s does not come", what)
		}
	}
}

// A detach goes on when its device is deleted, and when the daemon is started again. The record is gone in the end.
func TestDetachOutlivesDeviceAndDaemon(t *testing.T) {
	r := newRig(t)
	content := r.fullRoot()
	d := r.start()
	web := r.create(r.request("web1"))
	r.write(web.ID, "mine", 8192)
	s := r.detach(node.DetachRequest{Device: "web1", BytesPerSecond: 1 << 20, Background: true})
	if s.Complete || s.TotalBytes == 0 {
		t.Errorf("begun: %+v", s)
	}
	if got := state(t, r, "web1").Detach; got == nil || got.Layer != "web1" {
		t.Errorf("inspect says %+v", got)
	}
	_, err := r.client().Delete(context.Background(), "web1")
	check(t, err)
	check(t, d.Stop())
	r.start()
	if s := r.detach(node.DetachRequest{Store: r.store, Layer: "web1"}); !s.Complete {
		t.Errorf("in the end: %+v", s)
	}
	if left, err := os.ReadDir(filepath.Join(r.cfg.RunDir, "detaches")); err != nil || len(left) != 0 {
		t.Errorf("records left: %v %v", left, err)
	}
	check(t, os.Remove(r.root))
	q := r.request("web1")
	q.Root = ""
	web = r.create(q)
	if got := r.read(web.ID, 8192, 4); got != "mine" || r.read(web.ID, 1<<20, 64) != string(content[1<<20:1<<20+64]) {
		t.Errorf("the device holds something else: %q", got)
	}
	if got := state(t, r, "web1").Root; !reflect.DeepEqual(got, node.Root{}) {
		t.Errorf("root %+v", got)
	}
}

// After a reboot nobody knows of a detach but the store: the next device that has the root brings it back.
func TestDetachAfterReboot(t *testing.T) {
	r := newRig(t)
	r.fullRoot()
	d := r.start()
	r.create(r.request("web1"))
	r.create(r.request("web2"))
	r.detach(node.DetachRequest{Device: "web1", BytesPerSecond: 1 << 10, Background: true})
	for _, name := range []string{"web1", "web2"} {
		_, err := r.client().Delete(context.Background(), name)
		check(t, err)
	}
	check(t, d.Stop())
	check(t, os.RemoveAll(filepath.Join(r.cfg.RunDir, "detaches")))
	d = r.start()
	r.create(r.request("web2"))
	r.eventually("the end of the detach", func() bool {
		l := r.openLayers("web2")["web1"]
		return l.Pin.Kind == union.PinNone && !l.Detaching
	})
	check(t, d.Stop())
}

// While the root cannot be read the detach waits, and tells so.
func TestDetachWaitsForRoot(t *testing.T) {
	r := newRig(t)
	content := r.fullRoot()
	r.start()
	r.create(r.request("web1"))
	r.detach(node.DetachRequest{Device: "web1", BytesPerSecond: 1 << 20, Background: true})
	check(t, os.Truncate(r.root, 4096))
	r.eventually("the wait", func() bool {
		s := state(t, r, "web1").Detach
		return s != nil && strings.Contains(s.Waiting, "root not readable")
	})
	check(t, os.WriteFile(r.root, content, 0o600))
	r.eventually("the end of the detach", func() bool { return state(t, r, "web1").Root.Path == "" })
}

func TestDetachRefusals(t *testing.T) {
	r := newRig(t)
	r.fullRoot()
	d := r.start()
	r.create(r.request("web1"))
	_, err := r.client().Delete(context.Background(), "web1")
	check(t, err)
	other := r.file("other.img", 4*mib)
	for name, c := range map[string]struct {
		q    node.DetachRequest
		code node.Code
		say  string
	}{
		"device":         {node.DetachRequest{Device: "web2"}, node.CodeNotFound, "no such device"},
		"relative store": {node.DetachRequest{Store: "leaf", Layer: "web1"}, node.CodeBadRequest, "absolute"},
		"relative root":  {node.DetachRequest{Store: r.store, Layer: "web1", Root: "x"}, node.CodeBadRequest, "absolute"},
		"layer name":     {node.DetachRequest{Store: r.store, Layer: "a/b"}, node.CodeBadRequest, "layer name"},
		"no layer":       {node.DetachRequest{Store: r.store, Layer: "none"}, node.CodeBadLeaf, "no such layer"},
		"no root":        {node.DetachRequest{Store: r.store, Layer: "web1"}, node.CodeBadRequest, "root that no device has"},
		"other root":     {node.DetachRequest{Store: r.store, Layer: "web1", Root: other}, node.CodeOtherRoot, "another root"},
		"missing root":   {node.DetachRequest{Store: r.store, Layer: "web1", Root: "/no/such"}, node.CodeBadRoot, "no such file"},
		"rate":           {node.DetachRequest{Store: r.store, Layer: "web1", BytesPerSecond: -1}, node.CodeBadRequest, "negative"},
		"no store":       {node.DetachRequest{Store: other, Layer: "web1"}, node.CodeNotFormatted, "not a coppice leaf store"},
	} {
		_, err := r.client().Detach(context.Background(), c.q, func(node.DetachStatus) {})
		if node.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.say) || node.HintOf(err) == "" {
			t.Errorf("%s: %v (%s, to do: %s)", name, err, node.CodeOf(err), node.HintOf(err))
		}
	}
	check(t, d.Stop())
	if got := r.layers(); len(got) != 1 {
		t.Errorf("layers left: %v", got)
	}
}

// Who follows a detach and goes away does not end it.
func TestDetachFollowerLeaves(t *testing.T) {
	r := newRig(t)
	r.fullRoot()
	r.start()
	r.create(r.request("web1"))
	ctx, cancel := context.WithCancel(context.Background())
	var seen bytes.Buffer
	_, err := r.client().Detach(ctx, node.DetachRequest{Device: "web1", BytesPerSecond: 1 << 20}, func(s node.DetachStatus) {
		seen.WriteString(s.Layer)
		cancel()
	})
	if !errors.Is(err, context.Canceled) || seen.Len() == 0 {
		t.Errorf("followed %q: %v", seen.String(), err)
	}
	r.eventually("the end of the detach", func() bool { return state(t, r, "web1").Root.Path == "" })
}
