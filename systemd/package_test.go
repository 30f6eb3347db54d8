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

func TestPackage(t *testing.T) {
	nfpm := packer(t)
	deb := buildPackage(t, "..", nfpm)
	t.Run("content", func(t *testing.T) { checkContent(t, deb) })
	t.Run("reproducible", func(t *testing.T) {
		elsewhere := buildPackage(t, copyRepository(t), nfpm)
		if here, there := digest(t, deb), digest(t, elsewhere); here != there {
			t.Errorf("%s here, %s in another directory, with files of other times and modes", here, there)
		}
	})
}

func digest(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(data))
}

// checkContent finds in the package what a system looks for, where it looks for it; groff finds no fault with the page that no command makes.
func checkContent(t *testing.T, deb string) {
	t.Helper()
	dir := t.TempDir()
	command(t, "", nil, "dpkg-deb", "-x", deb, dir)
	for _, path := range []string{
		"usr/bin/coppice", "etc/coppice/coppice.toml", "etc/coppice/devices.d", "etc/default/coppice-serve",
		"usr/lib/systemd/system/coppice.service", "usr/lib/systemd/system/coppice-serve.service", "usr/lib/systemd/system/coppice-ebpf.service", "usr/lib/systemd/system-generators/coppice-generator",
		"usr/lib/udev/rules.d/90-coppice.rules", "usr/lib/tmpfiles.d/coppice.conf", "usr/lib/sysusers.d/coppice.conf",
		"usr/share/initramfs-tools/hooks/coppice", "usr/share/man/man1/coppice.1.gz", "usr/share/man/man1/coppice-create.1.gz", "usr/share/man/man5/coppice.toml.5.gz",
		"usr/share/bash-completion/completions/coppice", "usr/share/zsh/vendor-completions/_coppice", "usr/share/fish/vendor_completions.d/coppice.fish",
		"usr/share/doc/coppice/copyright", "usr/share/doc/coppice/sbom.cdx.json",
	} {
		if _, err := os.Stat(filepath.Join(dir, path)); err != nil {
			t.Error(err)
		}
	}
	for _, field := range [][2]string{{"Version", packageVersion}, {"Architecture", "amd64"}, {"Package", "coppice"}} {
		if got := strings.TrimSpace(command(t, "", nil, "dpkg-deb", "-f", deb, field[0])); got != field[1] {
			t.Errorf("%s is %q, want %q", field[0], got, field[1])
		}
	}
	page := filepath.Join(dir, "usr/share/man/man5/coppice.toml.5")
	command(t, "", nil, "gunzip", page+".gz")
	if out := command(t, "", nil, "groff", "-man", "-Tutf8", "-ww", "-z", page); out != "" {
		t.Error(out)
	}
	text, err := os.ReadFile(page)
	if err != nil || !strings.Contains(string(text), "#verify_leaf = true") || strings.Contains(string(text), "@CONFIGURATION@") {
		t.Errorf("%v\n%s", err, text)
	}
	version := command(t, "", []string{"COPPICE_RUN_DIR=" + dir}, filepath.Join(dir, "usr/bin/coppice"), "version")
	if !strings.Contains(version, packageVersion) {
		t.Errorf("the program says it is %q", version)
	}
}
