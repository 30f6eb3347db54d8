package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coppice/node"
	"coppice/node/nodetest"
)

// screenOf is a pseudo-terminal, and what was written to it.
type screenOf struct {
	t            *testing.T
	master, user *os.File

	mu   sync.Mutex
	text bytes.Buffer
}

func newScreen(t *testing.T, width, height int) *screenOf {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	s := &screenOf{t: t, master: os.NewFile(uintptr(fd), "ptmx")}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if s.user, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	s.resize(width, height)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p := make([]byte, 4096)
		for {
			n, err := s.master.Read(p)
			if errors.Is(err, unix.EIO) { // nobody has the other end just now
				time.Sleep(time.Millisecond)
				continue
			}
			if err != nil {
				return
			}
			s.mu.Lock()
			s.text.Write(p[:n])
			s.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		s.master.Close() // who reads keys has none any more
		<-ended
		s.user.Close()
	})
	return s
}

func (s *screenOf) resize(width, height int) {
	s.t.Helper()
	if err := unix.IoctlSetWinsize(int(s.user.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: uint16(width), Row: uint16(height)}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *screenOf) mode() unix.Termios {
	s.t.Helper()
	m, err := unix.IoctlGetTermios(int(s.user.Fd()), unix.TCGETS)
	if err != nil {
		s.t.Fatal(err)
	}
	return *m
}

func (s *screenOf) written() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// press types keys.
func (s *screenOf) press(keys string) {
	s.t.Helper()
	if _, err := s.master.WriteString(keys); err != nil {
		s.t.Fatal(err)
	}
}

// waitFor waits until a text is written after what has been so far.
func (s *screenOf) waitFor(from int, text string) {
	s.t.Helper()
	for began := time.Now(); !strings.Contains(s.written()[from:], text); time.Sleep(5 * time.Millisecond) {
		if time.Since(began) > 20*time.Second {
			got := s.written()[from:]
			s.t.Fatalf("%q does not come; there was, in the end, %q", text, got[max(len(got)-2500, 0):])
		}
	}
}

// topRig is a daemon with a device, and top on a terminal.
type topRig struct {
	*screenOf
	kernel *nodetest.Kernel
	dir    string
	daemon *nodetest.Daemon
}

func newTopRig(t *testing.T) *topRig {
	dir, err := os.MkdirTemp("", "coppice")
	if err != nil {
		t.Fatal(err)
	}
	r := &topRig{screenOf: newScreen(t, 80, 24), kernel: nodetest.NewKernel(), dir: dir}
	t.Cleanup(func() {
		_ = r.daemon.Stop() // it has been said where it failed
		os.RemoveAll(dir)
	})
	r.start()
	r.run("store", "format", filepath.Join(dir, "leaf"), "--size", "64M")
	root := filepath.Join(dir, "root")
	if err := os.WriteFile(root, bytes.Repeat([]byte("root"), 1<<18), 0o600); err != nil {
		t.Fatal(err)
	}
	r.run("create", "web1", "--root", root, "--leaf", filepath.Join(dir, "leaf"))
	return r
}

func (r *topRig) start() {
	r.t.Helper()
	d, err := nodetest.Start(r.kernel, node.Config{RunDir: filepath.Join(r.dir, "run"), Log: slog.New(slog.DiscardHandler), FullWait: "0",
		Images: node.ImageConfig{LocalPath: filepath.Join(r.dir, "local")}, Cache: node.CacheConfig{TracesPath: filepath.Join(r.dir, "traces")}})
	if err != nil {
		r.t.Fatal(err)
	}
	r.daemon = d
}

func (r *topRig) command(args ...string) *exec.Cmd {
	cmd := exec.Command("coppice", args...)
	cmd.Env = append(os.Environ(), "COPPICE_RUN_DIR="+filepath.Join(r.dir, "run"))
	return cmd
}

func (r *topRig) run(args ...string) {
	r.t.Helper()
	if out, err := r.command(args...).CombinedOutput(); err != nil {
		r.t.Fatalf("coppice %q: %v\n%s", args, err, out)
	}
}

// top starts it on the terminal, and returns when it has drawn.
func (r *topRig) top(args ...string) *exec.Cmd {
	r.t.Helper()
	cmd := r.command(append([]string{"top", "--interval", "100ms"}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = r.user, r.user, r.user
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	from := len(r.written())
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = cmd.Process.Kill() }) // where the test has not ended it
	r.waitFor(from, "web1")
	return cmd
}

// What a device reads between two looks is in the report, with where it came from.
func TestTopSeesReads(t *testing.T) {
	r := newTopRig(t)
	ref := "oci:" + filepath.Join(r.dir, "images") + ":root:1"
	r.run("image", "build", ref, filepath.Join(r.dir, "root"))
	r.run("create", "web2", "--root", ref, "--leaf", filepath.Join(r.dir, "leaf")+":web2")
	eye := &topEye{client: node.NewClient(filepath.Join(r.dir, "run"), ""), sys: t.TempDir()}
	before := eye.look(t.Context())
	p := make([]byte, 4096)
	for _, off := range []int64{0, 4096, 0} {
		if _, err := r.kernel.Disk(1).ReadAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
	rep := compareLooks(before, eye.look(t.Context()))
	if rep.Error != "" || len(rep.Devices) != 2 || len(rep.Roots) != 1 || len(rep.Stores) != 1 || rep.Roots[0].Devices[0] != "web2" {
		t.Fatalf("%+v", rep)
	}
	d := rep.Devices[1]
	if d.Rates == nil || math.Abs(d.Rates.Reads*rep.Seconds-3) > 1e-6 || math.Abs(d.Rates.ReadBytes*rep.Seconds-3*4096) > 1e-3 || rep.Devices[0].Rates.Reads != 0 {
		t.Errorf("%+v", d.Rates)
	}
	near(t, "hit ratio", d.HitRatio, 2./3)
	near(t, "hit ratio of the cache", rep.Cache.HitRatio, 2./3)
}

// However top ends, the terminal is as it was before, and shows what it showed.
func TestTopGivesTheTerminalBack(t *testing.T) {
	r := newTopRig(t)
	before := r.mode()
	signal := func(s os.Signal) func(*exec.Cmd) error {
		return func(cmd *exec.Cmd) error { return cmd.Process.Signal(s) }
	}
	press := func(keys string) func(*exec.Cmd) error {
		return func(*exec.Cmd) error { r.press(keys); return nil }
	}
	for name, end := range map[string]func(*exec.Cmd) error{
		"q": press("q"), "control-C": press("\x03"), "others first": press("><\x1b[C\x1b[Apxrpq"),
		"SIGTERM": signal(syscall.SIGTERM), "SIGINT": signal(syscall.SIGINT), "SIGHUP": signal(syscall.SIGHUP), "SIGQUIT": signal(syscall.SIGQUIT),
	} {
		from := len(r.written())
		cmd := r.top()
		if r.mode() == before {
			t.Errorf("%s: the terminal was not taken over", name)
		}
		if err := end(cmd); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if r.mode() != before {
			t.Errorf("%s: the terminal's mode is another one", name)
		}
		r.waitFor(from, escOwnScreen)
		if text := r.written(); strings.Count(text, escOtherScreen) != strings.Count(text, escOwnScreen) || !strings.HasSuffix(text, escOwnScreen) {
			t.Errorf("%s: %q", name, text[max(len(text)-200, 0):])
		}
	}
	cmd := r.top("-n", "2")
	if err := cmd.Wait(); err != nil || r.mode() != before {
		t.Errorf("-n 2: %v", err)
	}
}

// A daemon that ends is missed, and found when there is one again; the screen follows the size of the terminal; a pause is one.
func TestTopGoesOn(t *testing.T) {
	r := newTopRig(t)
	cmd := r.top()
	from := len(r.written())
	if err := r.daemon.Stop(); err != nil {
		t.Fatal(err)
	}
	r.waitFor(from, "no daemon is running")
	r.waitFor(from, "to do: start it: coppice daemon")
	from = len(r.written())
	r.start()
	r.waitFor(from, "web1     live")
	r.resize(30, 12)
	if err := unix.Kill(cmd.Process.Pid, unix.SIGWINCH); err != nil {
		t.Fatal(err)
	}
	from = len(r.written())
	r.waitFor(from, "q quit  p pause  < > sort (de…")
	r.press("p")
	r.waitFor(from, "PAUSED")
	r.press("q")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// A panic, also of what goes on in the background, leaves no terminal behind on which nothing can be typed.
func TestTopPanics(t *testing.T) {
	s := newScreen(t, 80, 24)
	before := s.mode()
	for name, do := range map[string]func(*terminal) error{
		"while drawing": func(*terminal) error { panic("here") },
		"in the background": func(on *terminal) error {
			return (&topSession{c: &topCmd{Interval: time.Millisecond}, terminal: on}).run(context.Background()) // which has nothing to look with
		},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			_ = onTerminal(s.user, s.user, do)
		}()
		if s.mode() != before {
			t.Errorf("%s: the terminal's mode is another one", name)
		}
	}
	s.waitFor(0, escOwnScreen)
}
