// Package systemd holds what makes Coppice part of a system: the Debian package, and tests that hold it to what it promises.
package systemd

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// packageVersion is what the tests' packages are called.
const packageVersion = "9.9.9~git20260102.030405.abcdef0"

// command runs a program with more variables in its environment and returns what it printed.
func command(t *testing.T, dir string, env []string, argv ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", argv, err, out)
	}
	return string(out)
}

// packer builds nfpm.
func packer(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "nfpm")
	command(t, "../tools/nfpm", nil, "go", "build", "-o", path, "github.com/goreleaser/nfpm/v2/cmd/nfpm")
	return path
}

// buildPackage makes the package for amd64 of the repository at dir.
func buildPackage(t *testing.T, dir, nfpm string) (path string) {
	t.Helper()
	out := t.TempDir()
	command(t, dir, []string{"NFPM=" + nfpm, "OUT=" + out, "DEB_VERSION=" + packageVersion, "SOURCE_DATE_EPOCH=1700000000"}, "tools/deb.sh", "amd64")
	return filepath.Join(out, "coppice_"+packageVersion+"_amd64.deb")
}

// copyRepository copies what belongs to the repository, under another name and with other times and modes.
func copyRepository(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "elsewhere", "coppice")
	for _, name := range strings.Fields(command(t, "..", nil, "git", "ls-files", "-co", "--exclude-standard")) {
		info, err := os.Stat(filepath.Join("..", name))
		if err != nil {
			continue // deleted, and not committed yet
		}
		data, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600|info.Mode()&0o100); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Time{}, time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// Two builds from different directories, with files of other times and modes, make the same package.
func TestPackageIsReproducible(t *testing.T) {
	nfpm := packer(t)
	var sums [2]string
	for i, dir := range []string{"..", copyRepository(t)} {
		data, err := os.ReadFile(buildPackage(t, dir, nfpm))
		if err != nil {
			t.Fatal(err)
		}
		sums[i] = fmt.Sprintf("%x", sha256.Sum256(data))
	}
	if sums[0] != sums[1] {
		t.Errorf("%s here, %s there", sums[0], sums[1])
	}
}
