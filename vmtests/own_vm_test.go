//go:build vm && long

package vmtests

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestOwn boots a system with its own kernel and initramfs from a plain disk, twice: what one boot has written is there in the next, and credentials of the
// firmware arrive.
func TestOwn(t *testing.T) {
	b := newBuild(t)
	system, err := b.System(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "root")
	if _, err := command(t.Context(), "", "cp", "--sparse=always", system.Image, root); err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Name: "own", MemMiB: 1024, Own: system.Own(), Disks: []Disk{{Name: "root", Path: root}}, KernelArgs: bootArgs + " root=/dev/vda",
		Until: "login: ", QEMUArgs: []string{"-smbios", "type=11,value=io.systemd.credential:vmtests.said=well"},
	}
	for n := range 2 {
		vm := boot(t, b, cfg)
		if err := vm.Greet(t.Context()); err != nil {
			t.Fatal(err)
		}
		out, err := vm.Output(t.Context(), "sh", "-c", "uname -r; cat /run/credentials/@system/vmtests.said; echo; echo boot >>/root/boots; cat /root/boots")
		want := system.Release + "\nwell\n" + strings.Repeat("boot\n", n+1)
		if err != nil || out != want {
			t.Errorf("the system says %q, want %q (%v)", out, want, err)
		}
		if err := vm.PowerOff(t.Context()); err != nil {
			t.Error(err)
		}
		if strings.Contains(vm.console(), "error") {
			t.Error(vm.Report())
		}
		if err := vm.Kill(); err != nil {
			t.Error(err)
		}
	}
}
