package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"coppice/union"
)

// stores has the open leaf stores: one [union.Store] for all devices whose leaf is on it,
// whatever path each came by.
type stores struct {
	runDir string

	mu   sync.Mutex // held while a store is opened or closed
	open map[storeKey]*sharedStore
}

// storeKey identifies a block device by its number, a file by its place.
type storeKey struct {
	device, inode uint64
	block         bool
}

// sharedStore is an open store and the number of devices that use it.
type sharedStore struct {
	*union.Store
	key   storeKey
	users int // guarded by stores.mu
}

func newStores(runDir string) *stores {
	return &stores{runDir: runDir, open: make(map[storeKey]*sharedStore)}
}

// acquire opens the store at path, or adds a user to the open one. Where another process
// has it, acquire tries again for as long as patience says: a daemon that was
// killed may not have let go yet.
func (s *stores) acquire(ctx context.Context, path string, patience time.Duration) (*sharedStore, error) {
	key, err := keyOf(path)
	if err != nil {
		return nil, fmt.Errorf("open leaf: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if st, ok := s.open[key]; ok {
		st.users++
		return st, nil
	}
	opened, err := s.openPatiently(ctx, path, patience)
	if err != nil {
		return nil, fmt.Errorf("open leaf: %w", err)
	}
	st := &sharedStore{Store: opened, key: key, users: 1}
	s.open[key] = st
	return st, nil
}

func (s *stores) openPatiently(ctx context.Context, path string, patience time.Duration) (*union.Store, error) {
	const pause = 50 * time.Millisecond
	for {
		st, err := union.OpenStore(path, union.StoreOptions{RunDir: s.runDir})
		if !errors.Is(err, union.ErrInUse) || patience < pause {
			return st, err
		}
		patience -= pause
		select {
		case <-ctx.Done():
			return nil, errors.Join(err, ctx.Err())
		case <-time.After(pause):
		}
	}
}

// release takes one user off, and closes the store after the last.
func (s *stores) release(st *sharedStore) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st.users--; st.users > 0 {
		return nil
	}
	delete(s.open, st.key)
	if err := st.Close(); err != nil {
		return fmt.Errorf("close leaf store: %w", err)
	}
	return nil
}

func keyOf(path string) (storeKey, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return storeKey{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		return storeKey{device: st.Rdev, block: true}, nil
	}
	return storeKey{device: st.Dev, inode: st.Ino}, nil
}

// sameFile tells whether two paths lead to the same file or block device.
func sameFile(a, b string) bool {
	ka, errA := keyOf(a)
	kb, errB := keyOf(b)
	return errA == nil && errB == nil && ka == kb
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}
