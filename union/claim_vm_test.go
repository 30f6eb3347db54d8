//go:build vm

package union

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A store on a block device is its process's alone, and udev can look at the device nevertheless.
func TestClaimOfBlockDevice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, 32<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("sh", "-ec", "modprobe loop; losetup -f --show "+path).Output()
	if err != nil {
		t.Fatal(err)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if err := exec.Command("losetup", "-d", device).Run(); err != nil {
			t.Error(err)
		}
	})
	if _, err := Format(device, FormatOptions{}); err != nil {
		t.Fatal(err)
	}
	st, err := OpenStore(device, StoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	udev, err := os.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(udev.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		t.Errorf("udev cannot look at the device: %v", err)
	}
	if err := udev.Close(); err != nil {
		t.Error(err)
	}
	for _, readOnly := range []bool{true, false} {
		if _, err := OpenStore(device, StoreOptions{ReadOnly: readOnly}); !errors.Is(err, ErrInUse) {
			t.Errorf("opened once more, read-only %v: %v", readOnly, err)
		}
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	one, err := OpenStore(device, StoreOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	two, err := OpenStore(device, StoreOptions{ReadOnly: true})
	if err != nil {
		t.Errorf("two readers: %v", err)
	} else if err := two.Close(); err != nil {
		t.Error(err)
	}
	if _, err := OpenStore(device, StoreOptions{}); !errors.Is(err, ErrInUse) {
		t.Errorf("written while it is read: %v", err)
	}
	if err := one.Close(); err != nil {
		t.Error(err)
	}
}
