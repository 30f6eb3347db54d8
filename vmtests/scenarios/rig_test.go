//go:build vm

package scenarios

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"coppice/node"
)

// disk is the path of a disk that the harness attached, as the kernel names it.
func disk(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.EvalSymlinks("/dev/disk/by-id/virtio-" + name)
	if err != nil {
		t.Fatalf("find disk %s: %v", name, err)
	}
	return path
}

// slow is how long a command may take without being mentioned in the log.
const slow = 3 * time.Second

// command runs a program and returns its output, both streams, and whether it ended with status 0.
func command(t *testing.T, limit time.Duration, argv ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit) // the cleanup of a test runs commands too
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.WaitDelay = 5 * time.Second
	began := time.Now()
	out, err := cmd.CombinedOutput()
	if took := time.Since(began); took > slow {
		t.Logf("%.1f s: %.80q", took.Seconds(), strings.Join(argv, " "))
	}
	if err != nil {
		err = fmt.Errorf("run %q: %w\n%s", argv, err, out)
	}
	return string(out), err
}

// sh runs a shell script and fails the test where a command in it fails.
func sh(t *testing.T, script string) string {
	t.Helper()
	out, err := command(t, 4*time.Minute, "sh", "-ec", script)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// coppice runs the command line tool and fails the test where it fails.
func coppice(t *testing.T, args ...string) string {
	t.Helper()
	out, err := command(t, 2*time.Minute, append([]string{"coppice"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// refused runs a command that must fail, and checks that it says so in the wanted words, and what to do, with status 1.
func refused(t *testing.T, want string, argv ...string) {
	t.Helper()
	out, err := command(t, 2*time.Minute, argv...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("%q: %v, want status 1\n%s", argv, err, out)
		return
	}
	if !strings.Contains(out, want) || !strings.Contains(out, "to do:") {
		t.Errorf("%q says %q, want %q and what to do", argv, out, want)
	}
	t.Logf("%s", strings.TrimSpace(out))
}

// daemon is a running coppice daemon with its log.
type daemon struct {
	binary string
	cmd    *exec.Cmd
	log    *os.File
	ended  chan error
	killed bool
}

// startDaemon starts the daemon and waits until it answers. It is stopped with the test, and its log printed where the
// test failed.
func startDaemon(t *testing.T, flags ...string) *daemon {
	t.Helper()
	d := launchDaemon(t, "coppice", flags...)
	t.Cleanup(func() { d.cleanup(t) })
	d.awaitAnswer(t)
	return d
}

// cleanup stops the daemon where it runs, and prints its log where the test failed.
func (d *daemon) cleanup(t *testing.T) {
	t.Helper()
	if err := d.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if t.Failed() {
		t.Logf("--- daemon %d\n%s", d.cmd.Process.Pid, d.text())
	}
	d.log.Close()
}

// launchDaemon starts a build's daemon, and neither waits nor cleans up.
func launchDaemon(t *testing.T, binary string, flags ...string) *daemon {
	t.Helper()
	log, err := os.CreateTemp(t.TempDir(), "daemon-")
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{binary: binary, cmd: exec.Command(binary, append([]string{"daemon"}, flags...)...), log: log, ended: make(chan error, 1)}
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { d.ended <- d.cmd.Wait() }()
	return d
}

// text is what the daemon has logged.
func (d *daemon) text() string {
	text, err := os.ReadFile(d.log.Name())
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// awaitAnswer waits until the daemon answers.
func (d *daemon) awaitAnswer(t *testing.T) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		_, err := command(t, 10*time.Second, d.binary, "list")
		if err == nil {
			return
		}
		select {
		case early := <-d.ended:
			d.ended <- early
			t.Fatalf("the daemon ended before it answered: %v", early)
		default:
		}
		if time.Since(began) > 30*time.Second {
			t.Fatalf("the daemon does not answer: %v", err)
		}
	}
}

// end signals the daemon, where it still runs, and waits for its end.
func (d *daemon) end(sig syscall.Signal) error {
	_ = d.cmd.Process.Signal(sig)
	d.killed = d.killed || sig == syscall.SIGKILL
	select {
	case err := <-d.ended:
		d.ended <- err
		if d.killed {
			return nil
		}
		return err
	case <-time.After(time.Minute):
		return errors.Join(fmt.Errorf("the daemon does not end a minute after %v", sig), d.cmd.Process.Signal(syscall.SIGQUIT))
	}
}

// stop ends the daemon by SIGTERM in the middle of a test.
func (d *daemon) stop(t *testing.T) {
	t.Helper()
	if err := d.end(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
}

// create makes a device and returns what the daemon says of it.
func create(t *testing.T, name, root, leaf string, flags ...string) node.Device {
	t.Helper()
	args := append([]string{"create", name, "--root", root, "--leaf", leaf, "-o", "json"}, flags...)
	var d node.Device
	if err := json.Unmarshal([]byte(coppice(t, args...)), &d); err != nil {
		t.Fatalf("read what create printed: %v", err)
	}
	if d.State != node.StateLive || d.Path == "" {
		t.Fatalf("created device: %+v", d)
	}
	return d
}

// createForTest is create, with the device deleted at the end of the test where that has not been done yet.
func createForTest(t *testing.T, name, root, leaf string, flags ...string) node.Device {
	t.Helper()
	d := create(t, name, root, leaf, flags...)
	t.Cleanup(func() {
		// Without a daemon there is nothing to delete any more.
		if text, err := command(t, time.Minute, "coppice", "list"); err == nil && strings.Contains(text, name+" ") {
			coppice(t, "delete", name)
		}
	})
	return d
}

// format makes a leaf store on a disk, whatever is there.
func format(t *testing.T, path string) {
	t.Helper()
	coppice(t, "store", "format", "--force", path)
}

// checkStore wants a store to be sound.
func checkStore(t *testing.T, path string) {
	t.Helper()
	t.Log(strings.TrimSpace(coppice(t, "store", "check", path)))
}

// mountPoint mounts a device and returns the directory; it is unmounted with the test.
func mountPoint(t *testing.T, device, options string) string {
	t.Helper()
	dir := t.TempDir()
	sh(t, "mount "+options+" "+device+" "+dir)
	t.Cleanup(func() { unmount(t, dir) })
	return dir
}

// unmount takes a file system and all below it away, where something is mounted there.
func unmount(t *testing.T, dir string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(mounts, []byte(" "+dir+" ")) {
		sh(t, "umount -R "+dir)
	}
}
