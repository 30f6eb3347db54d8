package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"aead.dev/minisign"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/testscript"

	"coppice/ebpf/boottrace"
	"coppice/idxshare"
	"coppice/image"
	"coppice/node"
	"coppice/node/nodetest"
	"coppice/ublk/ublktest"
	"coppice/union"
)

// Scripts run the real program against a daemon in this process, whose kernel is a fake one.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Setup:               setUp,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"daemon": cmdDaemon, "exits": cmdExits, "hold": cmdHold, "disk": cmdDisk, "poke": cmdPoke, "sparse": cmdSparse,
			"spoil": cmdSpoil, "keys": cmdKeys, "fill": cmdFill, "hydrated": cmdHydrated, "recorded": cmdRecorded, "indexed": cmdIndexed,
			"indexdisk": cmdIndexDisk,
		},
	})
}

// machine is what a script has beside its files.
type machine struct {
	kernel *nodetest.Kernel
	runDir string
	daemon *nodetest.Daemon
}

// images is where the daemon keeps images of its own.
func (m *machine) images() string { return filepath.Join(filepath.Dir(m.runDir), "local") }

type machineKey struct{}

func setUp(env *testscript.Env) error {
	// Not below the script's directory: the path of a Unix socket has at most 108 bytes.
	dir, err := os.MkdirTemp("", "coppice")
	if err != nil {
		return err
	}
	m := &machine{kernel: nodetest.NewKernel(), runDir: filepath.Join(dir, "run")}
	env.Values[machineKey{}] = m
	env.Setenv("COPPICE_RUN_DIR", m.runDir)
	env.Setenv("RUN", m.runDir)
	env.Setenv("LOCAL_IMAGES", m.images())
	env.Defer(func() {
		if m.daemon != nil {
			_ = m.daemon.Stop()
		}
		_ = os.RemoveAll(dir)
	})
	return nil
}

func machineOf(ts *testscript.TestScript) *machine {
	m, _ := ts.Value(machineKey{}).(*machine)
	return m
}

// cmdDaemon is "daemon start [VERSION]" or "daemon stop".
func cmdDaemon(ts *testscript.TestScript, neg bool, args []string) {
	m := machineOf(ts)
	if neg || len(args) == 0 {
		ts.Fatalf("usage: daemon start [VERSION] | daemon stop")
	}
	if args[0] == "stop" {
		ts.Check(m.daemon.Stop())
		m.daemon = nil
		return
	}
	cfg := node.Config{
		RunDir: m.runDir, Log: slog.New(slog.DiscardHandler), FullWait: "0",
		Images: node.ImageConfig{LocalPath: m.images(), Patience: "1m"},
		Cache:  node.CacheConfig{TracesPath: filepath.Join(filepath.Dir(m.runDir), "traces")},
	}
	if len(args) > 1 {
		cfg.Version = args[1]
	}
	d, err := nodetest.Start(m.kernel, cfg)
	ts.Check(err)
	m.daemon = d
}

// cmdHydrated is "hydrated NAME": it waits until the root of a device is on this machine.
func cmdHydrated(ts *testscript.TestScript, _ bool, args []string) {
	for began := time.Now(); time.Since(began) < 2*time.Minute; time.Sleep(20 * time.Millisecond) {
		d, err := machineOf(ts).daemon.Inspect(args[0])
		ts.Check(err)
		if h := d.Root.Hydration; h != nil && h.State == node.HydrationComplete {
			return
		}
	}
	ts.Fatalf("the root of %s is not on this machine", args[0])
}

// cmdExits is "exits CODE PROGRAM ARG...": it runs the program and checks its exit code.
func cmdExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARG...")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if want := args[0]; want != strconv.Itoa(code) {
		ts.Fatalf("exit code %d, not %s", code, want)
	}
}

// cmdHold is "[!] hold ID": it puts a device in use, or ends that.
func cmdHold(ts *testscript.TestScript, neg bool, args []string) {
	machineOf(ts).kernel.Hold(number(ts, args[0]), !neg)
}

// cmdDisk is "[!] disk write ID OFFSET TEXT", "[!] disk read ID OFFSET TEXT", "disk fill ID", which writes until there is no space,
// "disk sweep ID BYTES", which reads so many, or "disk count N".
func cmdDisk(ts *testscript.TestScript, neg bool, args []string) {
	k := machineOf(ts).kernel
	if args[0] == "count" {
		if got := len(k.IDs()); got != number(ts, args[1]) {
			ts.Fatalf("%d kernel devices", got)
		}
		return
	}
	disk := k.Disk(number(ts, args[1]))
	if args[0] == "fill" {
		fillDisk(ts, disk)
		return
	}
	if args[0] == "sweep" {
		sweepDisk(ts, disk, number(ts, args[2]))
		return
	}
	off := int64(number(ts, args[2]))
	p := make([]byte, 512)
	if args[0] == "write" {
		copy(p, args[3])
		if _, err := disk.WriteAt(p, off); (err != nil) != neg {
			ts.Fatalf("write: %v", err)
		}
		return
	}
	_, err := disk.ReadAt(p, off)
	ts.Check(err)
	if got := string(p[:len(args[3])]); (got == args[3]) == neg {
		ts.Fatalf("read %q", got)
	}
}

// sweepDisk reads the first bytes, a sector at a time.
func sweepDisk(ts *testscript.TestScript, disk *ublktest.Fake, bytes int) {
	p := make([]byte, 512)
	for off := 0; off < bytes; off += len(p) {
		if _, err := disk.ReadAt(p, int64(off)); err != nil {
			ts.Fatalf("read at %d: %v", off, err)
		}
	}
}

// fillDisk writes from the beginning on until there is no space, and has it flushed.
func fillDisk(ts *testscript.TestScript, disk *ublktest.Fake) {
	p := make([]byte, 64<<10)
	for off := int64(0); ; off += int64(len(p)) {
		if _, err := disk.WriteAt(p, off); errors.Is(err, syscall.ENOSPC) {
			ts.Check(disk.Flush())
			return
		} else if err != nil {
			ts.Fatalf("write at %d: %v", off, err)
		}
	}
}

// cmdPoke is "poke FILE OFFSET TEXT": it overwrites a part of a file.
func cmdPoke(ts *testscript.TestScript, _ bool, args []string) {
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_WRONLY, 0)
	ts.Check(err)
	_, err = f.WriteAt([]byte(args[2]), int64(number(ts, args[1])))
	ts.Check(errors.Join(err, f.Close()))
}

// cmdSparse is "sparse FILE SIZE [TEXT]": it makes a file of zeros that begins with a text.
func cmdSparse(ts *testscript.TestScript, _ bool, args []string) {
	n, err := node.ParseBytes(args[1])
	ts.Check(err)
	path := ts.MkAbs(args[0])
	ts.Check(os.WriteFile(path, fmt.Append(nil, append(args[2:], "")[0]), 0o600))
	ts.Check(os.Truncate(path, n))
}

// cmdSpoil is "spoil DIR [KIND]": it changes the first byte of the first pack of the only image in a layout, or of the last blob of the trace or index that is attached to it.
func cmdSpoil(ts *testscript.TestScript, _ bool, args []string) {
	l, err := image.OpenLayout(ts.MkAbs(args[0]))
	ts.Check(err)
	tags, err := l.Tags(context.Background())
	ts.Check(err)
	which := slices.IndexFunc(tags, func(tag string) bool { return len(args) == 1 || strings.HasSuffix(tag, "."+args[1]) })
	text, err := l.Manifest(context.Background(), tags[which])
	ts.Check(err)
	var m ocispec.Manifest
	ts.Check(json.Unmarshal(text, &m))
	blob := m.Layers[len(m.Layers)-1]
	if len(args) == 1 {
		blob = m.Layers[1]
	}
	path := filepath.Join(ts.MkAbs(args[0]), "blobs", strings.Replace(string(blob.Digest), ":", "/", 1))
	data, err := os.ReadFile(path)
	ts.Check(err)
	data[0] ^= 1
	ts.Check(os.WriteFile(path, data, 0o600))
	ts.Check(l.Close())
}

// cmdFill is "fill FILE BYTES": it overwrites the beginning of a file with bytes that cannot be compressed, always the same.
func cmdFill(ts *testscript.TestScript, _ bool, args []string) {
	p := make([]byte, number(ts, args[1]))
	_, _ = rand.NewChaCha8([32]byte{1}).Read(p) // never fails
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_WRONLY, 0)
	ts.Check(err)
	_, err = f.Write(p)
	ts.Check(errors.Join(err, f.Close()))
}

// cmdKeys is "keys NAME": it makes NAME.pub and NAME.key, without a password.
func cmdKeys(ts *testscript.TestScript, _ bool, args []string) {
	public, private, err := minisign.GenerateKey(nil)
	ts.Check(err)
	open, err := private.MarshalText()
	ts.Check(err)
	text, err := public.MarshalText()
	ts.Check(err)
	for suffix, data := range map[string][]byte{".pub": text, ".key": open} {
		ts.Check(os.WriteFile(ts.MkAbs(args[0]+suffix), data, 0o600))
	}
}

func number(ts *testscript.TestScript, s string) int {
	n, err := strconv.Atoi(s)
	ts.Check(err)
	return n
}

// cmdRecorded is "recorded REF FILE": it writes the file of a trace of an image, with requests that nobody has made.
func cmdRecorded(ts *testscript.TestScript, _ bool, args []string) {
	ref, err := image.ParseRef(strings.Replace(args[0], "oci:", "oci:"+ts.MkAbs(".")+"/", 1))
	ts.Check(err)
	im, src, err := image.OpenRef(context.Background(), ref, image.SourceOptions{})
	ts.Check(err)
	t := &boottrace.Trace{
		Root: im.ContentRoot(), ContentBytes: im.Size(), ChunkSize: im.ChunkSize(), DeviceBytes: im.Size(), Kernel: "6.12.0-test",
		Began: time.Date(2026, 10, 1, 0, 0, 0, 0, time.UTC), Uptime: 2500 * time.Millisecond, Lost: 4,
		Processes: []string{"", "(udev-worker)", "a\x1bb"}, Cgroups: []string{"", "/system.slice/ssh.service"},
		Events: []boottrace.Event{
			{Off: 0, Len: 64 << 10, From: union.FromRoot, PID: 7, Process: 1, Cgroup: 1},
			{Off: 64 << 10, Len: 4096, PID: 8, Process: 2, Cgroup: 1},
			{Off: 68 << 10, Len: 4096, Op: boottrace.Write, PID: 8, Process: 2, Cgroup: 1},
			{Off: 68 << 10, Len: 4096, PID: 7, Process: 1},
		},
	}
	for i := range t.Events {
		t.Events[i].At, t.Events[i].Took = time.Duration(i)*time.Millisecond, 10*time.Microsecond
	}
	data, err := t.Encode()
	ts.Check(errors.Join(err, im.Close(), src.Close()))
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), data, 0o600))
}

// cmdIndexDisk makes the index of a disk in a file: indexdisk DISK INDEX.
func cmdIndexDisk(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: indexdisk DISK INDEX")
	}
	f, err := os.Open(ts.MkAbs(args[0]))
	ts.Check(err)
	defer f.Close()
	st, err := f.Stat()
	ts.Check(err)
	_, err = idxshare.Build(context.Background(), ts.MkAbs(args[1]), idxshare.BuildInput{Device: f, Size: st.Size(), Source: args[0]}, idxshare.BuildOptions{})
	ts.Check(err)
}
