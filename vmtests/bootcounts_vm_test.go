//go:build vm && long

package vmtests

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"coppice/image/imagetest"
)

// How often what TestBoot does once is done. Fewer show less, in less time.
var (
	bootKills = flag.Int("boot-kills", 50, "how often TestBootKills kills the instance that serves the root")
	bootCuts  = flag.Int("boot-cuts", 30, "how often TestBootCuts cuts the power")
)

// churn installs packages and takes them away, over and over, until there is /run/enough.
const churn = `export DEBIAN_FRONTEND=noninteractive; n=0
while [ ! -e /run/enough ]; do
apt-get -y -q --no-install-recommends install jq rsync && jq --version && rsync --version && apt-get -y -q purge jq rsync || exit 1
n=$((n+1)); done; echo "$n rounds"`

// TestBootKills kills the instance that serves the root again and again, while fio verifies what it writes and packages come and go. Nothing fails, nothing
// is lost, and the file system is clean when the machine has been shut down.
func TestBootKills(t *testing.T) {
	l := newMachineLab(t, Systemd)
	m := l.node(t, "kills", l.web.address)
	vm := l.boot(t, m)
	m.prepareInstall(t, vm)
	var work sync.WaitGroup
	run := func(what, script string) {
		work.Go(func() {
			var out strings.Builder
			exit, err := vm.Run(t.Context(), Job{Argv: []string{"sh", "-c", script}, Output: &out, Timeout: 2 * time.Hour})
			if err != nil || !exit.OK() {
				t.Errorf("%s: %v, %v\n%s", what, exit, err, lastLines(out.String(), 40))
			}
			t.Logf("%s: %s", what, lastLines(out.String(), 1))
		})
	}
	run("fio", "while [ ! -e /run/enough ]; do "+load+"20 || exit 1; done; echo verified")
	run("installing", churn)
	var waits []time.Duration
	for n := range *bootKills {
		time.Sleep(time.Duration(500+rand.IntN(2500)) * time.Millisecond)
		waits = append(waits, killServing(t, vm, n))
	}
	if _, err := vm.Output(t.Context(), "touch", "/run/enough"); err != nil {
		t.Fatal(err)
	}
	work.Wait()
	t.Logf("%d kills; I/O went on after %v (median), %v (longest)", len(waits), quantile(waits, 0.5), quantile(waits, 1))
	wantNoIOErrors(t, "the kernel's log", kernelLogOf(t, vm))
	if out, err := vm.Output(t.Context(), "dpkg", "--verify"); err != nil || strings.Contains(out, "/usr/") {
		t.Errorf("dpkg --verify: %v\n%s", err, out)
	}
	examineRoot(t, vm)
	m.shutDown(t, vm)
}

// killServing kills the instance that serves the root and returns how long I/O waited.
func killServing(t *testing.T, vm *VM, n int) time.Duration {
	t.Helper()
	const script = `for f in /proc/[0-9]*/cmdline; do case "$(tr '\0' ' ' <$f)" in @*" daemon"*) pid=${f#/proc/}; pid=${pid%/cmdline};; esac; done
began=$(cut -d' ' -f1 /proc/uptime); kill -9 $pid
dd if=/dev/ublkb0 of=/dev/null bs=4k count=1 iflag=direct status=none && echo $pid $began $(cut -d' ' -f1 /proc/uptime)`
	out, err := vm.Output(t.Context(), "sh", "-c", script)
	var pid int
	var began, ended float64
	if _, scanErr := fmt.Sscan(out, &pid, &began, &ended); err != nil || scanErr != nil {
		t.Fatalf("kill %d: %q, %v, %v", n, out, err, scanErr)
	}
	return time.Duration((ended - began) * float64(time.Second))
}

// TestBootCuts cuts the power again and again while packages are installed. The machine boots after each, its file system is clean when its journal has been replayed, and what
// had been synced is there.
func TestBootCuts(t *testing.T) {
	l := newMachineLab(t, Systemd)
	m := l.node(t, "cuts", l.web.address)
	synced := make(map[string]string)
	for n := range *bootCuts {
		vm := l.boot(t, m)
		if n == 0 {
			m.prepareInstall(t, vm)
		} else {
			m.wantSynced(t, vm, synced)
		}
		const again = `mountpoint -q /mnt/repo || mount -o ro /dev/disk/by-id/virtio-repo /mnt/repo; rm -f /var/lib/dpkg/lock* /var/lib/apt/lists/lock
dpkg --configure -a && apt-get -y -q -f install && apt-get -y -q purge jq rsync tmux sqlite3; rm -rf /srv/synced`
		if out, err := vm.Output(t.Context(), "sh", "-c", again); err != nil {
			t.Fatalf("mend what the cut has interrupted: %v\n%s", err, out)
		}
		synced = m.cutDuringInstall(t, vm, "jq rsync tmux sqlite3", time.Duration(1000+rand.IntN(9000))*time.Millisecond)
		wantClean(t, offline(t, m.leaf, m.disk), true)
		if t.Failed() {
			t.Fatalf("after cut %d", n+1)
		}
	}
	vm := l.boot(t, m)
	m.wantSynced(t, vm, synced)
	m.shutDown(t, vm)
}

// outage is how long the servers of the root are gone.
const outage = time.Minute

// TestBootWithoutServers boots a machine while its root's server is gone, which it says and waits for. Then the server goes while the machine works, and comes back:
// what is read meanwhile waits, and nothing fails.
func TestBootWithoutServers(t *testing.T) {
	l := newMachineLab(t, Systemd)
	m := l.node(t, "alone", l.web.address)
	l.web.stop()
	m.cfg.Until = "no server of the root answers; trying again until one does"
	vm := l.start(t, m)
	time.Sleep(5 * time.Second)
	l.web.start()
	if err := vm.Says(t.Context(), "a server of the root answers: going on"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), systemLimit)
	defer cancel()
	if err := vm.Greet(ctx); err != nil {
		t.Fatal(err)
	}
	m.prepareInstall(t, vm)
	var read sync.WaitGroup
	read.Go(func() {
		began := time.Now()
		exit, err := vm.Run(t.Context(), Job{Argv: []string{"sh", "-c", "find /usr/lib /usr/share -xdev -type f | head -3000 | xargs cat | sha256sum"}, Timeout: 10 * time.Minute})
		if err != nil || !exit.OK() {
			t.Errorf("read files: %v, %v", exit, err)
		}
		t.Logf("files were read in %.1f s", time.Since(began).Seconds())
	})
	time.Sleep(2 * time.Second)
	l.web.stop()
	began := time.Now()
	var install sync.WaitGroup
	install.Go(func() {
		exit, err := vm.Run(t.Context(), Job{Argv: []string{"sh", "-c", installing + "jq"}, Timeout: 10 * time.Minute})
		if err != nil || !exit.OK() {
			t.Errorf("install: %v, %v", exit, err)
		}
		t.Logf("the installation, begun when the server went, took %.1f s", time.Since(began).Seconds())
	})
	time.Sleep(outage)
	l.web.start()
	install.Wait()
	read.Wait()
	m.wantInstalled(t, vm, "jq")
	wantNoIOErrors(t, "the kernel's log", withoutHungTasks(kernelLogOf(t, vm)))
	m.shutDown(t, vm)
}

// withoutHungTasks leaves out what the kernel says of programs that wait for a read that is not answered yet: it is so while a server is gone.
func withoutHungTasks(log string) string {
	var kept strings.Builder
	for line := range strings.Lines(log) {
		if !strings.Contains(line, "blocked for more than") && !strings.Contains(line, "hung_task") {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

// TestBootBadInput boots machines that cannot come up. Each says why on the console and what to do, and leaves its disks as they are.
func TestBootBadInput(t *testing.T) {
	l := newMachineLab(t, Systemd)
	sound := l.node(t, "sound", l.web.address)
	for _, c := range []struct {
		name, old, with string // in the kernel's arguments
		fill            string // what is on the leaf disk
		want            string
	}{
		{name: "unknown image", old: "root:debian:1", with: "root:debian:9", want: "not found"},
		{name: "leaf disk missing", old: "virtio-leaf,format", with: "virtio-other,format,wait=2s", want: "has not appeared"},
		{name: "leaf not to be formatted", old: "virtio-leaf,format", with: "virtio-leaf", want: "nothing allows to make one on it"},
		{name: "leaf with something on it", fill: "precious", want: "it is not empty"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := l.node(t, strings.ReplaceAll(c.name, " ", "-"), l.web.address)
			if err := writeAt(m.leaf, c.fill); err != nil {
				t.Fatal(err)
			}
			before, _, err := FileDigest(m.leaf, 64<<20)
			if err != nil {
				t.Fatal(err)
			}
			m.cfg.KernelArgs = strings.Replace(sound.cfg.KernelArgs, c.old, c.with, 1)
			m.cfg.Until = c.want
			vm := l.start(t, m)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := vm.Says(ctx, "(initramfs)"); err != nil {
				t.Error(err)
			}
			t.Log(lastLines(vm.console(), 6))
			if err := vm.Kill(); err != nil {
				t.Error(err)
			}
			if after, _, err := FileDigest(m.leaf, 64<<20); err != nil || after != before {
				t.Errorf("the leaf disk was changed (%v)", err)
			}
		})
	}
}

func writeAt(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}

// netbootPage has the files of the server, and netbootHost what the server is called there.
const (
	netbootPage = "docs/netboot.md"
	netbootHost = "10.0.2.2:8080"
)

// TestNetboot boots a machine that has no disk at all, by what docs/netboot.md says: the firmware (iPXE) loads a script, the kernel and the initramfs from nginx, and what the
// system writes is in memory.
func TestNetboot(t *testing.T) {
	l := newMachineLab(t, Systemd)
	page, err := os.ReadFile(filepath.Join(l.b.Repo(), netbootPage))
	if err != nil {
		t.Fatal(err)
	}
	www := filepath.Join(l.dir, "web")
	config := strings.Replace(block(t, string(page), "server {"), "root /srv/www;", "root "+www+";", 1)
	server := imagetest.NginxServer(t, strings.Replace(config, "listen 8080;", "listen ADDR;", 1))
	script := strings.ReplaceAll(block(t, string(page), "#!ipxe"), netbootHost, inGuest(server))
	script = strings.Replace(script, " quiet", " quiet clearcpuid=rep_good tsc=reliable clocksource=tsc no_timer_check "+bootArgs, 1)
	if err := os.WriteFile(filepath.Join(www, "boot.ipxe"), []byte(script), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, file := range map[string]string{"vmlinuz": l.system.Kernel, "initrd.img": l.system.Initrd} {
		if _, err := command(t.Context(), "", "cp", file, filepath.Join(www, name)); err != nil {
			t.Fatal(err)
		}
	}
	m := l.node(t, "diskless", server)
	m.cfg.Own, m.cfg.Disks, m.cfg.KernelArgs = &OwnKernel{Netboot: "http://" + inGuest(server) + "/boot.ipxe"}, nil, ""
	vm := l.boot(t, m)
	examineRoot(t, vm)
	out, err := vm.Output(t.Context(), "sh", "-c", "echo kept in memory >/root/note; sync; cat /root/note; coppice --run-dir /run/coppice-root inspect root")
	if err != nil || !strings.Contains(out, "kept in memory") {
		t.Errorf("%v: %s", err, out)
	}
	t.Log(out)
	if err := vm.PowerOff(t.Context()); err != nil {
		t.Error(err)
	}
	wantNoIOErrors(t, "the console", vm.console())
}

// block returns the block of code on a page that begins with a line, without its indentation.
func block(t *testing.T, page, first string) string {
	t.Helper()
	_, rest, found := strings.Cut(page, "\n    "+first)
	if !found {
		t.Fatalf("%s has no block that begins with %q", netbootPage, first)
	}
	text := first
	for line := range strings.Lines(rest) {
		inside, ok := strings.CutPrefix(line, "    ")
		if !ok && text != first {
			break
		}
		if !ok {
			inside = line // the rest of the first line
		}
		text += inside
	}
	return text
}

// TestBootSysVinit boots a Debian with System V's init, whose root is an xfs: it comes up, is shut down, and the next boot has what was written.
func TestBootSysVinit(t *testing.T) {
	l := newMachineLab(t, SysVinit)
	m := l.node(t, "sysvinit", l.web.address)
	for n := range 2 {
		vm := l.boot(t, m)
		examineRoot(t, vm)
		out, err := vm.Output(t.Context(), "sh", "-c", "cat /proc/1/comm; findmnt -no FSTYPE /; echo boot >>/root/boots; cat /root/boots")
		if want := "init\nxfs\n" + strings.Repeat("boot\n", n+1); err != nil || out != want {
			t.Errorf("the system says %q, want %q (%v)", out, want, err)
		}
		if err := vm.PowerOff(t.Context()); err != nil {
			t.Error(err)
		}
		wantNoIOErrors(t, "the console", vm.console())
		if err := vm.Kill(); err != nil {
			t.Error(err)
		}
		if out, err := command(t.Context(), "", "xfs_repair", "-n", offline(t, m.leaf, m.disk)); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}
}

// quantile is the duration that a share q of all do not exceed.
func quantile(all []time.Duration, q float64) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[int(q*float64(len(sorted)-1))]
}
