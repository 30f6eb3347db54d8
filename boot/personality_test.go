package boot

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const exampleKey = "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"

func personality(values map[string]string) []trait {
	return Given{values: values}.traits()
}

func wantFile(t *testing.T, path, want string, mode fs.FileMode) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil || string(data) != want {
		t.Errorf("%s holds %q, %v; want %q", path, data, err, want)
	}
	if st, err := os.Stat(path); err == nil && st.Mode().Perm() != mode {
		t.Errorf("%s has mode %v, want %v", path, st.Mode(), mode)
	}
}

func TestGivePersonality(t *testing.T) {
	dir := t.TempDir()
	for path, data := range map[string]string{"etc/machine-id": "uninitialized\n", "etc/hostname": "image\n", "etc/ssh/ssh_host_rsa_key.pub": "of the image"} {
		if err := writeFile(filepath.Join(dir, path), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	id := strings.Repeat("0a", 16)
	first := map[string]string{keyMachineID: "0a0a0a0a-0a0a-0a0a-0a0a-0a0a0a0a0a0a\n", keyHostnameSystemd: "node7", keySSH + "rsa_key": exampleKey}
	names, err := givePersonality(dir, personality(first))
	if want := []string{"machine-id", "hostname", "ssh_host_rsa_key"}; err != nil || !slices.Equal(names, want) {
		t.Fatalf("given %q, %v", names, err)
	}
	wantFile(t, filepath.Join(dir, "etc/machine-id"), id+"\n", 0o444)
	wantFile(t, filepath.Join(dir, "etc/hostname"), "node7\n", 0o644)
	wantFile(t, filepath.Join(dir, "etc/ssh/ssh_host_rsa_key"), exampleKey, 0o600)
	if _, err := os.Stat(filepath.Join(dir, "etc/ssh/ssh_host_rsa_key.pub")); err == nil {
		t.Error("the image's public key stands beside another private key")
	}
	// What was changed since then stays; what is new is given.
	if err := os.WriteFile(filepath.Join(dir, "etc/hostname"), []byte("renamed\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	first[keySSH+"ed25519_key"] = exampleKey
	names, err = givePersonality(dir, personality(first))
	if err != nil || !slices.Equal(names, []string{"ssh_host_ed25519_key"}) {
		t.Fatalf("given %q, %v", names, err)
	}
	wantFile(t, filepath.Join(dir, "etc/hostname"), "renamed\n", 0o644)
}

func TestGivePersonalityRefuses(t *testing.T) {
	dir := t.TempDir()
	bad := map[string]string{keyMachineID: "short", keyHostname: "a b", keySSH + "rsa_key": "no key", keySSH + "ecdsa_key": exampleKey}
	names, err := givePersonality(dir, personality(bad))
	if !slices.Equal(names, []string{"ssh_host_ecdsa_key"}) {
		t.Errorf("given %q", names)
	}
	for _, want := range []string{"machine ID", "host name", "not a private key"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v lacks %q", err, want)
		}
	}
	for _, path := range []string{"etc/machine-id", "etc/hostname", "etc/ssh/ssh_host_rsa_key"} {
		if _, err := os.Stat(filepath.Join(dir, path)); err == nil {
			t.Errorf("%s was written", path)
		}
	}
}

// An image cannot have files outside of it overwritten.
func TestGivePersonalityStaysInside(t *testing.T) {
	outside, dir := t.TempDir(), t.TempDir()
	if err := os.Symlink(outside, filepath.Join(dir, "etc")); err != nil {
		t.Fatal(err)
	}
	if names, err := givePersonality(dir, personality(map[string]string{keyHostname: "node7"})); err == nil || len(names) > 0 {
		t.Errorf("given %q, %v", names, err)
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) > 0 {
		t.Errorf("outside: %v, %v", entries, err)
	}
}
