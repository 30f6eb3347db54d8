//go:build vm

package vmtests

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func newBuild(t *testing.T) *Build {
	t.Helper()
	b, err := NewBuild(func(format string, args ...any) { t.Logf(format, args...) })
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// boot starts a VM that lives as long as the test.
func boot(t *testing.T, b *Build, cfg Config) *VM {
	t.Helper()
	start := time.Now()
	vm, err := b.Boot(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Logf("Linux %s with %d CPUs, up in %.1f s", vm.Hello().Kernel, vm.Hello().CPUs, time.Since(start).Seconds())
	return vm
}

func TestJob(t *testing.T) {
	t.Parallel()
	vm := boot(t, newBuild(t), Config{Name: "job", Userland: true, Modules: []string{"null_blk nr_devices=2"}})

	t.Run("output", func(t *testing.T) {
		out, err := vm.Output(t.Context(), "sh", "-c", "echo $COPPICE_VM; ls /dev/nullb*; uname -r")
		if err != nil {
			t.Fatal(err)
		}
		if want := "1\n/dev/nullb0\n/dev/nullb1\n" + vm.Hello().Kernel + "\n"; out != want {
			t.Errorf("output %q, want %q", out, want)
		}
	})
	t.Run("exit status", func(t *testing.T) {
		exit, err := vm.Run(t.Context(), Job{Argv: []string{"sh", "-c", "exit 7"}})
		if err != nil || exit.Code != 7 || exit.OK() {
			t.Errorf("exit %+v, error %v, want status 7", exit, err)
		}
	})
	t.Run("missing program", func(t *testing.T) {
		exit, err := vm.Run(t.Context(), Job{Argv: []string{"/nowhere"}})
		if err != nil || !strings.Contains(exit.Err, "/nowhere") {
			t.Errorf("exit %+v, error %v, want one that names the program", exit, err)
		}
	})
	t.Run("time-out", func(t *testing.T) {
		exit, err := vm.Run(t.Context(), Job{Argv: []string{"sleep", "1000"}, Timeout: 2 * time.Second})
		if err != nil || !exit.TimedOut || exit.Signal != "SIGQUIT" {
			t.Errorf("exit %+.80v, error %v, want a time-out", exit, err)
		}
		if !strings.Contains(exit.Dump, "Show State") || !strings.Contains(exit.Dump, "sleep") {
			t.Errorf("dump has no task states: %.400s", exit.Dump)
		}
	})
	t.Run("cancel", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		exit, err := vm.Run(ctx, Job{Argv: []string{"sleep", "1000"}})
		if err != nil || exit.Signal != "SIGTERM" {
			t.Errorf("exit %+v, error %v, want SIGTERM", exit, err)
		}
	})
	t.Run("kernel warning", func(t *testing.T) {
		exit, err := vm.Run(t.Context(), Job{Argv: []string{"sh", "-c", "echo 'WARNING: made up' >/dev/kmsg"}})
		if err != nil || len(exit.Faults) != 1 || exit.OK() {
			t.Errorf("exit %+v, error %v, want one fault", exit, err)
		}
		if out, err := vm.Output(t.Context(), "true"); err != nil {
			t.Errorf("the fault sticks to the next run: %v %s", err, out)
		}
	})
	t.Run("two at once", func(t *testing.T) {
		slow := make(chan error, 1)
		go func() {
			_, err := vm.Output(t.Context(), "sh", "-c", "while [ ! -e /tmp/go ]; do sleep 0.05; done")
			slow <- err
		}()
		_, err := vm.Output(t.Context(), "touch", "/tmp/go")
		if err := errors.Join(err, <-slow); err != nil {
			t.Error(err)
		}
	})
	t.Run("host wait", func(t *testing.T) {
		waits, err := vm.HostWait()
		if err != nil || len(waits) != 2 {
			t.Errorf("waits %v, error %v, want two", waits, err)
		}
	})
}

func TestGuestPanic(t *testing.T) {
	t.Parallel()
	vm := boot(t, newBuild(t), Config{Name: "panic", Userland: true})
	_, err := vm.Run(t.Context(), Job{Argv: []string{"sh", "-c", "echo c >/proc/sysrq-trigger; sleep 100"}, Timeout: time.Minute})
	if !errors.Is(err, ErrGuestGone) {
		t.Fatalf("error %v, want ErrGuestGone", err)
	}
	for _, want := range []string{"kernel panic", "sysrq_handle_crash", "qemu-system-x86_64 -name"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("report lacks %q:\n%v", want, err)
		}
	}
	if _, err := vm.Run(t.Context(), Job{Argv: []string{"true"}}); !errors.Is(err, ErrGuestGone) {
		t.Errorf("run after the end: %v, want ErrGuestGone", err)
	}
}

// TestDisks shows that written data outlives a killed VM, that snapshots drop theirs, and that a bare guest boots.
func TestDisks(t *testing.T) {
	t.Parallel()
	b := newBuild(t)
	dir := t.TempDir()
	kept, shared := filepath.Join(dir, "kept"), filepath.Join(dir, "shared")
	for _, path := range []string{kept, shared} {
		if err := SparseFile(path, 64<<20); err != nil {
			t.Fatal(err)
		}
	}
	cfg := Config{Name: "disks", Userland: true, Disks: []Disk{
		{Name: "kept", Path: kept, BlockSize: 4096},
		{Name: "shared", Path: shared, Snapshot: true},
	}}
	vm := boot(t, b, cfg)
	for _, d := range cfg.Disks {
		if _, err := vm.Output(t.Context(), "sh", "-c", "echo mark | dd of="+d.GuestPath()+" conv=sync,fsync bs=4k"); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := vm.Output(t.Context(), "sh", "-c", "cat /sys/block/vd*/queue/logical_block_size"); err != nil || out != "4096\n512\n512\n" {
		t.Errorf("block sizes %q, error %v", out, err)
	}
	if err := vm.Kill(); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{kept: "mark\n", shared: "\x00\x00\x00\x00\x00"} {
		text, err := os.ReadFile(path)
		if err != nil || string(text[:5]) != want {
			t.Errorf("%s begins with %q, error %v, want %q", path, text[:5], err, want)
		}
	}
	bare := boot(t, b, Config{Name: "bare", CPUs: 1, MemMiB: 512, Modules: []string{"ublk_drv"}})
	exit, err := bare.Run(t.Context(), Job{Argv: []string{"/init", "x"}})
	if err != nil || exit.Code != 2 {
		t.Errorf("exit %+v, error %v, want status 2 of the guest program", exit, err)
	}
}

func TestSetupFailure(t *testing.T) {
	t.Parallel()
	_, err := newBuild(t).Boot(t.Context(), Config{Name: "no-module", Modules: []string{"no_such_module"}})
	if err == nil || !strings.Contains(err.Error(), "no_such_module") {
		t.Errorf("error %v, want one that names the module", err)
	}
}

// TestOutcomes runs tests that pass, fail, are skipped, hang and exit, and expects each to be told apart.
func TestOutcomes(t *testing.T) {
	t.Parallel()
	b := newBuild(t)
	load := func(names ...string) *GuestTests {
		g, err := b.GuestTests(t.Context(), "./vmtests/testdata/outcomes")
		if err != nil {
			t.Fatal(err)
		}
		g.Names = names
		return g
	}
	all := load()
	vm := boot(t, b, Config{Name: "outcomes", Files: all.Files()})
	run := func(limit time.Duration, names ...string) ([]*TestResult, string) {
		results, problem, err := vm.RunTests(t.Context(), load(names...), limit, nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(results) != len(names) {
			t.Fatalf("%d results, want %d", len(results), len(names))
		}
		return results, problem
	}

	t.Run("sound", func(t *testing.T) {
		results, problem := run(time.Minute, "TestPass", "TestGuest")
		for _, r := range results {
			if r.Outcome != "pass" {
				t.Errorf("%s: %q, want pass\n%s", r.Name, r.Outcome, r.Output)
			}
		}
		if problem != "" || !strings.Contains(results[0].Output, "all is well") {
			t.Errorf("problem %q, output %q", problem, results[0].Output)
		}
	})
	t.Run("failed and skipped", func(t *testing.T) {
		results, problem := run(time.Minute, "TestFail", "TestSkip")
		fail, skip := results[0], results[1]
		if fail.Outcome != "fail" || skip.Outcome != "skip" || problem == "" {
			t.Errorf("outcomes %q and %q, problem %q", fail.Outcome, skip.Outcome, problem)
		}
		down := fail.child("deep").child("down")
		if down.Outcome != "fail" || !strings.Contains(down.Output, "wrong on purpose") {
			t.Errorf("inner test: %+v", down)
		}
		if beside := fail.child("deep").child("beside"); beside.Outcome != "pass" {
			t.Errorf("test beside it: %+v", beside)
		}
	})
	t.Run("hung", func(t *testing.T) {
		results, problem := run(3*time.Second, "TestPass", "TestHang")
		if results[0].Outcome != "pass" || results[1].Outcome == "pass" || !strings.Contains(problem, "goroutine") && !strings.Contains(results[1].Output, "goroutine") {
			t.Errorf("results %+v %+v, problem %q", results[0], results[1], problem)
		}
	})
	t.Run("exit and missing", func(t *testing.T) {
		results, problem := run(time.Minute, "TestExit", "TestNowhere")
		if results[0].Outcome == "pass" || results[1].Outcome != "" || problem == "" {
			t.Errorf("results %+v %+v, problem %q", results[0], results[1], problem)
		}
	})
}
