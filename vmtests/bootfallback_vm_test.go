//go:build vm && long

package vmtests

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	booting "coppice/boot"
	daemons "coppice/node"
	"coppice/node/nodetest"
	"coppice/union"
)

// resets has QEMU start the machine again where that asks for it, instead of ending: a kernel that panics does.
var resets = []string{"-action", "reboot=reset"}

// Scripts of a layer that is broken, and mended.
const (
	// goodBoot waits until the boot is one that has not failed. Those that are cut before have, and of them a few in a row lead to a fresh layer.
	goodBoot = `n=0; until coppice boot status | grep -q 'the last one was good'; do n=$((n+1)); [ $n -lt 100 ] || exit 1; sleep 1; done; `

	statusOfGood = goodBoot + `cat /root/layers >&2; coppice boot status -o json`

	// mendLayer does what boot.md says; its argument is the root.
	mendLayer = `coppice --run-dir /run/coppice-root create mend --root $0 --leaf /dev/disk/by-id/virtio-leaf:root
udevadm settle; mount /dev/coppice/by-name/mend /mnt
cat /mnt/root/layers; ln -sf /lib/systemd/systemd /mnt/usr/sbin/init; echo mended >>/mnt/root/layers
umount /mnt; coppice --run-dir /run/coppice-root delete mend
coppice boot retry`
)

// TestBootFallsBack boots a machine whose init is broken, over a layer that was sealed before. Two boots fail, and the third one is from a layer over the sealed one, all by itself. There the
// broken layer is mended, and booted from again.
func TestBootFallsBack(t *testing.T) {
	t.Parallel()
	l := newMachineLab(t, Systemd)
	m := l.node(t, "fallback", l.web.address)
	l.breakLayer(t, m)

	m.cfg.KernelArgs += " coppice.tries=2"
	m.cfg.QEMUArgs, m.cfg.Until = resets, "coppice: root is /dev/ublkb0"
	began := time.Now()
	vm := l.start(t, m)
	saysInTheEnd(t, vm, "login: ")
	t.Logf("login prompt after %.1f s, two failed boots among it", time.Since(began).Seconds())
	for text, times := range map[string]int{
		"this layer is broken": 2, "Kernel panic": 2, "attempt 2 of 2 to boot from layer root": 1,
		"2 BOOTS FROM LAYER root HAVE FAILED: booting from root.boot1, over layer base": 1,
	} {
		if got := strings.Count(vm.console(), text); got != times {
			t.Errorf("the console says %q %d times, want %d", text, got, times)
		}
	}
	if err := vm.Greet(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.wantBooted(t, vm, "base\n", booting.Status{Told: "root", Booted: "root.boot1"}, "root")
	examineRoot(t, vm)
	t.Log(m.sh(t, vm, "mend the layer", mendLayer, imageAt(inGuest(l.web.address))))
	m.off(t, vm)

	m.cfg.Until = "login: "
	vm = l.boot(t, m)
	m.wantBooted(t, vm, "base\nbroken\nmended\n", booting.Status{Told: "root", Booted: "root"}, "root.boot1")
	m.shutDown(t, vm)
}

// Scripts that change the file system on a disk, their argument. The init that is broken ends at once, and the kernel panics then.
const (
	asBase   = `echo base >"$1.txt"; debugfs -w -R "write $1.txt /root/layers" "$1"`
	asBroken = `printf "base\nbroken\n" >"$1.txt"; printf '#!/bin/sh\necho "this layer is broken"\nexit 1\n' >"$1.init"; chmod 755 "$1.init"
for c in "rm /root/layers" "write $1.txt /root/layers" "rm /usr/sbin/init" "write $1.init /usr/sbin/init"; do debugfs -w -R "$c" "$1"; done`
)

// breakLayer makes the leaf what a machine leaves that wrote a file, was frozen, and wrote another init then.
func (l *machineLab) breakLayer(t *testing.T, m *node) {
	t.Helper()
	if _, err := union.Format(m.leaf, union.FormatOptions{}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	kernel, cfg := nodetest.NewKernel(), daemons.Config{RunDir: filepath.Join(dir, "run"), Version: "test"}
	daemon, err := nodetest.Start(kernel, cfg)
	if err != nil {
		t.Fatal(err)
	}
	client := daemons.NewClient(cfg.RunDir, cfg.Version)
	root := "oci:" + filepath.Join(l.dir, "web", "root") + ":debian:1"
	_, err = client.Create(t.Context(), daemons.CreateRequest{Name: "root", Roots: []string{root}, Store: m.leaf, Layer: "root"})
	if err != nil {
		t.Fatal(err)
	}
	change := func(former, disk, script string) {
		if _, err := command(t.Context(), "", "sh", "-ec", `cp --sparse=always "$2" "$1"; `+script, "change", disk, former); err != nil {
			t.Fatal(err)
		}
		blocks, err := writeChanged(kernel.Disk(0), former, disk)
		if err := errors.Join(err, kernel.Disk(0).Flush()); err != nil {
			t.Fatal(err)
		}
		t.Logf("%d blocks were changed", blocks)
	}
	base, broken := filepath.Join(dir, "base"), filepath.Join(dir, "broken")
	change(l.system.Image, base, asBase)
	f, err := client.PrepareFreeze(t.Context(), "root", daemons.FreezeRequest{As: "base"})
	if err == nil {
		_, err = client.Seal(t.Context(), "root", f.Token)
	}
	if err != nil {
		t.Fatal(err)
	}
	change(base, broken, asBroken)
	if _, err = client.Delete(t.Context(), "root"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(daemon.Stop(), os.RemoveAll(dir)); err != nil {
		t.Fatal(err)
	}
}

// writeChanged writes the blocks of a file that are others than those of the one before, and returns how many they are.
func writeChanged(to io.WriterAt, before, after string) (blocks int, err error) {
	const blockBytes, runBytes = 4096, 1 << 20 // a file system is whole runs
	a, errA := os.Open(before)
	b, errB := os.Open(after)
	if err := errors.Join(errA, errB); err != nil {
		return 0, err
	}
	defer a.Close()
	defer b.Close()
	old, now := make([]byte, runBytes), make([]byte, runBytes)
	for at := int64(0); ; at += runBytes {
		_, errA := io.ReadFull(a, old)
		n, errB := io.ReadFull(b, now)
		if errors.Is(errA, io.EOF) && errors.Is(errB, io.EOF) {
			return blocks, nil
		}
		if err := errors.Join(errA, errB); err != nil {
			return blocks, err
		}
		for i := 0; i < n && !bytes.Equal(old, now); i += blockBytes {
			if p := now[i : i+blockBytes]; !bytes.Equal(old[i:i+blockBytes], p) {
				if _, err := to.WriteAt(p, at+int64(i)); err != nil {
					return blocks, err
				}
				blocks++
			}
		}
	}
}

// sh runs a script in the machine, which fails with its first command that fails, and returns what it printed.
func (m *node) sh(t *testing.T, vm *VM, what, script string, args ...string) string {
	t.Helper()
	began := time.Now()
	var out strings.Builder
	exit, err := vm.Run(t.Context(), Job{Argv: append([]string{"sh", "-euc", script}, args...), Output: &out, Timeout: 4 * time.Minute})
	if err != nil || !exit.OK() {
		log, _ := vm.Output(t.Context(), "sh", "-c", "dmesg | tail -60")
		t.Fatalf("%s: %v %+.200v\n%s\n%s", what, err, exit, out.String(), log)
	}
	t.Logf("%s: %.1f s", what, time.Since(began).Seconds())
	return out.String()
}

// wantBooted wants a machine to have booted from a layer, to know that this was a good boot and which layers have failed, and to have a file that says which layer it is.
func (m *node) wantBooted(t *testing.T, vm *VM, layers string, want booting.Status, failed ...string) {
	t.Helper()
	out := m.sh(t, vm, "status", statusOfGood)
	var st booting.Status
	said, found := strings.CutPrefix(out, layers)
	if err := json.Unmarshal([]byte(said), &st); err != nil || !found {
		t.Fatalf("status, behind %q: %q (%v)", layers, out, err)
	}
	if st.Told != want.Told || st.Booted != want.Booted || st.Attempts != 0 || fmt.Sprint(st.Failed) != fmt.Sprint(failed) {
		t.Errorf("%+v, want %+v and %v failed", st, want, failed)
	}
	t.Logf("booted from %s, told %s, failed %v", st.Booted, st.Told, st.Failed)
}

// saysInTheEnd waits until the console has a text, whatever failed before.
func saysInTheEnd(t *testing.T, vm *VM, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), systemLimit)
	defer cancel()
	if err := vm.says(ctx, text, nil); err != nil {
		t.Fatalf("%v\n%s", err, vm.Report())
	}
}
