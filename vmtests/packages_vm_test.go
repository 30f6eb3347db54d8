//go:build vm

package vmtests

import (
	"errors"
	"maps"
	"strings"
	"testing"
	"time"
)

// packageNeeds holds, for packages that need more than the default VM (two CPUs, 2 GiB, the userland, ublk_drv), what
// they need.
var packageNeeds = map[string]struct {
	cfg     Config
	scratch []string
	limit   time.Duration
}{}

// TestPackages runs every VM test that lives beside the code it tests. Packages below vmtests have hosts of their own.
func TestPackages(t *testing.T) {
	b := newBuild(t)
	packages, err := b.GuestPackages(longTags...)
	if err != nil {
		t.Fatal(err)
	}
	for _, pkg := range packages {
		if strings.HasPrefix(pkg, "./vmtests/") {
			continue
		}
		t.Run(strings.TrimPrefix(pkg, "./"), func(t *testing.T) {
			needs := packageNeeds[pkg]
			runGuestPackage(t, pkg, needs.cfg, needs.scratch, needs.limit)
		})
	}
}

// runGuestPackage boots a VM for one package, runs its VM tests there and reports them as subtests of t.
func runGuestPackage(t *testing.T, pkg string, cfg Config, scratch []string, limit time.Duration) {
	t.Helper()
	b := newBuild(t)
	tests, err := b.GuestTests(t.Context(), pkg, longTags...)
	if err != nil {
		t.Fatal(err)
	}
	disks, cleanup, err := b.Scratch(scratch)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cleanup)
	files := tests.Files()
	maps.Copy(files, cfg.Files)
	cfg.Name, cfg.Files, cfg.Userland = strings.ReplaceAll(strings.Trim(pkg, "./"), "/", "-"), files, true
	cfg.Modules = append([]string{"ublk_drv"}, cfg.Modules...)
	cfg.Disks = append(disks, cfg.Disks...)
	if limit == 0 {
		limit = 5 * time.Minute
	}
	results, problem, err := boot(t, b, cfg).RunTests(t.Context(), tests, limit, nil)
	if errors.Is(err, ErrEmulator) {
		t.Logf("running the tests again in a new VM: %v", ErrEmulator)
		results, problem, err = boot(t, b, cfg).RunTests(t.Context(), tests, limit, nil)
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
