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

	"golang.org/x/sys/unix"

	"coppice/image/imagetest"
)

// How often what TestBoot does once is done. Fewer show less, in less time.
var (
	bootKills = flag.Int("boot-kills", 50, "how often TestBootKills kills the instance that serves the root")
	bootCuts  = flag.Int("boot-cuts", 30, "how often TestBootCuts cuts the power")
	bootTime  = flag.Duration("boot-time", 0, "how long TestBootCuts begins new boots, whatever -boot-cuts says; 0: there is no limit")
)

// churn installs packages and takes them away, over and over, until there is /run/enough.
const churn = `export DEBIAN_FRONTEND=noninteractive; n=0
while [ ! -e /run/enough ]; do
apt-get -y -q --no-install-recommends install jq rsync && jq --version && rsync --version && apt-get -y -q purge jq rsync || exit 1
n=$((n+1)); done; echo "$n rounds"`

// acknowledging writes files and says the SHA-256 of each when it is durable, until there is /run/enough.
const acknowledging = `mkdir -p /srv/synced; n=0
while [ ! -e /run/enough ]; do n=$((n+1)); file=/srv/synced/$n
head -c $((n*7919%60000+1)) /dev/urandom >$file; sync $file /srv/synced; sha256sum $file; sleep 0.1; done`

// TestBootKills kills the instance that serves the root again and again, while fio verifies what it writes, packages come and go, and files are made durable. Nothing fails, nothing
// is lost, and the file system is clean when the machine has been shut down.
func TestBootKills(t *testing.T) {
	t.Parallel()
	l := newMachineLab(t, Systemd)
	before := l.digest(t)
	m := l.node(t, "kills", l.web.address)
	m.bootShort()
	vm := l.boot(t, m)
	m.prepareInstall(t, vm)
	var work sync.WaitGroup
	run := func(what, script string) *strings.Builder {
		var out strings.Builder
		work.Go(func() {
			exit, err := vm.Run(t.Context(), Job{Argv: []string{"sh", "-c", script}, Output: &out, Timeout: 2 * time.Hour})
			if err != nil || !exit.OK() {
				t.Errorf("%s: %v, %v\n%s", what, exit, err, lastLines(out.String(), 40))
			}
			t.Logf("%s: %s", what, lastLines(out.String(), 1))
		})
		return &out
	}
	run("fio", "n=0; while [ ! -e /run/enough ]; do "+load+"20 || exit 1; n=$((n+1)); done; echo $n runs verified")
	run("installing", churn)
	sums := run("acknowledging", acknowledging)
	waits := killAgainAndAgain(t, vm, *bootKills)
	if _, err := vm.Output(t.Context(), "touch", "/run/enough"); err != nil {
		t.Fatal(err)
	}
	work.Wait()
	t.Logf("%d kills; I/O went on after %v (median), %v (longest)", len(waits), quantile(waits, 0.5), quantile(waits, 1))
	wantNoIOErrors(t, "the kernel's log", kernelLogOf(t, vm))
	wantWhole(t, vm, installing+"jq rsync")
	synced := parseSums(sums.String())
	t.Logf("%d files were made durable", len(synced))
	m.wantSynced(t, vm, synced)
	examineRoot(t, vm)
	m.shutDown(t, vm)
	if l.digest(t) != before {
		t.Error("the image was changed")
	}
}

// wantWhole runs a script, after which packages are to be as they came, and no package in between.
func wantWhole(t *testing.T, vm *VM, script string) {
	t.Helper()
	if out, err := vm.Output(t.Context(), "sh", "-c", script); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := vm.Output(t.Context(), "sh", "-c", "dpkg --audit; dpkg --verify jq libjq1 libonig5 rsync; jq --version >/dev/null && rsync --version >/dev/null"); err != nil || out != "" {
		t.Errorf("packages: %v\n%s", err, out)
	}
}

// parseSums reads what sha256sum prints.
func parseSums(text string) map[string]string {
	sums := make(map[string]string)
	for line := range strings.Lines(text) {
		if sum, path, ok := strings.Cut(strings.TrimSpace(line), "  "); ok && len(sum) == 64 {
			sums[path] = sum
		}
	}
	return sums
}

// killAgainAndAgain kills the instance that serves the root so often, at random moments, and returns how long I/O waited each time.
func killAgainAndAgain(t *testing.T, vm *VM, times int) (waits []time.Duration) {
	t.Helper()
	for n := range times {
		time.Sleep(time.Duration(rand.IntN(2500)) * time.Millisecond)
		waits = append(waits, killServing(t, vm, n))
		t.Logf("kill %d: I/O went on after %v", n+1, waits[n])
	}
	return waits
}

// killServing kills the instance that serves the root and returns how long I/O waited.
func killServing(t *testing.T, vm *VM, n int) time.Duration {
	t.Helper()
	const script = `pid=$(pgrep -n -f '^@.* daemon'); began=$(cut -d' ' -f1 /proc/uptime); kill -9 $pid
dd if=/dev/ublkb0 of=/dev/null bs=4k count=1 iflag=direct status=none && echo $pid $began $(cut -d' ' -f1 /proc/uptime)`
	out, err := vm.Output(t.Context(), "nice", "-n", "-19", "sh", "-c", script) // before all that keeps the machine busy
	var pid int
	var began, ended float64
	if _, scanErr := fmt.Sscan(out, &pid, &began, &ended); err != nil || scanErr != nil {
		t.Fatalf("kill %d: %q, %v, %v", n+1, out, err, scanErr)
	}
	return time.Duration((ended - began) * float64(time.Second))
}

// cutMachines is how many machines TestBootCuts has, which share the cuts.
const cutMachines = 2

// TestBootCuts cuts the power again and again while packages are installed, of two machines side by side. Each boots after each cut, its file system is clean when its journal has been
// replayed, and what had been synced is there. The image that they share stays what it is.
func TestBootCuts(t *testing.T) {
	t.Parallel()
	l := newMachineLab(t, Systemd)
	before := l.digest(t)
	t.Run("machines", func(t *testing.T) {
		for n := range cutMachines {
			t.Run(fmt.Sprint(n+1), func(t *testing.T) {
				t.Parallel()
				l.cutAgainAndAgain(t, fmt.Sprintf("cuts%d", n+1), (*bootCuts+n)/cutMachines)
			})
		}
	})
	if l.digest(t) != before {
		t.Error("the image was changed")
	}
}

// reinstall unpacks and configures packages, and mends what a cut has left of them first. It is what apt has dpkg do: where the processor is emulated, apt itself reads its
// lists for longer than the power is on.
const (
	mounting     = `mountpoint -q /mnt/repo || mount -o ro /dev/disk/by-id/virtio-repo /mnt/repo; export DEBIAN_FRONTEND=noninteractive; `
	reinstall    = `dpkg -i $(ls /mnt/repo/*.deb | grep -E '/(jq|libjq1|libonig5|rsync|sqlite3|tmux)_') || exit 1; `
	reinstalling = mounting + `while :; do ` + reinstall + `done`
)

// cutAgainAndAgain cuts a machine's power so often.
func (l *machineLab) cutAgainAndAgain(t *testing.T, name string, cuts int) {
	t.Helper()
	m := l.node(t, name, l.web.address)
	m.bootShort()
	synced, began := make(map[string]string), time.Now()
	for n := range cuts {
		if *bootTime > 0 && time.Since(began) > *bootTime {
			break
		}
		vm := l.boot(t, m)
		if n == 0 {
			m.prepareInstall(t, vm)
			m.sh(t, vm, "install", installing+"jq rsync sqlite3 tmux")
		} else {
			m.wantSynced(t, vm, synced)
		}
		m.sh(t, vm, "the boot is good", goodBoot)
		if strings.Contains(vm.console(), "attempt 2") {
			t.Error("a boot counts as failed that was good before its power was cut")
		}
		if _, err := vm.Output(t.Context(), "sh", "-c", "rm -rf /srv/synced; sync"); err != nil {
			t.Fatal(err)
		}
		synced = cutDuring(t, vm, reinstalling, "Unpacking ", time.Duration(3000+rand.IntN(12000))*time.Millisecond)
		wantClean(t, offline(t, m.leaf, m.disk), true)
		t.Logf("cut %d: the store is sound and the file system clean, %.0f s after the first boot began", n+1, time.Since(began).Seconds())
		if t.Failed() {
			t.FailNow()
		}
	}
	vm := l.boot(t, m)
	m.wantSynced(t, vm, synced)
	wantWhole(t, vm, mounting+reinstall+installing+"jq rsync")
	m.shutDown(t, vm)
}

// outage is how long the servers of the root are gone.
const outage = time.Minute

// TestBootWithoutServers boots a machine while its root's server is gone, which it says and waits for. Then the server goes while the machine works, and comes back:
// what is read meanwhile waits, and nothing fails.
func TestBootWithoutServers(t *testing.T) {
	t.Parallel()
	l := newMachineLab(t, Systemd)
	m := l.node(t, "alone", l.web.address)
	m.bootShort()
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

// TestBootBadInput boots machines that cannot come up. Each says why on the console and what to do, gives a shell or starts again where it was told to, and leaves its
// disks as they are.
func TestBootBadInput(t *testing.T) {
	t.Parallel()
	l := newMachineLab(t, Systemd)
	for _, c := range []struct {
		name, old, with string // in the kernel's arguments
		fill            string // what is on the leaf disk
		want            string
		again           bool // it starts again; false: the console gives a shell
	}{
		{name: "unknown image", old: "root:debian:1", with: "root:debian:9", want: "root:debian:9"},
		{name: "misspelt option", old: ",format", with: ",fromat", want: `option "fromat" is not known`},
		{name: "leaf disk missing", old: "virtio-leaf,format", with: "virtio-other,format,wait=2s", want: "has not appeared in 2s; there are"},
		{name: "leaf not to be formatted", old: "virtio-leaf,format", with: "virtio-leaf", want: "nothing allows to make one on it", again: true},
		{name: "leaf with something on it", fill: "precious", want: "it is not empty"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := l.node(t, strings.ReplaceAll(c.name, " ", "-"), l.web.address)
			if err := writeAt(m.leaf, c.fill); err != nil {
				t.Fatal(err)
			}
			before := contentOf(t, m.leaf)
			m.cfg.CPUs, m.cfg.KernelArgs = 1, strings.Replace(m.cfg.KernelArgs, c.old, c.with, 1)
			if m.cfg.Until = "Rebooting automatically"; !c.again {
				m.cfg.Until = "(initramfs)"
				m.cfg.KernelArgs += " panic=" // takes the harness's own back
			}
			vm := l.start(t, m)
			said := lastLines(vm.console(), 14)
			for _, want := range []string{"coppice: ", c.want, "  to do: "} {
				if !strings.Contains(said, want) {
					t.Errorf("the console lacks %q", want)
				}
			}
			t.Log(said)
			if err := vm.Kill(); err != nil {
				t.Error(err)
			}
			if contentOf(t, m.leaf) != before {
				t.Error("the leaf disk was changed")
			}
		})
	}
}

// contentOf tells whether a disk's file is what it was: by the digest of what it begins with, where a store would be, and how many blocks all of it has.
func contentOf(t *testing.T, path string) string {
	t.Helper()
	digest, _, err := FileDigest(path, 64<<20)
	var st unix.Stat_t
	if err == nil {
		err = unix.Stat(path, &st)
	}
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(digest, st.Blocks)
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
