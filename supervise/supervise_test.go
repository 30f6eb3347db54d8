package supervise_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coppice/internal/resident"
	"coppice/supervise"
)

// patience is how long anything may take on a busy machine.
const patience = 2 * time.Minute

// The test binary is the program that is supervised, too.
func TestMain(m *testing.M) {
	if os.Args[0] != "@coppice" {
		os.Exit(m.Run())
	}
	err := errors.ErrUnsupported
	switch {
	case len(os.Args) == 2 && os.Args[1] == "supervise":
		err = supervise.Run(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	case len(os.Args) == 4:
		err = beDaemon(os.Args[2], os.Args[3])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// beDaemon is a daemon that serves nothing. It leaves its number in runDir.
func beDaemon(runDir, how string) error {
	err := resident.BecomeFlusher()
	if err != nil && mayLock() {
		return err
	}
	link, err := supervise.OpenLink()
	if err != nil {
		return err
	}
	switch how {
	case "fail":
		return errors.Join(errors.New("no such root"), link.Failed("no such root"))
	case "mute":
		return errors.New("never said")
	}
	if err := errors.Join(resident.LockMemory(), resident.SetName("coppice")); err != nil && mayLock() {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, supervise.StopSignal)
	if err := replaceFile(filepath.Join(runDir, "pid"), strconv.Itoa(os.Getpid())); err != nil {
		return err
	}
	if err := link.Ready(); err != nil {
		return err
	}
	for {
		select {
		case <-stop:
			return nil
		case <-link.Gone():
			return replaceFile(filepath.Join(runDir, "alone"), "")
		}
	}
}

func replaceFile(path, text string) error {
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

type rig struct {
	t           *testing.T
	runDir, log string
}

func newRig(t *testing.T) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("a mount namespace needs root")
	}
	r := &rig{t, t.TempDir(), filepath.Join(t.TempDir(), "log")}
	if err := os.WriteFile(r.log, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			text, err := os.ReadFile(r.log)
			t.Logf("log (%v):\n%s", err, text)
		}
	})
	return r
}

func (r *rig) options(how string, files ...string) supervise.Options {
	return supervise.Options{RunDir: r.runDir, Args: []string{how}, Files: files, Binds: r.binds(), Log: r.log}
}

// binds has the libraries, too: a test binary with the race detector is not static.
func (r *rig) binds() []string {
	all := []string{r.runDir}
	for _, dir := range []string{"/lib", "/lib64"} {
		if _, err := os.Stat(dir); err == nil {
			all = append(all, dir)
		}
	}
	return all
}

// start returns when a daemon serves that ends with the test at the latest.
func (r *rig) start(files ...string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	if err := supervise.Start(ctx, r.options("serve", files...)); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := r.stop(); err != nil && !errors.Is(err, supervise.ErrNoSupervisor) {
			r.t.Error(err)
		}
	})
}

func (r *rig) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return supervise.Stop(ctx, r.runDir)
}

// number reads the number of a process from a file of the run directory.
func (r *rig) number(name string) int {
	r.t.Helper()
	text, err := os.ReadFile(filepath.Join(r.runDir, name))
	if err != nil {
		r.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		r.t.Fatal(err)
	}
	return pid
}

// next waits for a daemon other than that of pid.
func (r *rig) next(pid int) int {
	r.t.Helper()
	now := pid
	r.await("another daemon", func() bool { now = r.number("pid"); return now != pid })
	return now
}

func (r *rig) await(what string, seen func() bool) {
	r.t.Helper()
	for began := time.Now(); !seen(); time.Sleep(time.Millisecond) {
		if time.Since(began) > patience {
			r.t.Fatalf("%s does not come", what)
		}
	}
}

func (r *rig) kill(pid int, sig syscall.Signal) {
	r.t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		r.t.Fatal(err)
	}
}

// All threads of both processes are flushers, both are of a program in memory, locked, with systemd's sign, and see nothing but their own root.
func TestBothAreApartFromTheSystem(t *testing.T) {
	dir := t.TempDir()
	kept, other := filepath.Join(dir, "etc", "kept"), filepath.Join(dir, "other")
	if err := errors.Join(os.Mkdir(filepath.Dir(kept), 0o755), os.WriteFile(kept, []byte("kept"), 0o640), os.WriteFile(other, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	r := newRig(t)
	r.start(filepath.Dir(kept), filepath.Join(dir, "absent"))
	session := map[int]int{}
	for _, pid := range []int{r.number(supervise.PIDFile), r.number("pid")} {
		proc := fmt.Sprintf("/proc/%d/", pid)
		assertFlusher(t, pid)
		if exe, err := os.Readlink(proc + "exe"); err != nil || !strings.HasPrefix(exe, "/memfd:") {
			t.Errorf("process %d is of %q (%v)", pid, exe, err)
		}
		if line, err := os.ReadFile(proc + "cmdline"); err != nil || line[0] != '@' {
			t.Errorf("process %d is called %q (%v)", pid, line, err)
		}
		if score, err := os.ReadFile(proc + "oom_score_adj"); mayLock() && (err != nil || strings.TrimSpace(string(score)) != "-1000") {
			t.Errorf("out-of-memory score of %d is %q (%v)", pid, score, err)
		}
		if text, err := os.ReadFile(proc + "root" + kept); err != nil || string(text) != "kept" {
			t.Errorf("process %d finds %q in %s (%v)", pid, text, kept, err)
		}
		if _, err := os.Stat(proc + "root" + other); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("process %d finds what it was not given: %v", pid, err)
		}
		assertMounts(t, pid, r.binds()...)
		assertLocked(t, pid)
		sid, err := unix.Getsid(pid)
		if err != nil {
			t.Fatal(err)
		}
		session[sid] = pid
	}
	if len(session) != 2 {
		t.Errorf("sessions: %v", session)
	}
}

// mayLock tells whether this process has the capability that memory locks and flags need (CAP_SYS_RESOURCE). Where it has not, that
// is left to the same test in a virtual machine.
func mayLock() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&header, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

func assertFlusher(t *testing.T, pid int) {
	t.Helper()
	if !mayLock() {
		return
	}
	flags, err := resident.ThreadFlags(pid)
	if err != nil {
		t.Fatal(err)
	}
	for tid, f := range flags {
		if f&resident.FlusherFlags != resident.FlusherFlags {
			t.Errorf("thread %d of %d has the flags %#x", tid, pid, f)
		}
	}
	if len(flags) == 0 {
		t.Errorf("process %d has no threads", pid)
	}
}

// assertMounts asserts that nothing is mounted that the daemon was not given.
func assertMounts(t *testing.T, pid int, given ...string) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/mounts", pid))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{"/": true, "/dev": true, "/proc": true, "/run": true, "/sys": true}
	for _, g := range given {
		want[g] = true
	}
	for line := range strings.Lines(string(text)) {
		if at := strings.Fields(line)[1]; !want[at] {
			t.Errorf("process %d has %s", pid, line)
		}
	}
}

// assertLocked asserts that the memory of a process is locked.
func assertLocked(t *testing.T, pid int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	if !mayLock() {
		return
	}
	values := map[string]string{}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		values[key] = strings.TrimSpace(value)
	}
	if values["VmLck"] == "0 kB" {
		t.Errorf("process %d has locked nothing", pid)
	}
	t.Logf("process %d: %s in memory, %s of %s addresses locked", pid, values["VmRSS"], values["VmLck"], values["VmSize"])
}

func TestDeadDaemonIsStartedAgain(t *testing.T) {
	r := newRig(t)
	r.start()
	pid, supervisor := r.number("pid"), r.number(supervise.PIDFile)
	for range 4 {
		r.kill(pid, syscall.SIGKILL)
		pid = r.next(pid)
		assertFlusher(t, pid)
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		r.kill(supervisor, sig)
	}
	r.kill(pid, syscall.SIGKILL)
	r.next(pid)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	for _, p := range []int{supervisor, r.number("pid")} {
		r.await("the end of both", func() bool { return ended(p) })
	}
	if err := r.stop(); !errors.Is(err, supervise.ErrNoSupervisor) {
		t.Errorf("stopped again: %v", err)
	}
}

func TestDaemonOutlivesSupervisor(t *testing.T) {
	r := newRig(t)
	r.start()
	pid := r.number("pid")
	r.kill(r.number(supervise.PIDFile), syscall.SIGKILL)
	r.await("word of the daemon", func() bool { _, err := os.Stat(filepath.Join(r.runDir, "alone")); return err == nil })
	r.await("its end", func() bool { return ended(pid) })
}

// ended tells whether a process has ended, also where nobody has asked how.
func ended(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(text), ") Z ")
}

// What keeps the first daemon from serving is said, and nothing is left.
func TestFirstDaemonThatFailsIsReported(t *testing.T) {
	for how, want := range map[string]string{"fail": "no such root", "mute": "exit status 1"} {
		r := newRig(t)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := supervise.Start(ctx, r.options(how)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", how, err)
		}
		if err := r.stop(); !errors.Is(err, supervise.ErrNoSupervisor) {
			t.Errorf("%s: left behind: %v", how, err)
		}
	}
}

func TestBadOptions(t *testing.T) {
	for want, o := range map[string]supervise.Options{
		`"run" is not an absolute path`:   {RunDir: "run", Args: []string{"serve"}},
		`"files" is not an absolute path`: {RunDir: "/run/x", Args: []string{"serve"}, Files: []string{"files"}},
		"no arguments":                    {RunDir: "/run/x"},
		"no such file":                    {RunDir: "/run/x", Args: []string{"serve"}, Program: "/nonexistent", Log: os.DevNull},
	} {
		if err := supervise.Start(t.Context(), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// A daemon that dies is there again at once, and one that dies on and on soon, as everything that uses its devices waits. One that has lived long ends the count.
func TestPauses(t *testing.T) {
	long, ms := time.Minute, time.Millisecond
	got := supervise.Pauses(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, long, 0)
	want := []time.Duration{0, 0, 0, 0, 0, 100 * ms, 200 * ms, 400 * ms, 800 * ms, 1000 * ms, 1000 * ms, 1000 * ms, 0, 0}
	if !slices.Equal(got, want) {
		t.Errorf("pauses %v, want %v", got, want)
	}
}
