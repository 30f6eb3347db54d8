package node_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coppice/internal/resident"
	"coppice/node"
	"coppice/node/nodetest"
)

// programName is what the test binary is called by when it is a program with a daemon.
const programName = "coppice"

// beProgram returns the exit code.
func beProgram() int {
	err := errors.ErrUnsupported
	switch i := slices.IndexFunc(os.Args, func(a string) bool { return a == "version" || a == "daemon" }); {
	case i > 0 && os.Args[i] == "version":
		err = json.NewEncoder(os.Stdout).Encode(node.ProgramVersion{Version: "next", API: node.APIVersion, Records: node.RecordFormat})
	case i > 0:
		err = beDaemon(os.Args[i+1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// beDaemon serves devices of a kernel that is made up, as a file says, and goes on as another program where it is told to.
func beDaemon(path string) error {
	cfg, err := node.ReadConfig(path, false)
	if err != nil {
		return err
	}
	cfg.Version = "test"
	d, err := nodetest.Start(nodetest.NewKernel(), cfg)
	if err != nil {
		return err
	}
	stopped := make(chan os.Signal, 1)
	signal.Notify(stopped, syscall.SIGTERM)
	select {
	case <-stopped:
	case <-d.Ended():
	}
	if err := d.Stop(); err != nil || d.Successor() == nil {
		return err
	}
	return unix.Exec(resident.Path(d.Successor()), os.Args, os.Environ())
}

// program is the test binary in memory, and its descriptor what an upgrade is asked for by.
func program(t *testing.T) *os.File {
	t.Helper()
	f, err := resident.Program(resident.Self)
	check(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// upgrade asks for an upgrade to the test binary.
func (r *rig) upgrade(id string) node.Upgrade {
	r.t.Helper()
	u, err := r.client().Upgrade(context.Background(), node.UpgradeRequest{ID: id, FD: int(program(r.t).Fd())})
	check(r.t, err)
	return u
}

// handOver begins the upgrade "one" of a daemon, and waits until that has handed its devices over.
func (r *rig) handOver(d *nodetest.Daemon) node.Upgrade {
	r.t.Helper()
	u := r.upgrade("one")
	select {
	case <-d.Ended():
	case <-time.After(2 * time.Minute):
		r.t.Fatalf("the daemon does not end:\n%s", r.log)
	}
	if d.Successor() == nil {
		r.t.Fatal("there is no successor")
	}
	check(r.t, d.Successor().Close())
	return u
}

func (r *rig) awaitUpgrade(id string) node.Upgrade {
	r.t.Helper()
	var last node.VersionInfo
	r.eventually("upgrade "+id, func() bool {
		v, err := r.client().Version(context.Background())
		last = v
		return err == nil && v.Upgrade != nil && v.Upgrade.ID == id && v.Upgrade.Outcome != node.UpgradeBegun
	})
	return *last.Upgrade
}

// A daemon hands its device over to another program in its own process, within the time that a planned upgrade may take.
func TestUpgradeInOneProcess(t *testing.T) {
	r := newRig(t)
	cmd := r.startProgram()
	r.create(r.request("web1"))
	var stalls []float64
	for i := range 5 {
		id := fmt.Sprint("attempt", i)
		r.upgrade(id)
		u := r.awaitUpgrade(id)
		if u.Outcome != node.UpgradeDone {
			t.Fatalf("%+v", u)
		}
		stalls = append(stalls, u.StallMS)
		wantSteps(t, u)
		v, err := r.client().Version(context.Background())
		check(t, err)
		if d := state(t, r, "web1"); v.PID != cmd.Process.Pid || d.State != node.StateLive {
			t.Fatalf("process %d, then %d, device %s", cmd.Process.Pid, v.PID, d.State)
		}
	}
	t.Logf("no device was served for %.1f ms", stalls)
	const goal, busy = 500, 20 // ms, and how much slower a machine may be
	if best := slices.Min(stalls); best > goal*busy {
		t.Errorf("the shortest stall is %.0f ms", best)
	}
	if last := "attempt4"; !node.UpgradeIsOver(r.cfg.RunDir, "attempt3") || node.UpgradeIsOver(r.cfg.RunDir, last) {
		t.Error("not the last upgrade, and no other, could go back")
	} else {
		check(t, cmd.Process.Signal(syscall.SIGTERM))
		r.eventually("the end of the last upgrade", func() bool { return node.UpgradeIsOver(r.cfg.RunDir, last) })
	}
}

// wantSteps wants the time of an upgrade to be made up of its steps.
func wantSteps(t *testing.T, u node.Upgrade) {
	t.Helper()
	names, took := stepsOf(u)
	sum := 0.0
	for _, d := range took {
		sum += d.Seconds() * 1000
	}
	if names != "requests driver stores program devices" || sum > u.StallMS+0.1 || sum < u.StallMS-100 {
		t.Errorf("steps %+v of a stall of %.3f ms", u.Steps, u.StallMS)
	}
}

func stepsOf(u node.Upgrade) (names string, took map[string]time.Duration) {
	var all []string
	took = make(map[string]time.Duration)
	for _, s := range u.Steps {
		all = append(all, s.Name)
		took[s.Name] = time.Duration(s.MS * float64(time.Millisecond))
	}
	return strings.Join(all, " "), took
}

// Roots are opened again without their servers, which may be far away or gone just then: an upgrade waits for none.
func TestUpgradeAsksNoServer(t *testing.T) {
	r := newRig(t)
	server := newPlace(t, filepath.Join(r.dir, "images"))
	_, r.root = server.build("a:1", imageContent(1))
	r.startProgram()
	r.create(r.request("web1"))
	server.up.Store(false)
	for _, id := range []string{"one", "two"} { // the second has from the first what that had not read itself
		r.upgrade(id)
		if u := r.awaitUpgrade(id); u.Outcome != node.UpgradeDone {
			t.Fatalf("%+v", u)
		}
		if d := state(t, r, "web1"); d.State != node.StateLive {
			t.Fatalf("the device is %s: %s", d.State, d.Error)
		}
	}
}

// startProgram runs a daemon in a process of its own, until the test ends.
func (r *rig) startProgram() *exec.Cmd {
	r.t.Helper()
	config := filepath.Join(r.dir, "coppice.toml")
	check(r.t, os.WriteFile(config, fmt.Appendf(nil, "run_dir = %q\n[cache]\ntraces = %q\n", r.cfg.RunDir, filepath.Join(r.dir, "traces")), 0o600))
	cmd := &exec.Cmd{Path: resident.Path(program(r.t)), Args: []string{programName, "daemon", config}, Stderr: os.Stderr}
	check(r.t, cmd.Start())
	r.t.Cleanup(func() { check(r.t, errors.Join(cmd.Process.Kill(), ignoreExit(cmd.Wait()))) })
	r.eventually("the daemon", func() bool { _, err := r.client().Version(context.Background()); return err == nil })
	return cmd
}

// ignoreExit is about a process that was killed.
func ignoreExit(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}

// A daemon that starts after an upgrade whose program is gone is the former one, or one that a service has, and says so; a device that was left is taken up.
func TestUpgradeGoesBack(t *testing.T) {
	for _, version := range []string{"test", "installed"} {
		t.Run(version, func(t *testing.T) { testUpgradeGoesBack(t, version) })
	}
}

func testUpgradeGoesBack(t *testing.T, version string) {
	r := newRig(t)
	d := r.start()
	r.create(r.request("web1"))
	r.write(0, "kept", 0)
	r.kernel.Hold(0, true)
	if u := r.handOver(d); u.To != "next" || u.From != "test" || u.Outcome != node.UpgradeBegun {
		t.Errorf("%+v", u)
	}
	if r.kernel.Disk(0) == nil {
		t.Fatal("the device is gone")
	}
	r.cfg.Version = version
	r.start()
	if u := r.awaitUpgrade("one"); u.Outcome != node.UpgradeWentBack {
		t.Errorf("%+v", u)
	}
	now, err := node.NewClient(r.cfg.RunDir, version).Inspect(context.Background(), "web1")
	check(t, err)
	if got := r.read(0, 0, 4); got != "kept" || now.State != node.StateLive {
		t.Errorf("read %q of a device that is %s", got, now.State)
	}
	r.kernel.Hold(0, false)
}

// What cannot take devices over changes nothing.
func TestUpgradeRefuses(t *testing.T) {
	r := newRig(t)
	r.cfg.MayHandOver = func() error { return nil }
	r.start()
	r.create(r.request("web1"))
	plain, err := os.Open(r.root)
	check(t, err)
	defer plain.Close()
	text := filepath.Join(r.dir, "text")
	check(t, os.WriteFile(text, []byte("#!/bin/sh\necho no\n"), 0o700))
	script, err := resident.Program(text)
	check(t, err)
	defer script.Close()
	other, err := resident.Program("/bin/true")
	check(t, err)
	defer other.Close()
	for want, f := range map[string]*os.File{"no sealed file": plain, "it answers \"no": script, `it answers ""`: other} {
		_, err := r.client().Upgrade(context.Background(), node.UpgradeRequest{ID: "one", FD: int(f.Fd())})
		if err == nil || !strings.Contains(err.Error(), want) || node.HintOf(err) == "" {
			t.Errorf("%s: %v", want, err)
		}
	}
	if _, err := r.client().Upgrade(context.Background(), node.UpgradeRequest{ID: "one", FD: 9999}); err == nil {
		t.Error("taken from nothing")
	}
	if state(t, r, "web1").State != node.StateLive {
		t.Error("the device is not served any more")
	}
}
