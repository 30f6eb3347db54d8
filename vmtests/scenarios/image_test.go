//go:build vm

package scenarios

import (
	"os"
	"testing"

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
