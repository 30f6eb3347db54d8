//go:build vm

package vmtests

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"coppice/union"
)

// leafBytes is the size of a machine's leaf disk. It is blank at first.
const machineLeafBytes = 3 << 30

// leaseFree is what a store says of its lease after a clean close.
const leaseFree = "free"

// mostFetched is how much of what a boot reads it may fetch from the origin, compressed as it comes and with what is read ahead.
const mostFetched = 1.6

// TestBoot boots a Debian by its own initramfs from an image on a web server and a blank leaf, and works in it: the instance that serves its root is killed
// under fio and an installation, the system is shut down, its power is cut during another installation. After each it boots again, and what there was is there.
func TestBoot(t *testing.T) {
	t.Parallel()
	l := newMachineLab(t, Systemd)
	before := l.digest(t)
	m := l.node(t, "node", l.web.address)

	vm := l.boot(t, m)
	wantLittleFetched(t, vm, l.web.sent.Load())
	first := examineRoot(t, vm)
	m.prepareInstall(t, vm)
	m.install(t, vm, "jq", func() {
		killRootInstance(t, vm, first.daemon)
	})
	if again := examineRoot(t, vm); again.daemon == first.daemon {
		t.Errorf("process %d still serves the root", again.daemon)
	}
	m.shutDown(t, vm)

	if shortReboots {
		m.bootShort()
	}
	vm = l.boot(t, m)
	m.wantInstalled(t, vm, "jq")
	examineRoot(t, vm)
	m.prepareInstall(t, vm)
	synced := m.cutDuringInstall(t, vm, "nginx-light sqlite3", 8*time.Second)
	wantClean(t, offline(t, m.leaf, m.disk), true)

	vm = l.boot(t, m)
	m.wantInstalled(t, vm, "jq")
	m.wantSynced(t, vm, synced)
	m.shutDown(t, vm)
	if l.digest(t) != before {
		t.Error("the image was changed")
	}
}

// machineLab is a system as an image on a web server, and machines that boot from it.
type machineLab struct {
	b      *Build
	dir    string
	system System
	web    *web
	repo   Disk
}

func newMachineLab(t *testing.T, kind Kind) *machineLab {
	t.Helper()
	return newMachineLabOf(t, kind, func(*testing.T, string) {})
}

// newMachineLabOf is newMachineLab for a system whose disk is changed before it becomes an image.
func newMachineLabOf(t *testing.T, kind Kind, change func(t *testing.T, disk string)) *machineLab {
	t.Helper()
	l := &machineLab{b: newBuild(t), dir: t.TempDir()}
	deb, err := l.b.Package(t.Context())
	if err == nil {
		l.system, err = l.b.SystemOf(t.Context(), kind, deb)
	}
	if err == nil {
		l.system, err = l.system.copied(t.Context(), l.dir)
	}
	if err == nil {
		l.repo, err = l.b.ImageDisk(t.Context(), ImageRepo)
	}
	if err == nil {
		err = l.b.need(t.Context(), "dumpe2fs", "e2fsck")
	}
	if err != nil {
		t.Fatal(err)
	}
	change(t, l.system.Image)
	began := time.Now()
	report := buildRoot(t, filepath.Join(l.dir, "web", "root"), l.system.Image)
	t.Logf("image of %d MiB stored in %.1f MiB, in %.1f s", report.SizeBytes>>20, mib(report.StoredBytes+report.TableBytes), time.Since(began).Seconds())
	l.web = startWeb(t, filepath.Join(l.dir, "web"))
	return l
}

// digest is that of everything on the web server.
func (l *machineLab) digest(t *testing.T) string {
	t.Helper()
	all := make(map[string]string)
	err := filepath.WalkDir(filepath.Join(l.dir, "web"), func(path string, entry os.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			all[path], _, err = FileDigest(path, math.MaxInt64)
		}
		return err
	})
	if err != nil || len(all) == 0 {
		t.Fatalf("digest of %d files: %v", len(all), err)
	}
	return fmt.Sprint(all) // in the order of their names
}

// node is a machine that is switched on and off again, and keeps its leaf.
type node struct {
	cfg  Config
	leaf string // the disk's file
	disk string // what the image was made of
}

// node makes one with a blank leaf, whose root is the image at an address of this machine.
func (l *machineLab) node(t *testing.T, name, address string) *node {
	t.Helper()
	m := &node{leaf: filepath.Join(l.dir, name+".leaf"), disk: l.system.Image}
	if err := SparseFile(m.leaf, machineLeafBytes); err != nil {
		t.Fatal(err)
	}
	m.cfg = Config{
		Name: name, CPUs: 2, MemMiB: 1024, Own: l.system.Own(), Network: true, Until: "login: ",
		Disks: []Disk{{Name: "leaf", Path: m.leaf}, l.repo},
		KernelArgs: strings.Join([]string{
			bootArgs, traceArgs, "root=/dev/ublkb0 ip=dhcp",
			"coppice.root=" + imageAt(inGuest(address)), "coppice.leaf=/dev/disk/by-id/virtio-leaf,format",
		}, " "),
	}
	return m
}

// boot switches a machine on and waits until it asks for a login and answers.
func (l *machineLab) boot(t *testing.T, m *node) *VM {
	t.Helper()
	began, sent := time.Now(), l.web.sent.Load()
	vm := l.start(t, m)
	prompt := time.Since(began)
	if err := vm.Greet(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: login prompt after %.1f s, the origin sent %.2f MiB", m.cfg.Name, prompt.Seconds(), mib(l.web.sent.Load()-sent))
	return vm
}

// start switches a machine on and waits until the console has what the machine is to say.
func (l *machineLab) start(t *testing.T, m *node) *VM {
	t.Helper()
	m.cfg.Consoles = t.ArtifactDir()
	vm, err := l.b.Boot(t.Context(), m.cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() && !strings.HasPrefix(vm.console(), noConsole) {
			t.Log(vm.Report())
		}
		if err := vm.Kill(); err != nil {
			t.Error(err)
		}
	})
	return vm
}

// wantLittleFetched compares what has been sent to a machine with what it has read, since it was switched on.
func wantLittleFetched(t *testing.T, vm *VM, sent int64) {
	t.Helper()
	device, err := vm.Output(t.Context(), "cat", "/sys/block/ublkb0/dev")
	if err != nil {
		t.Fatal(err)
	}
	trace, err := vm.Output(t.Context(), "cat", "/sys/kernel/tracing/trace")
	if err != nil {
		t.Fatal(err)
	}
	read := distinctRead(trace, strings.ReplaceAll(strings.TrimSpace(device), ":", ","))
	if read < 4<<20 {
		t.Fatalf("the machine has read %d bytes of its root: that is no boot\n%s", read, lastLines(trace, 5))
	}
	t.Logf("the machine read %.2f MiB in distinct blocks of 4 KiB, and was sent %.2f MiB: %.2f of it", mib(read), mib(sent), float64(sent)/float64(read))
	if float64(sent) > mostFetched*float64(read) {
		t.Errorf("%.2f of what was read was sent, want at most %.1f", float64(sent)/float64(read), mostFetched)
	}
}

// killRootInstance ends the process that serves the root, and waits until another one does.
func killRootInstance(t *testing.T, vm *VM, pid int) {
	t.Helper()
	began := time.Now()
	// What dd reads past the page cache is answered by the next process. Shell, dd and their libraries are in memory.
	const script = `dd if=/dev/ublkb0 of=/dev/null bs=4k count=1 iflag=direct status=none
kill -9 $0; dd if=/dev/ublkb0 of=/dev/null bs=4k count=1 iflag=direct status=none`
	if _, err := vm.Output(t.Context(), "sh", "-c", script, fmt.Sprint(pid)); err != nil {
		t.Fatal(err)
	}
	t.Logf("process %d was killed, and I/O went on after %.1f s", pid, time.Since(began).Seconds())
}

// prepareInstall makes the local repository the only source of packages.
func (m *node) prepareInstall(t *testing.T, vm *VM) {
	t.Helper()
	const script = `set -e; mkdir -p /mnt/repo; mount -o ro /dev/disk/by-id/virtio-repo /mnt/repo
echo 'deb [trusted=yes] file:/mnt/repo ./' >/etc/apt/sources.list
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d
apt-get -q update`
	if _, err := vm.Output(t.Context(), "sh", "-c", script); err != nil {
		t.Fatal(err)
	}
}

// installing is apt-get, with names of packages to follow.
const installing = "DEBIAN_FRONTEND=noninteractive apt-get -y -q --no-install-recommends install "

// load is fio, which compares what it has written.
const load = `fio --name=load --filename=/var/tmp/load --size=48M --bs=4k --rw=randwrite --direct=1 --ioengine=libaio --iodepth=8 --verify=crc32c ` +
	`--verify_backlog=512 --verify_fatal=1 --time_based --runtime=`

// install installs packages beside fio, with meanwhile in the middle of it, and wants all three to succeed and the kernel to have seen no error.
func (m *node) install(t *testing.T, vm *VM, packages string, meanwhile func()) {
	t.Helper()
	var wait sync.WaitGroup
	run := func(what, script string) {
		wait.Go(func() {
			began := time.Now()
			if out, err := vm.Output(t.Context(), "sh", "-c", script); err != nil {
				t.Errorf("%s: %v\n%s", what, err, out)
			}
			t.Logf("%s took %.1f s", what, time.Since(began).Seconds())
		})
	}
	run("fio", load+"15")
	run("apt-get install "+packages, installing+packages)
	time.Sleep(3 * time.Second)
	meanwhile()
	wait.Wait()
	wantNoIOErrors(t, "the kernel's log", kernelLogOf(t, vm))
}

// shutDown switches the machine off as its user would, and wants that to leave everything clean.
func (m *node) shutDown(t *testing.T, vm *VM) {
	t.Helper()
	m.off(t, vm)
	m.wantLeafClean(t)
}

// off switches the machine off as its user would.
func (m *node) off(t *testing.T, vm *VM) {
	t.Helper()
	began := time.Now()
	if err := vm.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: off after %.1f s", m.cfg.Name, time.Since(began).Seconds())
	t.Log(lastLines(vm.console(), 12))
	wantNoIOErrors(t, "the console", vm.console())
	if !strings.Contains(vm.console(), "reboot: Power down") {
		t.Errorf("the machine was not switched off\n%s", vm.Report())
	}
	if err := vm.Kill(); err != nil {
		t.Error(err)
	}
}

// wantLeafClean wants the leaf that the machine has left to be closed, and the file system in it to need nothing: no journal to replay, no error.
func (m *node) wantLeafClean(t *testing.T) {
	t.Helper()
	s, err := union.OpenStore(m.leaf, union.StoreOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	info := s.Info()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if info.Lease == nil || info.Lease.State != leaseFree || info.Recovery.Records > 0 {
		t.Errorf("the leaf was not closed: lease %+v, recovery %+v", info.Lease, info.Recovery)
	}
	path := offline(t, m.leaf, m.disk)
	header, err := command(t.Context(), "", "dumpe2fs", "-h", path)
	if err != nil || !strings.Contains(header, "Filesystem state:         clean\n") || strings.Contains(header, "needs_recovery") {
		t.Errorf("the file system was not unmounted cleanly (%v):\n%s", err, header)
	}
	wantClean(t, path, false)
}

// wantInstalled wants a package and its program.
func (m *node) wantInstalled(t *testing.T, vm *VM, name string) {
	t.Helper()
	out, err := vm.Output(t.Context(), "sh", "-c", "dpkg-query -W -f '${Status}' "+name+"; "+name+" --version >/dev/null")
	if err != nil || out != "install ok installed" {
		t.Errorf("package %s: %q, %v", name, out, err)
	}
}

// syncing writes files of its own and says the name and SHA-256 of each when it is durable.
const syncing = `mkdir -p /srv/synced; n=$(ls /srv/synced | wc -l)
while :; do n=$((n+1)); file=/srv/synced/$n
head -c $((n*7919%60000+1)) /dev/urandom >$file; sync $file /srv/synced; sha256sum $file; done`

// cutDuringInstall begins to install packages, and beside that to write files, and cuts the power some time after. It returns the digests of the files that were durable.
func (m *node) cutDuringInstall(t *testing.T, vm *VM, packages string, after time.Duration) map[string]string {
	t.Helper()
	return cutDuring(t, vm, installing+packages, "", after)
}

// cutDuring begins what a script does, which must not go wrong, and beside that to write files, and cuts the power some time after the first is durable and the script has said a
// text. It returns the digests of the files that were durable.
func cutDuring(t *testing.T, vm *VM, work, text string, after time.Duration) map[string]string {
	t.Helper()
	synced := make(map[string]string)
	read, write := io.Pipe()
	var wait sync.WaitGroup
	said := &listener{text: text, heard: make(chan struct{})}
	run := func(script string, output io.Writer) {
		wait.Go(func() {
			exit, err := vm.Run(t.Context(), Job{Argv: []string{"sh", "-c", script}, Output: output})
			if !errors.Is(err, ErrGuestGone) && !(err == nil && exit.OK()) {
				t.Errorf("%s: %v, %v", script, exit, err)
			}
		})
	}
	begun := make(chan struct{})
	wait.Go(func() {
		begin := sync.OnceFunc(func() { close(begun) })
		defer begin()
		for lines := bufio.NewScanner(read); lines.Scan(); {
			if sum, path, ok := strings.Cut(lines.Text(), "  "); ok && len(sum) == 64 {
				synced[path] = sum
				begin()
			}
		}
	})
	run(syncing, write)
	run(work, said)
	ctx, cancel := context.WithTimeout(t.Context(), outputLimit)
	defer cancel()
	for _, begun := range []chan struct{}{begun, said.heard} {
		select {
		case <-begun:
		case <-ctx.Done():
			t.Errorf("%s: %q not said, or no file durable, for too long", work, text)
		}
	}
	time.Sleep(after)
	if err := vm.Kill(); err != nil {
		t.Error(err)
	}
	time.AfterFunc(3*time.Second, func() { _ = write.Close() })
	wait.Wait()
	t.Logf("the power was cut %.1f s later, when %d files were durable and the last word was %q", after.Seconds(), len(synced), lastLines(said.String(), 1))
	if len(synced) == 0 {
		t.Error("no file was durable")
	}
	if t.Failed() {
		t.Log(said.String())
	}
	return synced
}

// wantSynced wants files with their digests.
func (m *node) wantSynced(t *testing.T, vm *VM, synced map[string]string) {
	t.Helper()
	out, err := vm.Output(t.Context(), "sh", "-c", "sha256sum /srv/synced/*")
	if err != nil {
		t.Error(err)
	}
	found := make(map[string]string)
	for line := range strings.Lines(out) {
		if sum, path, ok := strings.Cut(strings.TrimSpace(line), "  "); ok {
			found[path] = sum
		}
	}
	maps.DeleteFunc(synced, func(path, sum string) bool { return found[path] == sum })
	for path, sum := range synced {
		t.Errorf("%s was durable with %s, and is %q", path, sum, found[path])
	}
}

// listener keeps what is written to it, from one goroutine at a time.
type listener struct {
	bytes.Buffer
	text  string
	heard chan struct{} // closed when it has the text
	once  sync.Once
}

// Write takes it all.
func (l *listener) Write(p []byte) (int, error) {
	l.Buffer.Write(p)
	if strings.Contains(l.String(), l.text) {
		l.once.Do(func() { close(l.heard) })
	}
	return len(p), nil
}
