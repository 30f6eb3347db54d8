package node

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestRunDirectoryIsClosedToOthers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "run")
	for range 2 { // new, and as the last daemon left it
		if err := makeRunDir(Config{RunDir: dir}); err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o750 {
			t.Errorf("mode %v, %v", st.Mode(), err)
		}
		put(t, filepath.Join(dir, lockName), "1")
	}
}

// Directories that are not the daemon's are neither used nor changed.
func TestOtherDirectoriesAreNoRunDirectories(t *testing.T) {
	dir := t.TempDir()
	make := func(name string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.Mkdir(path, mode), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	full := make("full", 0o755)
	put(t, filepath.Join(full, "passwd"), "")
	writable := make("writable", 0o777)
	link := filepath.Join(dir, "link")
	if err := os.Symlink(make("target", 0o755), link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{full, writable, link} {
		before, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := makeRunDir(Config{RunDir: path}); CodeOf(err) != CodeForbidden || HintOf(err) == "" {
			t.Errorf("%s is used: %v", path, err)
		}
		if after, err := os.Stat(path); err != nil || after.Mode() != before.Mode() {
			t.Errorf("%s was changed", path)
		}
	}
	if err := makeRunDir(Config{RunDir: filepath.Join(full, "passwd")}); err == nil {
		t.Error("a file is used")
	}
}
