//go:build vm

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"coppice/internal/resident"
	"coppice/node"
	"coppice/supervise"
)

// rootDir is the run directory of the root's daemon.
const rootRunDir = "/run/coppice-root"

// newRootRig is a rig whose daemon is supervised, as one that serves a root file system is.
func newRootRig(t *testing.T) *vmRig {
	t.Helper()
	r := newVMRig(t)
	r.runDir = rootRunDir
	program, err := exec.LookPath("coppice")
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(r.dir, "log")
	r.sh("touch " + log)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	err = supervise.Start(ctx, supervise.Options{
		RunDir: r.runDir, Args: []string{"daemon"}, Binds: []string{r.dir}, Program: program, Log: log,
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, r.sh("cat "+log))
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if t.Failed() { // and may be in use still
			_ = exec.Command("sh", "-c", "pkill -9 -x fio; sleep 1; umount "+r.mnt).Run()
		}
		if err := supervise.Stop(ctx, r.runDir); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("--- log\n%s", r.sh("cat "+log))
		}
		r.sh("rm -r " + r.runDir)
	})
	return r
}

// daemonPID returns the number of the daemon's process, of the next one where this one is just dying.
func (r *vmRig) daemonPID() int {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	for {
		v, err := node.NewClient(r.runDir, "").Version(ctx)
		if err == nil {
			return v.PID
		}
		if ctx.Err() != nil {
			r.t.Fatal(err)
		}
	}
}

func (r *vmRig) supervisorPID() int {
	r.t.Helper()
	pid, err := strconv.Atoi(strings.TrimSpace(r.sh("cat " + r.runDir + "/" + supervise.PIDFile)))
	if err != nil {
		r.t.Fatal(err)
	}
	return pid
}

// verifying starts fio, which writes a file and reads it back for some seconds, and returns what waits for it: any wrong byte and any error fails the test.
func (r *vmRig) verifying(seconds int) (wait func()) {
	r.t.Helper()
	cmd := exec.Command("fio", "--name=verify", "--directory="+r.mnt, "--size=8M", "--rw=randrw", "--bs=4k-64k", "--direct=1", "--ioengine=libaio",
		"--iodepth=8", "--verify=crc32c", "--verify_fatal=1", "--time_based", fmt.Sprintf("--runtime=%d", seconds), "--output-format=terse")
	out := &strings.Builder{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	return func() {
		r.t.Helper()
		if err := cmd.Wait(); err != nil {
			r.t.Fatalf("fio: %v\n%s", err, out)
		}
	}
}

// assertProtected asserts that all threads of a process are I/O flushers, that its memory is locked, and that it has nothing of the device open or mounted.
func (r *vmRig) assertProtected(pid int, device string) {
	r.t.Helper()
	flags, err := resident.ThreadFlags(pid)
	if err != nil {
		r.t.Fatal(err)
	}
	for tid, f := range flags {
		if f&resident.FlusherFlags != resident.FlusherFlags {
			r.t.Errorf("thread %d of %d has the flags %#x", tid, pid, f)
		}
	}
	proc := fmt.Sprintf("/proc/%d/", pid)
	open, err := filepath.Glob(proc + "fd/*")
	if err != nil {
		r.t.Fatal(err)
	}
	var seen []string
	for _, f := range open {
		if to, err := os.Readlink(f); err == nil {
			seen = append(seen, to)
		}
	}
	for _, file := range []string{"maps", "mounts"} {
		seen = append(seen, r.sh("cat "+proc+file))
	}
	if all := strings.Join(seen, "\n"); strings.Contains(all, device) || strings.Contains(all, r.mnt) {
		r.t.Errorf("process %d has something of %s:\n%s", pid, device, all)
	}
	status := r.sh("grep -E '^(VmRSS|VmLck|VmSize|Threads|RssAnon|RssFile|RssShmem)' " + proc + "status")
	r.t.Logf("process %d, %d threads:\n%s", pid, len(flags), status)
	if !strings.Contains(status, "VmLck") || strings.Contains(status, "VmLck:\t       0 kB") {
		r.t.Errorf("process %d has not locked its memory", pid)
	}
}

// A supervised daemon is killed again and again, and stopped for a while, under a file system in use, which notices nothing but time.
func TestSupervisedDaemonIsKilledUnderLoad(t *testing.T) {
	r := newRootRig(t)
	dev := r.create("root")
	r.sh("mount " + dev.Path + " " + r.mnt)
	r.assertProtected(r.supervisorPID(), dev.Path)
	wait := r.verifying(superviseKills * superviseSeconds)
	for i := range superviseKills {
		pid := r.daemonPID()
		r.assertProtected(pid, dev.Path)
		began := time.Now()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for r.daemonPID() == pid {
			time.Sleep(5 * time.Millisecond)
		}
		r.sh("echo " + strconv.Itoa(i) + " > " + r.mnt + "/answered && sync " + r.mnt + "/answered")
		t.Logf("kill %d: written again after %v", i, time.Since(began).Round(time.Millisecond))
	}
	pid := r.daemonPID()
	for _, sig := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGTERM, syscall.SIGCONT} { // as systemd-shutdown does
		if err := errors.Join(syscall.Kill(pid, sig), syscall.Kill(r.supervisorPID(), sig)); err != nil {
			t.Fatal(err)
		}
		if sig == syscall.SIGTERM {
			time.Sleep(2 * time.Second)
		}
	}
	wait()
	if now := r.daemonPID(); now != pid {
		t.Errorf("SIGTERM ended the daemon: %d is followed by %d", pid, now)
	}
	r.sh("umount " + r.mnt + " && fsck.ext4 -fn " + dev.Path)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := supervise.Release(ctx, r.runDir, func(text string) { t.Log(text) }); err != nil {
		t.Fatal(err)
	}
	r.nothingLeft()
	if out := r.ok("store", "check", r.leaf); strings.Contains(out, "in use") {
		t.Error(out)
	}
}

// The last program of a machine unmounts its root, has the device stopped, and switches off. A name space of processes stands in for the machine: what it
// does last ends all of them, with a signal that tells what it was (reboot(2)).
func TestShutdownReleasesRoot(t *testing.T) {
	for verb, want := range map[string]syscall.Signal{"poweroff": syscall.SIGINT, "reboot": syscall.SIGHUP} {
		t.Run(verb, func(t *testing.T) { assertShutdown(t, verb, want) })
	}
}

func assertShutdown(t *testing.T, verb string, want syscall.Signal) {
	r := newRootRig(t)
	dev := r.create("root")
	dir := filepath.Join(r.dir, "initramfs")
	if err := supervise.InstallShutdown(dir, r.runDir); err != nil {
		t.Fatal(err)
	}
	// What systemd-shutdown does before it executes the program (src/shutdown/shutdown.c).
	script := fmt.Sprintf(`mount --make-rprivate / && cd %s && for d in dev run sys; do mount --bind /$d $d; done && mount -t proc proc proc &&
			mount %s oldroot && mkdir oldroot/below && mount -t tmpfs none oldroot/below && exec chroot . /shutdown %s --log-level 6`, dir, dev.Path, verb)
	cmd := exec.Command("unshare", "--mount", "--pid", "--fork", "sh", "-ec", script)
	out, err := cmd.CombinedOutput()
	t.Logf("%s: %v\n%s", verb, err, out)
	if text := string(out); !strings.Contains(text, "the former root is unmounted") || !strings.Contains(text, "its leaf is closed") || !strings.Contains(text, verb+" now") {
		t.Errorf("%s: not all was done", verb)
	}
	// unshare ends by the signal that its child did.
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !status.Signaled() || status.Signal() != want {
		t.Errorf("%s: the processes ended with %v, want %v", verb, cmd.ProcessState, want)
	}
	r.nothingLeft()
	r.ok("store", "check", r.leaf)
	r.sh("umount " + dir)
}
