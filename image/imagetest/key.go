package imagetest

import (
	"os"
	"path/filepath"
	"testing"

	"aead.dev/minisign"
)

// Key makes a key that signs images, and returns the path of a file with its public half, which is gone with the test.
func Key(t *testing.T) (key minisign.PrivateKey, path string) {
	t.Helper()
	public, key, err := minisign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := public.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "key.pub")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return key, path
}
