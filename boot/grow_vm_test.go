//go:build vm

package boot

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func sh(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}

// A file system that is smaller than its device fills it, mounted, and holds what it held; once more changes nothing.
func TestGrow(t *testing.T) {
	for _, c := range []struct{ name, make string }{
		{"ext4", "mkfs.ext4 -q %s 64M"},
		{"xfs", "mkfs.xfs -q -d size=320m %s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			disk, mnt := filepath.Join(dir, "disk"), filepath.Join(dir, "mnt")
			sh(t, "modprobe loop; truncate -s 640M "+disk+"; mkdir "+mnt)
			device := sh(t, "losetup -f --show "+disk)
			t.Cleanup(func() { sh(t, "losetup -d "+device) })
			sh(t, strings.ReplaceAll(c.make, "%s", device)+"; mount -o ro "+device+" "+mnt)
			t.Cleanup(func() { sh(t, "umount "+mnt) })
			back, err := writable(mnt)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(mnt, "kept"), []byte("kept"), 0o600); err != nil {
				t.Fatal(err)
			}
			before, after, err := growFS(mnt, device)
			if err != nil || before > 330<<20 || after < 540<<20 {
				t.Errorf("from %d to %d bytes, %v", before, after, err)
			}
			again, still, err := growFS(mnt, device)
			if err != nil || again != after || still != after {
				t.Errorf("again: from %d to %d bytes, %v", again, still, err)
			}
			if err := back(); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(mnt, "more"), nil, 0o600); err == nil {
				t.Error("the root can be written still")
			}
			if data, err := os.ReadFile(filepath.Join(mnt, "kept")); err != nil || string(data) != "kept" {
				t.Errorf("%q, %v", data, err)
			}
		})
	}
	t.Run("tmpfs", func(t *testing.T) {
		dir := t.TempDir()
		sh(t, "mount -t tmpfs tmpfs "+dir)
		t.Cleanup(func() { sh(t, "umount "+dir) })
		if _, _, err := growFS(dir, "/dev/null"); err == nil {
			t.Error("a tmpfs was grown")
		}
	})
}
