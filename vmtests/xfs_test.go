package vmtests

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPrototype(t *testing.T) {
	tree := filepath.Join(t.TempDir(), "tree")
	err := errors.Join(
		os.MkdirAll(filepath.Join(tree, "d"), 0o755),
		os.WriteFile(filepath.Join(tree, "d", "f"), nil, 0o600),
		os.WriteFile(filepath.Join(tree, "d", "su"), nil, 0o755),
		os.Chmod(filepath.Join(tree, "d", "su"), 0o755|os.ModeSetuid),
		os.WriteFile(filepath.Join(tree, "has blank"), nil, 0o644),
		os.Symlink("d/f", filepath.Join(tree, "l")),
	)
	if err != nil {
		t.Fatal(err)
	}
	proto := filepath.Join(t.TempDir(), "proto")
	if err := writeProto(proto, tree); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(proto)
	if err != nil {
		t.Fatal(err)
	}
	got := strings.ReplaceAll(string(text), tree, "TREE")
	owner := " " + strings.Fields(got)[4] + " " + strings.Fields(got)[5]
	want := "/\n0 0\n d--755" + owner + "\nd d--755" + owner + "\nf ---600" + owner + " TREE/d/f\nsu -u-755" + owner +
		" TREE/d/su\n$\nl l--777" + owner + " d/f\n$\n"
	if got != want {
		t.Errorf("prototype\n%swant\n%s", got, want)
	}
}

func TestFileDigest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("abcd"), 0o644); err != nil {
		t.Fatal(err)
	}
	digest, size, err := FileDigest(path, 3)
	if err != nil || size != 3 || digest != "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" {
		t.Errorf("digest %s of %d bytes, error %v", digest, size, err)
	}
}
