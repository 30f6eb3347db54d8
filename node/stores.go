package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
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
	scrub  *int64 // bytes per second; 0: never, nil: once a week
	log    *slog.Logger
	space  spaceConfig
	cache  *nodeCache // whose disk tier may lie in one of them

	mu   sync.Mutex // guards open and the users of each; taken after a sharedStore's
	open map[storeKey]*sharedStore
}

// storeKey identifies a block device by its number, a file by its place.
type storeKey struct {
	device, inode uint64
	block         bool
}

// sharedStore is a store and the number of devices that use it, or want to.
type sharedStore struct {
	key   storeKey
	users int // guarded by stores.mu

	mu           sync.Mutex // held while the store is opened or closed
	*union.Store            // nil before and after
	scrubber     *scrubber  // with Store
}

func newStores(cfg Config, cache *nodeCache) *stores {
	return &stores{runDir: cfg.RunDir, scrub: cfg.ScrubBytesPerSecond, log: cfg.Log, cache: cache, space: spaceConfig{cfg.fullWait(), cfg.leaseOptions(), cfg.Log}, open: make(map[storeKey]*sharedStore)}
}

// acquire opens the store at path, or adds a user to the open one. Where another process
// has it, acquire tries again for as long as patience says: a daemon that was
// killed may not have let go yet.
func (s *stores) acquire(ctx context.Context, path string, patience time.Duration) (*sharedStore, error) {
	key, err := keyOf(path)
	if err != nil {
		return nil, fmt.Errorf("open leaf: %w", err)
	}
	st := s.join(key)
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.Store != nil {
		return st, nil
	}
	if st.Store, err = s.openPatiently(ctx, path, patience); err != nil {
		st.Store = nil
		s.leave(st)
		return nil, fmt.Errorf("open leaf: %w", err)
	}
	s.cache.borrow(st.Store, path)
	st.scrubber = startScrubber(st.Store, s.scrub, s.log)
	return st, nil
}

// join adds a user to the entry of key.
func (s *stores) join(key storeKey) *sharedStore {
	s.mu.Lock()
	defer s.mu.Unlock()
	st, ok := s.open[key]
	if !ok {
		st = &sharedStore{key: key}
		s.open[key] = st
	}
	st.users++
	return st
}

// leave takes one user off, and forgets the entry after the last.
func (s *stores) leave(st *sharedStore) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st.users--; st.users == 0 {
		delete(s.open, st.key)
	}
}

func (s *stores) openPatiently(ctx context.Context, path string, patience time.Duration) (*union.Store, error) {
	const pause = 50 * time.Millisecond
	for {
		st, err := union.OpenStore(path, s.space.options(s.runDir, path))
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

// release takes one user off, and closes the store after the last. Who wants it meanwhile
// waits, and opens it again.
func (s *stores) release(st *sharedStore) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	s.mu.Lock()
	last := st.users == 1
	s.mu.Unlock()
	if !last {
		s.leave(st)
		return nil
	}
	st.scrubber.stop()
	s.cache.giveBack(st.Store)
	err := st.Close()
	st.Store, st.scrubber = nil, nil
	s.leave(st)
	if err != nil {
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
