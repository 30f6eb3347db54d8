//go:build vm && long

package vmtests

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"aead.dev/minisign"

	"coppice/image"
	"coppice/image/imagetest"
	"coppice/union"
)

// smallLeafBytes is the size of leaf disks that are read whole.
const smallLeafBytes = 256 << 20

// trustedKey is where a machine has the key that it trusts.
const trustedKey = "/etc/coppice/trusted.pub"

// TestBootRefuses boots machines whose root is not signed as they demand, or not the one that their leaf was made for. Each says so and what to do, gives a shell, and has not written a
// byte to its leaf; or it does what the policy says.
func TestBootRefuses(t *testing.T) {
	t.Parallel()
	l := newMachineLab(t, Systemd)
	layout := filepath.Join(l.dir, "web", "root")
	second := filepath.Join(l.dir, "second")
	script := `cp --sparse=always "$1" "$2"; echo 2 >"$2.txt"; debugfs -w -R "write $2.txt /etc/second" "$2"`
	if _, err := command(t.Context(), "", "sh", "-ec", script, "second", l.system.Image, second); err != nil {
		t.Fatal(err)
	}
	buildImage(t, layout, "debian:2", second)
	trusted, trustedPath := imagetest.Key(t)
	other, _ := imagetest.Key(t)
	signImage(t, layout, "debian:1", trusted)
	signImage(t, layout, "debian:2", other)
	config := filepath.Join(l.dir, "coppice.toml")
	text := fmt.Sprintf("[images]\nrequire_signature = true\ntrusted_keys = [%q]\n", trustedKey)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	first := imagePin(t, layout, "debian:1")
	gone := union.Pin{Kind: union.PinImage, SizeBytes: first.SizeBytes, Digest: sha256.Sum256([]byte("gone"))}
	for _, c := range []struct {
		name   string
		signed bool       // only signed roots are taken
		leaf   *union.Pin // the leaf has a layer over a root with that; nil: it is blank
		tag    string
		option string
		want   []string // before there is a shell, or else there is a root device
		boots  bool
	}{
		{"signed by another key", true, nil, "2", ",format", []string{"not signed by a trusted key", "to do: have it signed: coppice image sign"}, false},
		{"leaf of another root", false, &first, "2", "", []string{"layer root", "was made for another root", "policy=fresh"}, false},
		{"leaf of a root that is gone", false, &gone, "2", ",policy=keep", []string{"is not to be found", "put that image back"}, false},
		{"fresh layer for another root", false, &first, "2", ",policy=fresh", []string{"stays as it is: taking layer root-"}, true},
		{"layer of the former root", true, &first, "2", ",policy=keep", []string{"staying with that, http://", "root:debian:1"}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := l.node(t, strings.ReplaceAll(c.name, " ", "-"), l.web.address)
			m.smallLeaf(t, c.leaf)
			args := strings.Replace(m.cfg.KernelArgs, "root:debian:1", "root:debian:"+c.tag, 1)
			m.cfg.KernelArgs = strings.Replace(args, "virtio-leaf,format", "virtio-leaf"+c.option, 1) + " panic=" // gives a shell
			if c.signed {
				m.cfg.Own.Files = map[string]string{trustedKey: trustedPath}
				m.cfg.QEMUArgs = []string{"-fw_cfg", "name=opt/io.systemd.credentials/coppice.config,file=" + config}
			}
			m.cfg.Until = c.want[0]
			before := fileDigest(t, m.leaf)
			began := time.Now()
			vm := l.start(t, m)
			until := "(initramfs)"
			if c.boots {
				until = "coppice: root is /dev/ublkb0"
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			if err := vm.Says(ctx, until); err != nil {
				t.Error(err)
			}
			t.Logf("after %.1f s:\n%s", time.Since(began).Seconds(), linesOf(vm.console(), "coppice: ", "to do: "))
			for _, text := range c.want {
				if !strings.Contains(vm.console(), text) {
					t.Errorf("the console lacks %q\n%s", text, vm.Report())
				}
			}
			if c.boots && c.tag == "2" && c.signed {
				m.wantFirst(t, vm)
			}
			if err := vm.Kill(); err != nil {
				t.Error(err)
			}
			// policy=keep has the daemon open the store, to find out which root its layer was made for.
			if !c.boots && !strings.Contains(c.option, "keep") && fileDigest(t, m.leaf) != before {
				t.Error("the leaf disk was changed")
			}
			m.wantLayer(t, c.leaf)
		})
	}
}

// wantFirst waits until the machine is up, and wants its root to be the first version, though it was told to take the second.
func (m *node) wantFirst(t *testing.T, vm *VM) {
	t.Helper()
	if err := vm.Says(t.Context(), "login: "); err != nil {
		t.Fatal(err)
	}
	if err := vm.Greet(t.Context()); err != nil {
		t.Fatal(err)
	}
	examineRoot(t, vm)
	if _, err := vm.Output(t.Context(), "test", "!", "-e", "/etc/second"); err != nil {
		t.Errorf("the root is the second version: %v", err)
	}
}

// smallLeaf makes the leaf anew, blank or as a store with a layer over a root.
func (m *node) smallLeaf(t *testing.T, pin *union.Pin) {
	t.Helper()
	if err := errors.Join(os.Remove(m.leaf), SparseFile(m.leaf, smallLeafBytes)); err != nil {
		t.Fatal(err)
	}
	if pin == nil {
		return
	}
	if _, err := union.Format(m.leaf, union.FormatOptions{}); err != nil {
		t.Fatal(err)
	}
	s, err := union.OpenStore(m.leaf, union.StoreOptions{NoLease: true})
	if err != nil {
		t.Fatal(err)
	}
	layer, err := s.OpenLayer("root", union.LayerOptions{Create: true, SizeBytes: pin.SizeBytes, Pin: *pin})
	if err != nil {
		t.Fatal(err)
	}
	layer.Release()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// wantLayer wants the layer to be there that the leaf was made with.
func (m *node) wantLayer(t *testing.T, pin *union.Pin) {
	t.Helper()
	if pin == nil {
		return
	}
	layers, err := union.Layers(m.leaf)
	if err != nil || layers["root"].Pin != *pin {
		t.Errorf("layer root is over %+v, want %+v (%v)", layers["root"].Pin, *pin, err)
	}
}

// withImage opens an image of a layout for do.
func withImage(t *testing.T, dir, name string, do func(*image.Layout, *image.Image) error) {
	t.Helper()
	layout, err := image.OpenLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	im, err := image.Open(t.Context(), layout, name)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(do(layout, im), im.Close(), layout.Close()); err != nil {
		t.Fatal(err)
	}
}

func signImage(t *testing.T, dir, name string, key minisign.PrivateKey) {
	t.Helper()
	withImage(t, dir, name, func(layout *image.Layout, im *image.Image) error {
		_, err := image.Sign(t.Context(), im, layout, key, image.Statement{Name: "debian", Serial: 1})
		return err
	})
}

// imagePin is what layers over an image stand on.
func imagePin(t *testing.T, dir, name string) (pin union.Pin) {
	t.Helper()
	withImage(t, dir, name, func(_ *image.Layout, im *image.Image) error {
		config := im.Config()
		pin = union.Pin{Kind: union.PinImage, SizeBytes: config.SizeBytes, Digest: union.Digest(config.ContentRoot)}
		return nil
	})
	return pin
}

func fileDigest(t *testing.T, path string) string {
	t.Helper()
	digest, _, err := FileDigest(path, math.MaxInt64)
	if err != nil {
		t.Fatal(err)
	}
	return digest
}

// linesOf returns those lines of a text that have one of the words.
func linesOf(text string, words ...string) string {
	var kept strings.Builder
	for line := range strings.Lines(text) {
		for _, word := range words {
			if strings.Contains(line, word) {
				kept.WriteString(line)
				break
			}
		}
	}
	return kept.String()
}
