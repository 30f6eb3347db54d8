//go:build vm

package powercut

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// recorder is the system at work.
type recorder struct {
	t     *testing.T
	store string
	seed  uint64
	ids   chan uint64 // numbers of contents, each once

	mu    sync.Mutex // guards what follows
	marks *os.File
	page  []byte
}

// TestRecord works on an ext4, an xfs and a plain device, all on one store, and marks what it does and what it was promised. In
// the middle of it a device is frozen and the daemon killed.
func TestRecord(t *testing.T) {
	r := newRecorder(t)
	r.coppice("store", "format", "--force", r.store) // there is a store where the harness tries a second time
	daemon := r.startDaemon()
	root := map[string]string{Ext4Layer: Ext4Disk, XFSLayer: XFSDisk, RawLayer: RawDisk}
	paths := make(map[string]string)
	for _, layer := range []string{Ext4Layer, XFSLayer, RawLayer} {
		out := r.coppice("create", layer, "--root", disk(t, root[layer]), "--leaf", r.store)
		paths[layer] = strings.TrimSuffix(strings.Fields(out)[1], ",")
	}
	dirs := map[string]string{Ext4Layer: t.TempDir(), XFSLayer: t.TempDir()}
	for fs, dir := range dirs {
		r.sh("mount -t " + fs + " " + paths[fs] + " " + dir)
	}
	r.mark(Event{Kind: Ready})
	var work errgroup.Group
	for fs, dir := range dirs {
		work.Go(func() error { return r.workOnFiles(fs, dir) })
	}
	for i := range RawClients {
		work.Go(func() error { return r.workOnBlocks(i, paths[RawLayer]) })
	}
	time.Sleep(2 * time.Second)
	r.coppice("freeze", Ext4Layer, "--as", "frozen")
	if err := daemon.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = daemon.Wait()
	daemon = r.startDaemon()
	if err := work.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		r.sh("umount " + dir)
	}
	for layer := range paths {
		r.coppice("delete", layer)
	}
	if err := daemon.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := daemon.Wait(); err != nil {
		t.Errorf("daemon: %v", err)
	}
	t.Log(strings.TrimSpace(r.coppice("store", "check", r.store)))
	r.sh("blockdev --flushbufs " + r.store)
}

func disk(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.EvalSymlinks("/dev/disk/by-id/virtio-" + name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func newRecorder(t *testing.T) *recorder {
	t.Helper()
	leaf := disk(t, LeafDisk)
	r := &recorder{t: t, store: leaf + "1", seed: uint64(time.Now().UnixNano()), ids: make(chan uint64)}
	t.Logf("seed %d", r.seed)
	var err error
	if r.marks, err = os.OpenFile(leaf+"2", os.O_WRONLY|unix.O_DIRECT, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.marks.Close() })
	r.page = pages(t, MarkBytes)
	go func() {
		for id := uint64(1 << 20); ; id++ {
			r.ids <- id
		}
	}()
	return r
}

// pages returns memory for direct I/O.
func pages(t *testing.T, n int) []byte {
	t.Helper()
	p, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	return p // until the process ends
}

func (r *recorder) sh(script string) string {
	r.t.Helper()
	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	if err != nil {
		r.t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

func (r *recorder) coppice(args ...string) string {
	r.t.Helper()
	out, err := exec.Command("coppice", args...).CombinedOutput()
	if err != nil {
		r.t.Fatalf("coppice %q: %v\n%s", args, err, out)
	}
	return string(out)
}

// startDaemon starts the daemon and waits until it answers. Its log goes to the test's output.
func (r *recorder) startDaemon() *exec.Cmd {
	r.t.Helper()
	cmd := exec.Command("coppice", "daemon", "--log-level", "warn")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	for began := time.Now(); exec.Command("coppice", "list").Run() != nil; time.Sleep(20 * time.Millisecond) {
		if time.Since(began) > time.Minute {
			r.t.Fatal("the daemon does not answer")
		}
	}
	return cmd
}

// mark writes an event to the disk. It returns when the disk has it.
func (r *recorder) mark(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := e.Encode(r.page); err != nil {
		r.t.Error(err)
	}
	if _, err := r.marks.WriteAt(r.page, 0); err != nil {
		r.t.Errorf("write mark: %v", err)
	}
}

// worker does one thing after the other in the directory of one file system.
type worker struct {
	r       *recorder
	client  string
	dir     *os.File
	rng     *rand.Rand
	content map[string]Event // the files that there are: number and size of their content
}

func (r *recorder) workOnFiles(client, dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	w := &worker{r: r, client: client, dir: d, rng: rand.New(rand.NewPCG(r.seed, uint64(len(client)))), content: make(map[string]Event)}
	for _, e := range Initial(client) {
		if e.Kind == Create {
			w.content[e.Name] = e
		}
	}
	for i := range fileOps {
		if err := w.step(); err != nil {
			return fmt.Errorf("%s: step %d: %w", client, i, err)
		}
		if i%30 == 29 {
			if out, err := exec.Command("fstrim", dir).CombinedOutput(); err != nil {
				return fmt.Errorf("fstrim %s: %w: %s", dir, err, out)
			}
		}
	}
	return nil
}

// step does something to a random file. Most of it is made durable, and marked as that.
func (w *worker) step() error {
	name := FileName(w.rng.IntN(FileNames))
	old, exists := w.content[name]
	e := Event{Client: w.client, Name: name, ID: <-w.r.ids, Size: w.size(0)}
	e.Kind = []Kind{Replace, Replace, Append, Append, Remove}[w.rng.IntN(5)]
	if !exists {
		e.Kind = Create
	}
	var err error
	switch sync := w.rng.IntN(3) > 0; e.Kind {
	case Create:
		w.r.mark(e)
		err = w.write(name, e.ID, 0, e.Size, sync)
		if err == nil && sync {
			err = w.synced(name)
		}
	case Append:
		e.ID, e.Size = old.ID, w.size(old.Size)
		w.r.mark(e)
		err = w.write(name, e.ID, old.Size, e.Size, sync)
		if err == nil && sync {
			err = w.synced(name)
		}
	case Replace:
		err = w.replace(e)
	case Remove:
		w.r.mark(e)
		err = os.Remove(w.path(name))
		if err == nil && sync {
			err = w.synced(name)
		}
	}
	if w.content[name] = e; e.Kind == Remove {
		delete(w.content, name)
	}
	return err
}

// size draws a size larger than another.
func (w *worker) size(than int64) int64 {
	return than + WordBytes*(1+w.rng.Int64N([]int64{64, 1024, 5000}[w.rng.IntN(3)]))
}

func (w *worker) path(name string) string { return filepath.Join(w.dir.Name(), name) }

// write extends a file, or makes it, to the size.
func (w *worker) write(name string, id uint64, from, to int64, sync bool) error {
	f, err := os.OpenFile(w.path(name), os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	p := make([]byte, to-from)
	Fill(p, id, from)
	if _, err := f.WriteAt(p, from); err != nil || !sync {
		return err
	}
	return f.Sync()
}

// synced makes the file's name durable and says so.
func (w *worker) synced(name string) error {
	err := w.dir.Sync()
	if err == nil {
		w.r.mark(Event{Client: w.client, Kind: Synced, Name: name})
	}
	return err
}

// replace puts a file in the place of another.
func (w *worker) replace(e Event) error {
	const fresh = "new"
	_ = os.Remove(w.path(fresh))
	if err := w.write(fresh, e.ID, 0, e.Size, true); err != nil {
		return err
	}
	w.r.mark(e)
	if err := os.Rename(w.path(fresh), w.path(e.Name)); err != nil || w.rng.IntN(3) == 0 {
		return err
	}
	return w.synced(e.Name)
}
