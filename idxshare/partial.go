package idxshare

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"golang.org/x/sys/unix"
)

// An index that is being written lies beside where it will be, as .NAME.HEX.partial. Its writer holds a lock on it, so that what a writer left that was killed can be told from what is being written, and
// the next one to the same name removes it. The lock is one of an open file, on a byte far behind those by which SQLite locks, so that it holds on NFS, too.

const partialSuffix = ".partial"

// lockAt is the byte of a file that is locked.
const lockAt = 1 << 62

func tryLock(f *os.File) error {
	return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: lockAt, Len: 1})
}

// createPartial makes a file for an index, and locks it. Before it is locked another writer may take it for one that was left behind, and then there is another try.
func createPartial(dir, base string) (path string, f *os.File, err error) {
	for range 100 {
		var random [6]byte
		rand.Read(random[:])
		path = filepath.Join(dir, "."+base+"."+hex.EncodeToString(random[:])+partialSuffix)
		if f, err = os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o666); err != nil {
			return "", nil, err
		}
		err = tryLock(f)
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOLCK) {
			return path, f, nil // a file system without locks: nobody else removes it there
		}
		if err == nil && isStill(path, f) {
			return path, f, nil
		}
		f.Close()
	}
	return "", nil, fmt.Errorf("%s: it is taken away each time: %w", path, errors.Join(err, fs.ErrNotExist))
}

// isStill tells whether a path leads to an open file.
func isStill(path string, f *os.File) bool {
	there, err := os.Stat(path)
	if err != nil {
		return false
	}
	open, err := f.Stat()
	return err == nil && os.SameFile(there, open)
}

// removeStale removes what writers to the same path have left that are no more. What cannot be removed stays.
func removeStale(dir, base string) {
	mine := regexp.MustCompile(`^\.` + regexp.QuoteMeta(base) + `\.[0-9a-f]{12}` + regexp.QuoteMeta(partialSuffix) + `$`)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return // Create tells
	}
	for _, e := range entries {
		if !mine.MatchString(e.Name()) || !e.Type().IsRegular() {
			continue
		}
		path := filepath.Join(dir, e.Name())
		f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue
		}
		if tryLock(f) == nil && isStill(path, f) {
			os.Remove(path) //nolint:errcheck // it stays then
		}
		f.Close()
	}
}
