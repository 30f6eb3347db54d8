package boot

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"coppice/image"
	"coppice/image/imagetest"
	"coppice/node"
	"coppice/union"
)

// wantUnchanged wants a disk to be what it was when it was called, when the returned function is.
func wantUnchanged(t *testing.T, path string) func() {
	t.Helper()
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, before) {
			t.Errorf("the disk was changed (%v)", err)
		}
	}
}

// A leaf of another root is refused before anything is written to it, where the policy says so.
func TestOtherRootIsRefusedEarly(t *testing.T) {
	dir := example(t, "1", "2")
	path := layered(t, "web", contentOf(t, dir, "debian:1"), 1<<20)
	s, _ := newStarter(t, Params{Roots: []string{"oci:" + dir + ":debian:2"}, Leaf: Leaf{Device: path, Layer: "web", Policy: PolicyRefuse}, Tries: 3})
	pin, err := s.waitRoot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	unchanged := wantUnchanged(t, path)
	wantProblem(t, s.checkRoot(t.Context(), path, pin), node.CodeOtherRoot, "made for another root", "layer web", "policy=fresh", "policy=keep")
	for _, policy := range []Policy{PolicyFresh, PolicyKeep} {
		s.params.Leaf.Policy = policy
		if err := s.checkRoot(t.Context(), path, pin); err != nil {
			t.Errorf("policy %s: %v", policy, err)
		}
	}
	unchanged()
	s.params.Leaf.Policy = PolicyRefuse
	s.params.Leaf.Layer = "new"
	if err := s.checkRoot(t.Context(), path, pin); err != nil {
		t.Errorf("a new layer: %v", err)
	}
}

// What a layer was booted on is known at the next boot, until that fails.
func TestKnownRoot(t *testing.T) {
	dir := example(t, "1", "2")
	first := contentOf(t, dir, "debian:1")
	path := layered(t, "web", first, 1<<20)
	s, _ := newStarter(t, Params{Roots: []string{"oci:" + dir + ":debian:1"}, Leaf: Leaf{Device: path, Layer: "web", Policy: PolicyRefuse}, Tries: 3})
	pin := union.Pin{Kind: union.PinImage, SizeBytes: 1 << 20, Digest: union.Digest(first)}
	other := union.Pin{Kind: union.PinImage, SizeBytes: 1 << 20, Digest: union.Digest(contentOf(t, dir, "debian:2"))}
	known := func(pin union.Pin) bool {
		boots, err := union.ReadBoots(path)
		if err != nil {
			t.Fatal(err)
		}
		return s.isKnown(boots.Layers["web"], pin)
	}
	s.countBoot(path, pin)
	if !known(pin) || known(other) || known(union.Pin{Kind: union.PinRaw}) {
		t.Error("another root is known than the one that was booted on")
	}
	if err := s.checkRoot(t.Context(), path, pin); err != nil {
		t.Error(err)
	}
	wantProblem(t, s.checkRoot(t.Context(), path, other), node.CodeOtherRoot)
	s.uncountBoot(path, "web", &node.Error{Code: node.CodeOtherRoot})
	if known(pin) {
		t.Error("a root that was refused is known")
	}
	s.params.Leaf.Policy = PolicyFresh
	if s.countBoot(path, pin); known(pin) {
		t.Error("what is booted with policy=fresh may be another layer")
	}
}

// sign signs an image with a new key and returns the path of the public one.
func sign(t *testing.T, dir, name string) string {
	t.Helper()
	key, path := imagetest.Key(t)
	layout, err := image.CreateLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	im, err := image.Open(t.Context(), layout, name)
	if err != nil {
		t.Fatal(err)
	}
	_, err = image.Sign(t.Context(), im, layout, key, image.Statement{Name: "debian", Serial: 1})
	if err := errors.Join(err, im.Close(), layout.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// A root that is not signed as it must be is refused while the leaf disk is still blank.
func TestUnsignedRootIsRefusedEarly(t *testing.T) {
	dir := example(t, "1", "2")
	trusted := sign(t, dir, "debian:1")
	sign(t, dir, "debian:2")
	path := disk(t, "")
	unchanged := wantUnchanged(t, path)
	for tag, want := range map[string]string{"1": "", "2": "not signed by a trusted key"} {
		s, _ := newStarter(t, Params{Roots: []string{"oci:" + dir + ":debian:" + tag}, Leaf: Leaf{Device: path, Layer: "web", Format: true}})
		s.config.Images.RequireSignature, s.config.Images.TrustedKeys = true, []string{trusted}
		pin, err := s.waitRoot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		err = s.checkRoot(t.Context(), path, pin)
		if want == "" && err != nil {
			t.Errorf("a signed root is refused: %v", err)
		}
		if want != "" {
			wantProblem(t, err, node.CodeUntrusted, want, "coppice image sign")
		}
		s.config.Images.RequireSignature = false
		if err := s.checkRoot(t.Context(), path, pin); err != nil {
			t.Errorf("no signature is required: %v", err)
		}
	}
	unchanged()
	s, _ := newStarter(t, Params{Roots: []string{filepath.Join(dir, "index.json")}})
	s.config.Images.RequireSignature = true
	wantProblem(t, s.checkRoot(t.Context(), path, union.Pin{Kind: union.PinRaw}), node.CodeUntrusted, "raw disk")
}
