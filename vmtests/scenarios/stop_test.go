//go:build vm

package scenarios

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// restart is one end of the daemon and the beginning of the next.
type restart struct {
	signal syscall.Signal
	next   string // the build that follows
	early  bool   // the first one that follows is killed before it answers
}

// TestDaemonIsKilledUnderLoad kills the daemon again and again, some of its successors in the middle of their recovery, under
// fio that verifies, and under a mounted ext4 on a slow root, most of whose files are never synced. I/O waits, nothing fails,
// no write that was acknowledged is lost.
func TestDaemonIsKilledUnderLoad(t *testing.T) {
	var restarts []restart
	for n := 0; n < kills; n++ {
		r := restart{signal: syscall.SIGKILL, next: "coppice", early: len(restarts)%5 == 1}
		if r.early {
			n++
		}
		restarts = append(restarts, r)
	}
	endUnderLoad(t, disk(t, "leaf"), restarts, hooks{})
}

// TestDaemonIsReplacedUnderLoad ends the daemon by an order, for other builds, under the same load.
func TestDaemonIsReplacedUnderLoad(t *testing.T) {
	if a, b := sh(t, "coppice version | head -n 1"), sh(t, "coppice-next version | head -n 1"); a == b {
		t.Fatalf("both builds are %s", a)
	}
	var restarts []restart
	for _, next := range replacements {
		restarts = append(restarts, restart{signal: syscall.SIGTERM, next: next})
	}
	endUnderLoad(t, disk(t, "leaf"), restarts, hooks{})
}

// TestGhostWrites kills the daemon while its leaf's disk has its writes still before it, and starts the next one at once. They would
// arrive when that is at work, and write over what it has put there, if it did not have to wait for them.
func TestGhostWrites(t *testing.T) {
	const delay = 300 * time.Millisecond
	leaf := disk(t, "leaf")
	slow := linear(t, "ghosts", delayed(t, "slow", leaf, 0, 0))
	// dm-delay counts a request as under way only when its delay is over; what lies above it counts from the beginning.
	inFlight := func() int {
		text, err := os.ReadFile("/sys/block/" + dmName(t, slow) + "/inflight")
		if err != nil {
			t.Fatal(err)
		}
		var reads, writes int
		if _, err := fmt.Sscan(string(text), &reads, &writes); err != nil {
			t.Fatalf("read inflight: %v", err)
		}
		return writes
	}
	var ghosts []int // of each dead daemon
	endUnderLoad(t, slow, slices.Repeat([]restart{{signal: syscall.SIGKILL, next: "coppice"}}, ghostly), hooks{
		before: func() {
			setDelay(t, "slow", leaf, 0, delay)
			for began := time.Now(); inFlight() < 8; time.Sleep(time.Millisecond) {
				if time.Since(began) > time.Minute {
					t.Fatalf("only %d writes are under way", inFlight())
				}
			}
		},
		ended: func() { ghosts = append(ghosts, inFlight()) },
		after: func() { setDelay(t, "slow", leaf, 0, 0) },
	})
	if t.Logf("%v writes of dead daemons were under way", ghosts); slices.Contains(ghosts, 0) {
		t.Error("no write of a dead daemon was under way: there were no ghosts")
	}
}

// delayed makes a device that answers late.
func delayed(t *testing.T, name, device string, read, write time.Duration) string {
	t.Helper()
	sh(t, "modprobe dm-delay; echo "+delayTable(t, device, read, write)+" | dmsetup create --noudevsync "+name+"; dmsetup mknodes")
	t.Cleanup(func() { sh(t, "dmsetup remove --noudevsync "+name) })
	return "/dev/mapper/" + name
}

// linear makes a device that passes everything on.
func linear(t *testing.T, name, device string) string {
	t.Helper()
	sh(t, "echo 0 $(blockdev --getsz "+device+") linear "+device+" 0 | dmsetup create --noudevsync "+name+"; dmsetup mknodes")
	t.Cleanup(func() { sh(t, "dmsetup remove --noudevsync "+name) })
	return "/dev/mapper/" + name
}

func delayTable(t *testing.T, device string, read, write time.Duration) string {
	t.Helper()
	sectors := strings.TrimSpace(sh(t, "blockdev --getsz "+device))
	return fmt.Sprintf("0 %s delay %s 0 %d %s 0 %d", sectors, device, read.Milliseconds(), device, write.Milliseconds())
}

// setDelay changes how late the device answers from now on.
func setDelay(t *testing.T, name, device string, read, write time.Duration) {
	t.Helper()
	table := delayTable(t, device, read, write)
	sh(t, "dmsetup suspend --noudevsync "+name+"; echo "+table+" | dmsetup reload "+name+"; dmsetup resume --noudevsync "+name)
}

// dmName is the kernel's name of a device-mapper device.
func dmName(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint("dm-", unix.Minor(st.Rdev))
}

// hooks are called at each restart: when the load is at work, when the daemon was killed or has stopped, and when I/O has gone on.
type hooks struct{ before, ended, after func() }

func call(hook func()) {
	if hook != nil {
		hook()
	}
}

// endUnderLoad goes through the restarts with both devices busy, and looks at every byte after each.
func endUnderLoad(t *testing.T, leaf string, restarts []restart, hooks hooks) {
	t.Helper()
	format(t, leaf)
	mark := markKernelLog(t)
	served := newService(t)
	raw := createForTest(t, "raw", rawRoot(t, 32<<20), leaf)
	idle := createForTest(t, "idle", raw.Root.Path, leaf)
	web := createForTest(t, "web", delayed(t, "late", disk(t, "debian"), 3*time.Millisecond, 0), leaf)
	dir := mountPoint(t, web.Path, "-t ext4")
	lines := startWriter(t, dir+"/srv/records")
	jobs := startFio(raw.Path)
	held, err := os.Open(raw.Path) // between fio's jobs too: a planned stop takes a device that nobody has open
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { held.Close() })
	files := []*scribbler{newScribbler(dir+"/srv/direct", true), newScribbler(dir+"/srv/cached", false)}
	t.Cleanup(func() { lines.stop.Store(true); jobs.stop.Store(true) }) // where the test ends early
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	var waits []time.Duration
	for i, step := range restarts {
		stop := scribble(t, files)
		lines.waitProgress()
		time.Sleep(time.Duration(rng.IntN(400)) * time.Millisecond)
		call(hooks.before)
		served.stop(step.signal)
		t.Logf("%d: %v", i, step.signal)
		died := time.Now()
		if step.signal == syscall.SIGTERM && !strings.Contains(served.text(), "QUIESCED") {
			t.Error("the daemon left devices in use and did not say so")
		}
		call(hooks.ended)
		resumed := probe(died, raw.Path, web.Path)
		if step.early {
			served.launch(step.next)
			time.Sleep(time.Duration(rng.IntN(400)) * time.Millisecond)
			served.stop(syscall.SIGKILL)
		}
		served.launch(step.next)
		waits = append(waits, served.awaitIO(resumed))
		call(hooks.after)
		lines.waitProgress()
		stop()
		verify(t, files)
	}
	for began := time.Now(); strings.Count(coppice(t, "list"), "live") != 3; time.Sleep(20 * time.Millisecond) {
		if time.Since(began) > time.Minute {
			t.Fatalf("not all devices are live:\n%s", coppice(t, "list"))
		}
	}
	waitForFile(t, idle.Path)
	slices.Sort(waits)
	t.Logf("%d restarts: I/O went on after %d ms (median), %d ms (p99); %d daemons came too early", len(waits),
		waits[len(waits)/2].Milliseconds(), waits[len(waits)*99/100].Milliseconds(), served.refused)
	lines.finish()
	jobs.finish(t)
	held.Close()
	unmount(t, dir)
	sh(t, "e2fsck -fn "+web.Path+"; mount -o ro "+web.Path+" "+dir)
	verify(t, files)
	unmount(t, dir)
	for _, name := range []string{"web", "idle", "raw"} {
		coppice(t, "delete", name)
	}
	served.stop(syscall.SIGTERM)
	t.Log(strings.TrimSpace(coppice(t, "store", "check", "--no-data", leaf))) // all data has been read
	noKernelErrors(t, mark)
}

// service is a daemon and those that came before it.
type service struct {
	*daemon
	t       *testing.T
	before  []*daemon
	refused int // started while the one before was not quite gone
}

// newService starts a daemon. The last one of the service is stopped with the test, and all logs printed where it failed.
func newService(t *testing.T) *service {
	t.Helper()
	s := &service{t: t}
	s.launch("coppice")
	t.Cleanup(func() {
		s.cleanup(t)
		for _, d := range s.before {
			if t.Failed() {
				t.Logf("--- daemon %d, before\n%s", d.cmd.Process.Pid, d.text())
			}
			d.log.Close()
		}
	})
	s.awaitAnswer(t)
	return s
}

func (s *service) launch(binary string) { s.daemon = launchDaemon(s.t, binary) }

// stop ends the daemon. A killed one is not waited for: while the kernel still has I/O of it, it is not gone.
func (s *service) stop(sig syscall.Signal) {
	s.t.Helper()
	s.before = append(s.before, s.daemon)
	if sig == syscall.SIGKILL {
		s.killed = true
		_ = s.cmd.Process.Kill()
	} else if err := s.end(sig); err != nil {
		s.t.Fatal(err)
	}
}

// awaitIO waits for the answer to a probe. A daemon that finds its killed predecessor still there ends, and is started again.
func (s *service) awaitIO(resumed <-chan probed) time.Duration {
	s.t.Helper()
	limit := time.After(time.Minute)
	for {
		select {
		case p := <-resumed:
			if p.err != nil {
				s.t.Fatalf("read while no daemon ran: %v", p.err)
			}
			return p.took
		case err := <-s.ended:
			s.ended <- err
			if !strings.Contains(s.text(), "another daemon is running") {
				s.t.Fatalf("the daemon ended: %v", err)
			}
			s.refused++
			s.killed = true
			s.before = append(s.before, s.daemon)
			s.launch(s.binary)
		case <-limit:
			s.t.Fatal("I/O does not go on a minute after the daemon was started")
		}
	}
}

// probed is how long I/O took.
type probed struct {
	took time.Duration
	err  error
}

// probe reads from each device past the page cache, and tells when the last has answered.
func probe(since time.Time, devices ...string) <-chan probed {
	done := make(chan probed, 1)
	go func() {
		var group errgroup.Group
		for _, device := range devices {
			group.Go(func() error {
				_, err := exec.Command("dd", "if="+device, "of=/dev/null", "bs=4k", "count=1", "iflag=direct", "status=none").Output()
				return err
			})
		}
		err := group.Wait()
		done <- probed{time.Since(since), err}
	}()
	return done
}

// writer appends numbered lines to a file, each written through, until it is told to stop.
type writer struct {
	t    *testing.T
	path string
	done atomic.Int64 // lines acknowledged
	stop atomic.Bool
	end  chan error
}

func startWriter(t *testing.T, path string) *writer {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND|os.O_SYNC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	w := &writer{t: t, path: path, end: make(chan error, 1)}
	go func() {
		defer f.Close()
		for n := int64(0); !w.stop.Load(); n++ {
			if _, err := fmt.Fprintf(f, "record %d %s\n", n, strings.Repeat("x", int(n%3000))); err != nil {
				w.end <- err
				return
			}
			w.done.Add(1)
		}
		w.end <- nil
	}()
	return w
}

// waitProgress waits until the writer has written some more lines.
func (w *writer) waitProgress() {
	w.t.Helper()
	from := w.done.Load()
	for began := time.Now(); w.done.Load() < from+20; time.Sleep(5 * time.Millisecond) {
		if time.Since(began) > time.Minute {
			w.t.Fatalf("the writer makes no progress after %d lines", from)
		}
		select {
		case err := <-w.end:
			w.end <- err
			w.t.Fatalf("the writer ended: %v", err)
		default:
		}
	}
}

// finish stops the writer and wants every line in the file.
func (w *writer) finish() {
	w.t.Helper()
	w.stop.Store(true)
	if err := <-w.end; err != nil {
		w.t.Fatalf("write: %v", err)
	}
	sh(w.t, "sync; echo 3 >/proc/sys/vm/drop_caches")
	f, err := os.Open(w.path)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	n := int64(0)
	for lines := bufio.NewScanner(f); lines.Scan(); n++ {
		if want := fmt.Sprintf("record %d %s", n, strings.Repeat("x", int(n%3000))); lines.Text() != want {
			w.t.Fatalf("line %d is %.60q, want %.60q", n, lines.Text(), want)
		}
	}
	if n != w.done.Load() {
		w.t.Errorf("%d lines in the file, %d were acknowledged", n, w.done.Load())
	}
	w.t.Logf("%d lines are all there", n)
}
