//go:build vm

package scenarios

import (
	"bytes"
	"crypto/sha256"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"coppice/vmtests"
)

// lab returns what the host tells of its servers.
func lab(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile("/lab/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// network sets up the network card.
func network(t *testing.T) {
	t.Helper()
	sh(t, "ip link set eth0 up; ip addr replace "+vmtests.GuestAddr+" dev eth0")
}

// TestImageRoot has a Debian system that went from registry to registry as root of a device: every file of the compared parts is what
// it is on the disk that the image was made of. It is written to, frozen, and served by another daemon.
func TestImageRoot(t *testing.T) {
	network(t)
	original := mountPoint(t, disk(t, "debian"), "-t ext4 -o ro")
	leaf := disk(t, "leaf")
	format(t, leaf)
	served := newService(t)
	began := time.Now()
	dev := createForTest(t, "web1", lab(t, "registry")+"1", leaf)
	created := time.Since(began)
	dir := mountPoint(t, dev.Path, "-t ext4 -o noatime")
	t.Logf("device from a registry behind TLS: made in %d ms, mounted after %d ms", created.Milliseconds(), time.Since(began).Milliseconds())
	if want := strings.TrimPrefix(lab(t, "content"), "sha256:"); dev.Root.Content != want {
		t.Errorf("content root %s, was built as %s", dev.Root.Content, want)
	}
	note := bytes.Repeat([]byte("written before the daemon was replaced\n"), 1000)
	path := filepath.Join(dir, "srv", "note")
	if err := os.WriteFile(path, note, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Log(strings.TrimSpace(coppice(t, "freeze", "web1", "--as", "noted")))
	served.stop(syscall.SIGTERM)
	served.launch("coppice")
	served.awaitAnswer(t)
	sh(t, "sync; echo 3 >/proc/sys/vm/drop_caches")
	if text, err := os.ReadFile(path); err != nil || !bytes.Equal(text, note) {
		t.Errorf("the file written reads %d bytes, error %v", len(text), err)
	}
	for _, part := range comparedParts {
		before := digestTree(t, filepath.Join(original, part), sha256.New)
		after := digestTree(t, filepath.Join(dir, part), sha256.New)
		delete(after, "srv/note")
		if srv, ok := before["srv"]; ok {
			after["srv"] = srv // a file came into it
		}
		before.same(t, after)
	}
	unmount(t, dir)
	sh(t, "e2fsck -fn "+dev.Path)
	t.Log(coppice(t, "inspect", "web1"))
	coppice(t, "delete", "web1")
	served.stop(syscall.SIGTERM)
	checkStore(t, leaf)
}
