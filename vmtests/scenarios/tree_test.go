//go:build vm

package scenarios

import (
	"crypto/md5"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// tree is a file system's content: for each path what it is, whose, with which rights, and its content's digest.
type tree map[string]string

// readTree reads every file below dir, without crossing into other file systems.
func readTree(t *testing.T, dir string) tree {
	t.Helper()
	var home syscall.Stat_t
	if err := syscall.Stat(dir, &home); err != nil {
		t.Fatal(err)
	}
	files, began := make(tree), time.Now()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("read %s: no owner", path)
		}
		if st.Dev != home.Dev {
			return fs.SkipDir
		}
		content, err := contentOf(path, info)
		rel, relErr := filepath.Rel(dir, path)
		if relErr != nil {
			return relErr
		}
		files[rel] = fmt.Sprintf("%v %d:%d %d %d %s", info.Mode(), st.Uid, st.Gid, st.Rdev, info.ModTime().UnixNano(), content)
		return err
	})
	if err != nil {
		t.Fatalf("read tree: %v", err)
	}
	t.Logf("read %d files in %.1f s", len(files), time.Since(began).Seconds())
	return files
}

func contentOf(path string, info fs.FileInfo) (string, error) {
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		return os.Readlink(path)
	case !info.Mode().IsRegular():
		return "", nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := md5.New() // finds every accident; SHA-256 takes twenty times as long in an emulated CPU
	n, err := io.Copy(h, f)
	return fmt.Sprintf("%d %x", n, h.Sum(nil)), err
}

// same reports how two readings of a tree differ.
func (want tree) same(t *testing.T, got tree) {
	t.Helper()
	differences := 0
	for path, text := range want {
		if got[path] != text {
			differences++
			if differences <= 10 {
				t.Errorf("%s was\n  %s\nand is\n  %s", path, text, got[path])
			}
		}
	}
	if differences > 0 || len(got) != len(want) {
		t.Errorf("%d of %d files differ; now there are %d", differences, len(want), len(got))
		return
	}
	t.Logf("%d files are as before", len(want))
}
