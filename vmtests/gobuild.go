package vmtests

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Binary builds a main package of this module as a static binary for the guest and returns its path.
func (b *Build) Binary(ctx context.Context, pkg string) (string, error) {
	out := filepath.Join(b.dir, "bin", filepath.Base(pkg))
	return out, b.goTool(ctx, "build", "-trimpath", "-ldflags=-s -w", "-o", out, pkg)
}

// OtherVersion builds a main package like Binary, but as another version of the program.
func (b *Build) OtherVersion(ctx context.Context, pkg, version string) (string, error) {
	out := filepath.Join(b.dir, "bin", filepath.Base(pkg)+"-"+version)
	return out, b.goTool(ctx, "build", "-trimpath", "-ldflags=-s -w -X main.version="+version, "-o", out, pkg)
}

// testBinary compiles the tests of pkg with VMTag and the more tags and returns the binary's path.
func (b *Build) testBinary(ctx context.Context, pkg string, more []string) (string, error) {
	name := strings.ReplaceAll(strings.Trim(pkg, "./"), "/", "_") + ".test"
	out := filepath.Join(b.dir, "bin", name)
	return out, b.goTool(ctx, "test", "-c", "-tags", strings.Join(append([]string{VMTag}, more...), ","), "-ldflags=-s -w", "-o", out, pkg)
}

// goTool runs the go command in the repository for the guest's platform. Builds of one output file take turns.
func (b *Build) goTool(ctx context.Context, args ...string) error {
	if err := os.MkdirAll(filepath.Join(b.dir, "bin"), 0o755); err != nil {
		return err
	}
	unlock, err := lockFile(filepath.Join(b.dir, "bin.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = b.repo
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}
