package node_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coppice/node"
	"coppice/union"
)

// sealed leaves a sealed layer "gold" in the store that begins with text, and the layer "gold-leaf" on it.
func (r *rig) sealed(text string) {
	r.t.Helper()
	d := r.start()
	q := r.request("gold")
	q.Layer = "gold-leaf"
	r.create(q)
	r.write(0, text, 0)
	_, err := r.client().Delete(context.Background(), "gold")
	check(r.t, err)
	check(r.t, d.Stop())

	raw, err := union.OpenRaw(r.root)
	check(r.t, err)
	st, err := union.OpenStore(r.store, union.StoreOptions{RunDir: r.cfg.RunDir})
	check(r.t, err)
	l, err := st.OpenLayer("gold-leaf", union.LayerOptions{Pin: raw.Pin()})
	check(r.t, err)
	f, err := l.PrepareFreeze("gold")
	check(r.t, err)
	_, err = f.Seal()
	check(r.t, err)
	l.Release()
	check(r.t, st.Close())
	check(r.t, raw.Close())
}

func (r *rig) from(name, layer string) node.CreateRequest {
	q := r.request(name)
	q.From = layer
	return q
}

// Devices from one sealed layer begin with its content and go their own ways, also across a restart.
func TestCreateFromSealedLayer(t *testing.T) {
	r := newRig(t)
	r.sealed("golden")
	d := r.start()
	a, b := r.create(r.from("a", "gold")), r.create(r.from("b", "gold"))
	for _, id := range []int{a.ID, b.ID} {
		if got := r.read(id, 0, 6); got != "golden" {
			t.Errorf("device %d begins with %q", id, got)
		}
	}
	if a.SizeBytes != rootSize {
		t.Errorf("size %d", a.SizeBytes)
	}
	r.write(a.ID, "of a", 0)
	if got := r.read(b.ID, 0, 6); got != "golden" {
		t.Errorf("a write to one shows in the other: %q", got)
	}
	check(t, d.Stop())
	r.start()
	if got := r.read(a.ID, 0, 4); got != "of a" {
		t.Errorf("after a restart: %q", got)
	}
	_, err := r.client().Delete(context.Background(), "a")
	check(t, err)
	// Continued without and with the layer that it stands on.
	a = r.create(r.request("a"))
	if got := r.read(a.ID, 0, 4); got != "of a" {
		t.Errorf("continued: %q", got)
	}
}

func TestCreateFromRefusals(t *testing.T) {
	r := newRig(t)
	r.sealed("golden")
	r.start()
	r.create(r.request("plain"))
	other := filepath.Join(r.dir, "other.img")
	check(t, os.WriteFile(other, bytes.Repeat([]byte("else"), rootSize/4), 0o600))
	for _, c := range []struct {
		name string
		code node.Code
		say  string
		req  func(q node.CreateRequest) node.CreateRequest
	}{
		{"no such layer", node.CodeBadLeaf, "no such layer", func(q node.CreateRequest) node.CreateRequest { q.From = "nothing"; return q }},
		{"layer not sealed", node.CodeBadLeaf, "not sealed", func(q node.CreateRequest) node.CreateRequest { q.From = "plain"; return q }},
		{"other root", node.CodeOtherRoot, "another root", func(q node.CreateRequest) node.CreateRequest { q.Root = other; return q }},
		{"no layer name", node.CodeBadRequest, "layer name", func(q node.CreateRequest) node.CreateRequest { q.From = "a/b"; return q }},
		{"other size", node.CodeBadLeaf, "bytes, not", func(q node.CreateRequest) node.CreateRequest { q.SizeBytes = 8 * mib; return q }},
		{"existing layer that stands elsewhere", node.CodeBadLeaf, "does not stand on", func(q node.CreateRequest) node.CreateRequest {
			q.Layer, q.From = "gold-leaf", "other"
			return q
		}},
		{"a sealed layer as leaf", node.CodeBadLeaf, "is sealed", func(q node.CreateRequest) node.CreateRequest {
			q.Layer, q.From = "gold", ""
			return q
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := r.openLayers("plain")
			_, err := r.client().Create(context.Background(), c.req(r.from("new", "gold")))
			if node.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.say) || node.HintOf(err) == "" {
				t.Errorf("%s: %v (%s)", node.CodeOf(err), err, node.HintOf(err))
			}
			if after := r.openLayers("plain"); len(after) != len(before) {
				t.Errorf("layers left: %v", after)
			}
		})
	}
}

// openLayers returns the layers of the store below a live device.
func (r *rig) openLayers(device string) map[string]union.LayerInfo {
	r.t.Helper()
	all := map[string]union.LayerInfo{}
	for _, l := range state(r.t, r, device).Leaf.Info.Layers {
		all[l.Name] = l
	}
	return all
}
