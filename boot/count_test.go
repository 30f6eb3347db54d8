package boot

import (
	"path/filepath"
	"strings"
	"testing"

	"coppice/node"
	"coppice/union"
)

// After the boots that it is told a machine boots from a fresh layer over the root, and says so; what was booted before stays.
func TestCountedBoots(t *testing.T) {
	leaf := filepath.Join(t.TempDir(), "leaf")
	if _, err := union.Format(leaf, union.FormatOptions{SizeBytes: union.MinStoreBytes}); err != nil {
		t.Fatal(err)
	}
	boot := func(tries int) (layer, from, said string) {
		s, out := newStarter(t, Params{Leaf: Leaf{Device: leaf, Layer: "web"}, Tries: tries})
		s.countBoot(leaf, union.Pin{})
		makeLayer(t, leaf, s.params.Leaf.Layer)
		return s.params.Leaf.Layer, s.from, out.String()
	}
	for i, want := range []struct{ layer, said string }{
		{"web", ""}, {"web", "attempt 2 of 2"}, {"web.boot1", "2 BOOTS FROM LAYER web HAVE FAILED"}, {"web.boot1", "attempt 2 of 2"}, {"web.boot1", "nothing is below it"},
	} {
		layer, from, said := boot(2)
		if layer != want.layer || from != "" || !strings.Contains(said, want.said) || want.said == "" && said != "" {
			t.Errorf("boot %d from %s over %q: %s", i, layer, from, said)
		}
	}
	if counted, err := union.BootGood(leaf, "web"); !counted || err != nil {
		t.Errorf("good: %v, %v", counted, err)
	}
	if layer, _, said := boot(2); layer != "web.boot1" || !strings.Contains(said, "in the place of web") {
		t.Errorf("after a good boot: %s, %s", layer, said)
	}
	for range 5 {
		if layer, _, _ := boot(0); layer != "web.boot1" {
			t.Errorf("any number of tries: %s", layer)
		}
	}
}

// makeLayer makes a layer over a root where there is none of that name.
func makeLayer(t *testing.T, leaf, name string) {
	t.Helper()
	s, err := union.OpenStore(leaf, union.StoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.OpenLayer(name, union.LayerOptions{Create: true, SizeBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	l.Release()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// A leaf that cannot be counted on is booted from all the same.
func TestUncountedBoot(t *testing.T) {
	leaf := filepath.Join(t.TempDir(), "none")
	s, out := newStarter(t, Params{Leaf: Leaf{Device: leaf, Layer: "web"}, Tries: 3})
	s.countBoot(leaf, union.Pin{})
	if s.params.Leaf.Layer != "web" || !strings.Contains(out.String(), "not counted") {
		t.Errorf("%s: %s", s.params.Leaf.Layer, out)
	}
	s, out = newStarter(t, Params{Leaf: Leaf{RAM: true, Layer: "web"}, Tries: 3})
	if s.countBoot(leaf, union.Pin{}); out.String() != "" {
		t.Errorf("memory is counted: %s", out)
	}
}

// A boot that the root has failed is none that the layer has failed: however often it is tried, the policy stays in force.
func TestBootOfAnotherRootIsNotCounted(t *testing.T) {
	leaf := filepath.Join(t.TempDir(), "leaf")
	if _, err := union.Format(leaf, union.FormatOptions{SizeBytes: union.MinStoreBytes}); err != nil {
		t.Fatal(err)
	}
	makeLayer(t, leaf, "web")
	for _, c := range []struct {
		code  node.Code
		layer string
	}{{node.CodeOtherRoot, "web"}, {node.CodeUntrusted, "web"}, {node.CodeCorrupt, "web.boot1"}} {
		layer := ""
		for range 3 {
			s, _ := newStarter(t, Params{Leaf: Leaf{Device: leaf, Layer: "web"}, Tries: 2})
			s.countBoot(leaf, union.Pin{})
			layer = s.params.Leaf.Layer
			s.uncountBoot(leaf, "web", &node.Error{Code: c.code})
		}
		if layer != c.layer {
			t.Errorf("%s: the third boot is from %s, want %s", c.code, layer, c.layer)
		}
	}
}
