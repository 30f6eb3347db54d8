//go:build vm

package vmtests

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
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coppice/vmtests/powercut"
)

// judgeExt4 replays the journal, wants a clean file system after that, and compares the files.
func judgeExt4(ctx context.Context, image string, model powercut.Files) ([]string, error) {
	// Preening replays the journal and frees orphans, which a cut may leave; it changes nothing else where it says "clean".
	if text, code := run(ctx, "e2fsck", "-p", image); code > 1 || !strings.Contains(text, "clean") {
		return []string{fmt.Sprintf("e2fsck -p ends with %d: %s", code, text)}, nil
	}
	if text, code := run(ctx, "e2fsck", "-fn", image); code != 0 {
		return []string{fmt.Sprintf("e2fsck -fn ends with %d: %s", code, text)}, nil
	}
	dir := image + ".files"
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	text, code := run(ctx, "debugfs", "-R", "rdump / "+dir, image)
	if code != 0 || strings.Count(text, "\n") > 1 {
		return []string{fmt.Sprintf("debugfs ends with %d: %s", code, text)}, nil
	}
	found, err := powercut.ReadTree(dir)
	return model.Check(found), err
}

// run runs a program and returns what it printed and its exit code; -1 where it could not be run.
func run(ctx context.Context, name string, args ...string) (string, int) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		return err.Error(), -1
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// xfsGuest mounts file systems, which replays their journals: for xfs only a kernel can do that. Each worker has a disk there,
// whose content the host changes.
type xfsGuest struct {
	b   *Build
	cfg Config
	mu  sync.Mutex // guards vm
	vm  *VM
}

func startXFSGuest(t *testing.T, b *Build, dir string) *xfsGuest {
	t.Helper()
	reader, err := b.Binary(t.Context(), "./vmtests/cmd/fsread")
	if err != nil {
		t.Fatal(err)
	}
	g := &xfsGuest{b: b, cfg: Config{
		Name: "powercut-xfs", MemMiB: 1024, Modules: []string{"xfs"},
		Files: map[string]string{"/usr/local/bin/fsread": reader},
	}}
	for i := range cutWorkers {
		d := Disk{Name: fmt.Sprint("state", i), Path: filepath.Join(dir, fmt.Sprint("slot", i))}
		if err := SparseFile(d.Path, cutXFSBytes); err != nil {
			t.Fatal(err)
		}
		g.cfg.Disks = append(g.cfg.Disks, d)
	}
	if g.vm, err = b.Boot(t.Context(), g.cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.vm.Close() })
	return g
}

// judge lets the guest replay the journal and read the files, and wants a clean file system after that.
func (g *xfsGuest) judge(ctx context.Context, worker int, image string, model powercut.Files) ([]string, error) {
	found, wrong, err := g.read(ctx, g.running(), worker, image)
	if errors.Is(err, ErrEmulator) {
		if err = g.restart(ctx); err == nil {
			found, wrong, err = g.read(ctx, g.running(), worker, image)
		}
	}
	if err != nil || len(wrong) > 0 {
		return wrong, err
	}
	if text, code := run(ctx, "xfs_repair", "-n", "-f", g.cfg.Disks[worker].Path); code != 0 {
		return []string{fmt.Sprintf("xfs_repair -n ends with %d: %s", code, text)}, nil
	}
	return model.Check(found), nil
}

func (g *xfsGuest) read(ctx context.Context, vm *VM, worker int, image string) (found []powercut.Found, wrong []string, err error) {
	d := g.cfg.Disks[worker]
	if err := copySparse(d.Path, image); err != nil {
		return nil, nil, err
	}
	var out bytes.Buffer
	// nouuid: the workers' file systems are one to the kernel.
	exit, err := vm.Run(ctx, Job{Argv: []string{"/usr/local/bin/fsread", "xfs", d.GuestPath(), "nouuid"}, Output: &out, Timeout: time.Minute})
	if err != nil {
		return nil, nil, err
	}
	if !exit.OK() {
		return nil, []string{fmt.Sprintf("xfs: %s: %s\n%s", exit, out.String(), lastLines(exit.Dump, 30))}, nil
	}
	if err := json.Unmarshal(out.Bytes(), &found); err != nil {
		return nil, nil, fmt.Errorf("read what fsread printed: %w: %s", err, out.String())
	}
	return found, nil, nil
}

func (g *xfsGuest) running() *VM {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.vm
}

// restart replaces a VM that the emulator has spoilt, unless another worker has done so.
func (g *xfsGuest) restart(ctx context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, err := g.vm.Output(ctx, "/usr/local/bin/fsread"); !errors.Is(err, ErrGuestGone) {
		return nil
	}
	if err := g.vm.Kill(); err != nil {
		return err
	}
	var err error
	g.vm, err = g.b.Boot(ctx, g.cfg)
	return err
}

// copySparse replaces the content of a file, which stays the same file, and leaves out holes.
func copySparse(to, from string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	defer dst.Close()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for off := int64(0); ; {
		data, err := unix.Seek(int(src.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return dst.Truncate(info.Size())
		}
		if err != nil {
			return err
		}
		if off, err = unix.Seek(int(src.Fd()), data, unix.SEEK_HOLE); err != nil {
			return err
		}
		for at := data; at < off; at += int64(len(buf)) {
			p := buf[:min(int64(len(buf)), off-at)]
			if _, err := src.ReadAt(p, at); err != nil {
				return err
			}
			if _, err := dst.WriteAt(p, at); err != nil {
				return err
			}
		}
	}
}
