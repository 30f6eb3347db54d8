//go:build vm

package main

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"coppice/node"
)

// vmRig is a run directory, a root with a file system and a leaf store, all on tmpfs, in a guest with the
// real ublk driver.
type vmRig struct {
	t                      *testing.T
	dir, runDir, root, mnt string
	leaf                   string
	bootID                 string // file with the boot id that the daemon sees; "": the kernel's
}

func newVMRig(t *testing.T) *vmRig {
	t.Helper()
	dir := t.TempDir()
	r := &vmRig{
		t: t, dir: dir, runDir: filepath.Join(dir, "run"), root: filepath.Join(dir, "root.img"),
		mnt: filepath.Join(dir, "mnt"), leaf: filepath.Join(dir, "leaf"),
	}
	r.sh("truncate -s " + rootSize + " " + r.root + " && mkfs.ext4 -q -F " + r.root + " && mkdir " + r.mnt)
	r.ok("store", "format", r.leaf, "--size", "256M")
	return r
}

func (r *vmRig) sh(script string) string {
	r.t.Helper()
	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	if err != nil {
		r.t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

func (r *vmRig) coppice(args ...string) (string, error) {
	cmd := exec.Command("coppice", args...)
	cmd.Env = append(os.Environ(), "COPPICE_RUN_DIR="+r.runDir)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (r *vmRig) ok(args ...string) string {
	r.t.Helper()
	out, err := r.coppice(args...)
	if err != nil {
		r.t.Fatalf("coppice %q: %v\n%s", args, err, out)
	}
	return out
}

// refused runs a command that must fail with code 1, the words want, and what to do.
func (r *vmRig) refused(want string, args ...string) {
	r.t.Helper()
	out, err := r.coppice(args...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitFailed || !strings.Contains(out, want) || !strings.Contains(out, "to do: ") {
		r.t.Errorf("coppice %q: %v\n%s", args, err, out)
	}
}

func (r *vmRig) create(name string, flags ...string) node.Device {
	r.t.Helper()
	var d node.Device
	args := append([]string{"create", name, "--root", r.root, "--leaf", r.leaf, "-o", "json"}, flags...)
	if err := json.Unmarshal([]byte(r.ok(args...)), &d); err != nil {
		r.t.Fatal(err)
	}
	return d
}

func (r *vmRig) inspect(name string) node.Device {
	r.t.Helper()
	var d node.Device
	if err := json.Unmarshal([]byte(r.ok("inspect", name, "-o", "json")), &d); err != nil {
		r.t.Fatal(err)
	}
	return d
}

// kernelDevices returns the nodes of ublk devices that there are.
func (r *vmRig) kernelDevices() []string {
	r.t.Helper()
	nodes, err := filepath.Glob("/dev/ublk[bc]*")
	if err != nil {
		r.t.Fatal(err)
	}
	return nodes
}

// nothingLeft asserts that the kernel has no device and the run directory no record.
func (r *vmRig) nothingLeft() {
	r.t.Helper()
	records, err := filepath.Glob(filepath.Join(r.runDir, "devices", "*"))
	if nodes := r.kernelDevices(); len(nodes) > 0 || len(records) > 0 || err != nil {
		r.t.Errorf("left: %v %v %v", nodes, records, err)
	}
}

// vmDaemon is a coppice daemon in a process of its own.
type vmDaemon struct {
	t     *testing.T
	cmd   *exec.Cmd
	log   string
	ended chan error
}

// start runs a daemon and waits until it answers.
func (r *vmRig) start(flags ...string) *vmDaemon {
	r.t.Helper()
	log, err := os.CreateTemp(r.dir, "log")
	if err != nil {
		r.t.Fatal(err)
	}
	argv := append([]string{"coppice", "--run-dir", r.runDir, "daemon"}, flags...)
	if r.bootID != "" {
		mount := "mount --bind " + r.bootID + " /proc/sys/kernel/random/boot_id && exec \"$@\""
		argv = append([]string{"unshare", "-m", "sh", "-ec", mount, "sh"}, argv...)
	}
	d := &vmDaemon{t: r.t, cmd: exec.Command(argv[0], argv[1:]...), log: log.Name(), ended: make(chan error, 1)}
	d.cmd.Stderr = log
	if err := errors.Join(d.cmd.Start(), log.Close()); err != nil {
		r.t.Fatal(err)
	}
	go func() { d.ended <- d.cmd.Wait() }()
	r.t.Cleanup(func() {
		d.signal(syscall.SIGKILL)
		if r.t.Failed() {
			r.t.Logf("--- log of daemon %d\n%s", d.cmd.Process.Pid, d.text())
		}
	})
	for began := time.Now(); ; {
		out, err := r.coppice("list")
		if err == nil {
			return d
		}
		if time.Since(began) > time.Minute {
			r.t.Fatalf("the daemon does not answer: %v\n%s", err, out)
		}
	}
}

func (d *vmDaemon) text() string {
	text, _ := os.ReadFile(d.log)
	return string(text)
}

func (d *vmDaemon) signal(s syscall.Signal) { _ = d.cmd.Process.Signal(s) }

// wait waits for the daemon to end, and returns how it did.
func (d *vmDaemon) wait() error {
	d.t.Helper()
	select {
	case err := <-d.ended:
		return err
	case <-time.After(time.Minute):
		d.signal(syscall.SIGQUIT)
		time.Sleep(time.Second)
		d.t.Fatalf("the daemon does not end; it says:\n%s", d.text())
		return nil
	}
}

// stop ends the daemon by SIGTERM.
func (d *vmDaemon) stop() {
	d.t.Helper()
	d.signal(syscall.SIGTERM)
	if err := d.wait(); err != nil {
		d.t.Fatalf("daemon ended with %v", err)
	}
}
