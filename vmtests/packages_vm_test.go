//go:build vm

package vmtests

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// packageLimit is how long the tests of one package may take, on a machine with much else to do.
const packageLimit = 20 * time.Minute

// commandPackage has as many VM tests as all other packages together, or more.
const commandPackage = "./cmd/coppice"

// Tests of commandPackage that have a VM of their own: those of TestCounted, TestReindexing and TestMutatedDevices.
const (
	countedTests = "^TestLatencyCost$"
	reindexTests = "^TestReindex$"
	mutatedTests = "^TestFilesOfDeviceUnderRandomOperations$"
)

// TestPackages runs the VM tests that lie beside the code they test, in one VM: two CPUs, 2 GiB, the userland, ublk_drv. Those of commandPackage have a VM of their own, by the side of
// it, and packages below vmtests have hosts of their own.
func TestPackages(t *testing.T) {
	t.Parallel() // with the scenarios: a VM waits much
	runPackages(t, "packages", func(pkg string) bool { return pkg != commandPackage && !strings.HasPrefix(pkg, "./vmtests/") })
}

// TestCommand runs the VM tests of commandPackage.
func TestCommand(t *testing.T) {
	t.Parallel()
	runPackages(t, "command", func(pkg string) bool { return pkg == commandPackage })
}

// runPackages boots a VM for the packages that keep is true for, and runs their VM tests there, one package after the other.
func runPackages(t *testing.T, name string, keep func(pkg string) bool) {
	t.Helper()
	b := newBuild(t)
	packages, err := b.GuestPackages(longTags...)
	if err != nil {
		t.Fatal(err)
	}
	m := &testVM{t: t, b: b, cfg: Config{Name: name, Files: make(map[string]string)}}
	var all []*GuestTests
	for _, pkg := range packages {
		if keep(pkg) {
			tests := m.add(pkg)
			if err := tests.Drop(strings.Join([]string{countedTests, reindexTests, mutatedTests}, "|")); err != nil {
				t.Fatal(err)
			}
			all = append(all, tests)
		}
	}
	if len(all) == 0 {
		t.Fatal("there is no package to test")
	}
	for _, tests := range all {
		t.Run(strings.TrimPrefix(tests.Package, "./"), func(t *testing.T) { m.run(t, tests, packageLimit) })
	}
}

// runGuestPackage boots a VM for one package, runs its VM tests there, those of the images aside, and reports them as subtests of t.
func runGuestPackage(t *testing.T, pkg string, cfg Config, scratch []string, limit time.Duration) {
	t.Helper()
	runGuestTests(t, pkg, func(string) bool { return true }, cfg, scratch, limit)
}

// runGuestTests is runGuestPackage for those tests that keep is true for.
func runGuestTests(t *testing.T, pkg string, keep func(name string) bool, cfg Config, scratch []string, limit time.Duration) {
	t.Helper()
	b := newBuild(t)
	disks, cleanup, err := b.Scratch(scratch)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cleanup)
	cfg.Name = strings.ReplaceAll(strings.Trim(pkg, "./"), "/", "-")
	cfg.Disks = append(disks, cfg.Disks...)
	m := &testVM{t: t, b: b, cfg: cfg}
	tests := m.add(pkg)
	if err := tests.Drop(imageTests); err != nil {
		t.Fatal(err)
	}
	tests.Names = slices.DeleteFunc(tests.Names, func(name string) bool { return !keep(name) })
	if len(tests.Names) == 0 {
		t.Fatalf("no test of %s is chosen", pkg)
	}
	m.run(t, tests, limit)
}

// testVM is a VM for the tests of packages, one after the other. After one that did not pass, the next get a new VM.
type testVM struct {
	t   *testing.T // the VM ends with it
	b   *Build
	cfg Config
	vm  *VM // nil: to be booted
}

// add compiles the tests of a package and puts them into the VM, which is not booted yet.
func (m *testVM) add(pkg string) *GuestTests {
	m.t.Helper()
	tests, err := m.b.GuestTests(m.t.Context(), pkg, longTags...)
	if err != nil {
		m.t.Fatal(err)
	}
	files := tests.Files()
	maps.Copy(files, m.cfg.Files)
	m.cfg.Files = files
	return tests
}

// run runs tests in the VM and reports them as subtests of t.
func (m *testVM) run(t *testing.T, tests *GuestTests, limit time.Duration) {
	t.Helper()
	results, problem, err := m.try(t, tests, limit)
	if errors.Is(err, ErrEmulator) {
		t.Logf("running the tests again in a new VM: %v", ErrEmulator)
		results, problem, err = m.try(t, tests, limit)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		report(t, r)
	}
	if problem != "" {
		t.Error(problem)
	}
	if t.Failed() {
		m.end()
	}
}

func (m *testVM) try(t *testing.T, tests *GuestTests, limit time.Duration) (results []*TestResult, problem string, err error) {
	t.Helper()
	if m.vm == nil {
		if err := m.boot(t); err != nil {
			return nil, "", err
		}
	}
	results, problem, err = m.vm.RunTests(m.t.Context(), tests, limit, nil)
	if err != nil {
		m.end()
	}
	return results, problem, err
}

func (m *testVM) boot(t *testing.T) error {
	t.Helper()
	cfg := m.cfg
	cfg.Userland, cfg.Modules = true, append([]string{"ublk_drv"}, cfg.Modules...)
	start := time.Now()
	vm, err := m.b.Boot(m.t.Context(), cfg)
	if err != nil {
		return err
	}
	t.Logf("Linux %s with %d CPUs, up in %.1f s", vm.Hello().Kernel, vm.Hello().CPUs, time.Since(start).Seconds())
	m.vm = vm
	m.t.Cleanup(func() {
		if err := vm.Close(); err != nil {
			m.t.Error(err)
		}
	})
	return nil
}

// end drops the VM.
func (m *testVM) end() {
	if err := m.vm.Close(); err != nil {
		m.t.Error(err)
	}
	m.vm = nil
}

// report makes a guest's test a subtest of t.
func report(t *testing.T, r *TestResult) {
	t.Run(r.Name, func(t *testing.T) {
		if text := strings.TrimRight(r.Output, "\n"); text != "" || r.Elapsed > time.Second {
			t.Logf("%.1f s in the guest\n%s", r.Elapsed.Seconds(), text)
		}
		for _, sub := range r.Subs {
			report(t, sub)
		}
		switch r.Outcome {
		case "pass":
		case "skip":
			t.Error("skipped in the guest; tests that need a VM must run in one")
		default:
			t.Errorf("ended in the guest with %q", r.Outcome)
		}
	})
}
