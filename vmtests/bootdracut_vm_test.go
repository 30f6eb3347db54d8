//go:build vm && long

package vmtests

import (
	"context"
	"strings"
	"testing"
	"time"
)

// askRootUnit tells what the system knows of the unit that made its root device in the initramfs, and which jobs it still has.
const askRootUnit = `systemctl show -p LoadState -p ActiveState -p IgnoreOnIsolate -p KillMode -p DefaultDependencies coppice-root.service | sort; systemctl list-jobs --no-legend`

// wantRootUnit is the answer: the unit is known, active, and not about to be stopped, and the system has nothing left to do.
const wantRootUnit = "ActiveState=active\nDefaultDependencies=no\nIgnoreOnIsolate=yes\nKillMode=none\nLoadState=loaded\n"

// TestBootDracut boots a Debian whose initramfs dracut has made, so that systemd runs in there, too: the instance that serves the root is left alone by both, the address that the root
// is behind stays, and after a shutdown the leaf is clean. The next boot has what was written.
func TestBootDracut(t *testing.T) {
	t.Parallel()
	l := newMachineLab(t, Dracut)
	m := l.node(t, "dracut", l.web.address)
	m.cfg.KernelArgs += " systemd.show_status=1"
	for n := range 2 {
		vm := l.boot(t, m)
		examineRoot(t, vm)
		out, err := vm.Output(t.Context(), "sh", "-c", askRootUnit)
		if err != nil || out != wantRootUnit {
			t.Errorf("the root's unit and the jobs are %q, want %q (%v)", out, wantRootUnit, err)
		}
		out, err = vm.Output(t.Context(), "sh", "-c", "ip -o -4 address show up scope global; cat /run/systemd/network/05-coppice-*")
		if err != nil || !strings.Contains(out, "valid_lft forever") || !strings.Contains(out, "DHCP=ipv4") {
			t.Errorf("the address would go with its lease, or nothing says to keep it (%v): %s", err, out)
		}
		out, err = vm.Output(t.Context(), "sh", "-c", "echo boot >>/root/boots; cat /root/boots")
		if want := strings.Repeat("boot\n", n+1); err != nil || out != want {
			t.Errorf("the file has %q, want %q (%v)", out, want, err)
		}
		wantNoIOErrors(t, "the kernel's log", kernelLogOf(t, vm))
		m.shutDown(t, vm)
	}
}

// TestBootDracutBadInput boots a machine whose image is not to be had: the console says why and what to do, dracut gives its shell, and the leaf disk stays as it is.
func TestBootDracutBadInput(t *testing.T) {
	t.Parallel()
	l := newMachineLab(t, Dracut)
	m := l.node(t, "dracut-bad", l.web.address)
	before, _, err := FileDigest(m.leaf, machineLeafBytes)
	if err != nil {
		t.Fatal(err)
	}
	m.cfg.KernelArgs = strings.Replace(m.cfg.KernelArgs, "root:debian:1", "root:debian:9", 1)
	m.cfg.Until = "root:debian:9"
	vm := l.start(t, m)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for _, want := range []string{"not found", "  to do: ", "Press Enter for maintenance"} {
		if err := vm.Says(ctx, want); err != nil {
			t.Errorf("wait for %q: %v", want, err)
		}
	}
	t.Log(lastLines(vm.console(), 20))
	if err := vm.Kill(); err != nil {
		t.Error(err)
	}
	if after, _, err := FileDigest(m.leaf, machineLeafBytes); err != nil || after != before {
		t.Errorf("the leaf disk was changed (%v)", err)
	}
}
