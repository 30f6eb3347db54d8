//go:build vm

package scenarios

import (
	"cmp"
	"crypto/md5"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

// tree is a file system's content: for each path what it is, whose, with which rights, and its content's digest.
type tree map[string]string

// readers is how many files readTree reads at once: a cold tree is read by the device's latency otherwise.
const readers = 8

// readTree reads every file below dir, without crossing into other file systems. MD5 finds every accident, and SHA-256 takes twenty times
// as long in an emulated CPU.
func readTree(t *testing.T, dir string) tree {
	t.Helper()
	return digestTree(t, dir, md5.New)
}

// digestTree is readTree with another digest.
func digestTree(t *testing.T, dir string, newHash func() hash.Hash) tree {
	t.Helper()
	began := time.Now()
	files, err := listTree(dir)
	if err != nil {
		t.Fatalf("list tree: %v", err)
	}
	var mu sync.Mutex // guards what follows
	read, paths, errs := make(tree), inOrder(files), []error(nil)
	var wg sync.WaitGroup
	for first := range readers {
		wg.Go(func() {
			for i := first; i < len(paths); i += readers {
				text, err := describe(filepath.Join(dir, paths[i]), files[paths[i]], newHash())
				mu.Lock()
				read[paths[i]] = text
				if err != nil {
					errs = append(errs, err)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatalf("read tree: %v", err)
	}
	t.Logf("read %d files in %.1f s", len(read), time.Since(began).Seconds())
	return read
}

// inOrder returns the paths in the order of the inodes, in which the files were made and mostly lie on the disk.
func inOrder(files map[string]fs.FileInfo) []string {
	inode := func(path string) uint64 {
		if st, ok := files[path].Sys().(*syscall.Stat_t); ok {
			return st.Ino
		}
		return 0
	}
	return slices.SortedFunc(maps.Keys(files), func(a, b string) int { return cmp.Or(cmp.Compare(inode(a), inode(b)), cmp.Compare(a, b)) })
}

// listTree finds what is below dir, by path relative to it.
func listTree(dir string) (map[string]fs.FileInfo, error) {
	var home syscall.Stat_t
	if err := syscall.Stat(dir, &home); err != nil {
		return nil, err
	}
	files := make(map[string]fs.FileInfo)
	return files, filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Dev != home.Dev {
			return fs.SkipDir
		}
		rel, err := filepath.Rel(dir, path)
		files[rel] = info
		return err
	})
}

// describe puts into words all that must not change about a file.
func describe(path string, info fs.FileInfo, h hash.Hash) (string, error) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return "", fmt.Errorf("read %s: no owner", path)
	}
	content, err := contentOf(path, info, h)
	return fmt.Sprintf("%v %d:%d %d %d %s", info.Mode(), st.Uid, st.Gid, st.Rdev, info.ModTime().UnixNano(), content), err
}

func contentOf(path string, info fs.FileInfo, h hash.Hash) (string, error) {
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
