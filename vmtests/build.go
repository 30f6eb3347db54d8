package vmtests

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Build makes and caches everything a VM needs under build/vm in the repository. Several processes may use it at once:
// each asset is made under its own file lock, and made anew only when its recipe changes.
type Build struct {
	repo string // root of the repository
	dir  string // build/vm
	log  func(format string, args ...any)
}

// NewBuild finds the repository around the working directory. log receives one line for each step that takes time; nil
// drops them.
func NewBuild(log func(format string, args ...any)) (*Build, error) {
	if log == nil {
		log = func(string, ...any) {}
	}
	repo, err := findRepo()
	if err != nil {
		return nil, err
	}
	b := &Build{repo: repo, dir: filepath.Join(repo, "build", "vm"), log: log}
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return nil, fmt.Errorf("make build directory: %w", err)
	}
	return b, nil
}

// Repo is the root directory of the repository.
func (b *Build) Repo() string { return b.repo }

func findRepo() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(text), "module coppice\n") {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("find repository: no go.mod of module coppice above the working directory; run inside the repository")
		}
		dir = parent
	}
}

// asset returns the directory build/vm/name, filled by fill when it is missing or was made by another recipe. fill gets
// an empty directory; what it leaves there appears under the final name at once or not at all.
func (b *Build) asset(ctx context.Context, name, recipe string, fill func(ctx context.Context, dir string) error) (string, error) {
	sum := sha256.Sum256([]byte(recipe))
	want := hex.EncodeToString(sum[:])
	dir, stamp := filepath.Join(b.dir, name), filepath.Join(b.dir, name, ".recipe")
	if fresh(stamp, want) {
		return dir, nil
	}
	unlock, err := lockFile(filepath.Join(b.dir, name+".lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if fresh(stamp, want) {
		return dir, nil
	}
	start := time.Now()
	b.log("making %s", name)
	tmp := dir + ".tmp"
	if err := errors.Join(os.RemoveAll(tmp), os.MkdirAll(tmp, 0o755)); err != nil {
		return "", fmt.Errorf("make %s: %w", name, err)
	}
	if err := fill(ctx, tmp); err != nil {
		return "", fmt.Errorf("make %s: %w", name, err)
	}
	if err := os.WriteFile(filepath.Join(tmp, ".recipe"), []byte(want), 0o644); err != nil {
		return "", fmt.Errorf("stamp %s: %w", name, err)
	}
	if err := errors.Join(os.RemoveAll(dir), os.Rename(tmp, dir)); err != nil {
		return "", fmt.Errorf("make %s: %w", name, err)
	}
	b.log("made %s in %.1f s", name, time.Since(start).Seconds())
	return dir, nil
}

func fresh(stamp, want string) bool {
	text, err := os.ReadFile(stamp)
	return err == nil && string(text) == want
}

// lockFile takes an exclusive lock on path, waiting for other processes.
func lockFile(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

// command runs a program and returns its standard output; its standard error becomes part of the error.
func command(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive",
		"PATH="+os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("run %s: %w\n%s", strings.Join(cmd.Args, " "), err, lastLines(stderr.String(), 20))
	}
	return string(out), nil
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
