package union

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// pendingRing is the memory of the log's pending blocks: a shared mapping of a file on tmpfs, so that
// the records outlive the process, or anonymous memory. The file has one block of header and then
// the ring:
//
//	 0  8  magic "COPPPEND"
//	 8 16  boot id: after a reboot the content means nothing
//	24 16  UUID of the store
//
// A store that was closed in order leaves a shorter file in its place, without records: the block of header with another magic, and then a block with the superblock that it
// was closed with. The next opening of this boot that finds that very superblock need not read the log, all of which lies before the start that it names. Whoever has the store open in between
// writes another superblock first, and who opens it in this run directory replaces the file.
type pendingRing struct {
	path  string // empty: anonymous
	fresh string // name until it is published
	mem   []byte // header block and ring
}

var (
	pendingMagic = [8]byte{'C', 'O', 'P', 'P', 'P', 'E', 'N', 'D'}
	closedMagic  = [8]byte{'C', 'O', 'P', 'P', 'S', 'H', 'U', 'T'}
)

// bootID identifies the running kernel (Documentation/admin-guide/sysctl/kernel.rst, random/boot_id).
func bootID() (uuid.UUID, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return uuid.Nil, err
	}
	return uuid.Parse(strings.TrimSpace(string(b)))
}

// readPending returns the ring that a process of this boot left behind, or nil.
func readPending(runDir string, sb *superblock, boot uuid.UUID) ([]byte, error) {
	if runDir == "" {
		return nil, nil
	}
	b, err := os.ReadFile(pendingPath(runDir, sb.UUID))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read pending records: %w", err)
	}
	if len(b) != sb.pendingBytes() || !bytes.Equal(b[:8], pendingMagic[:]) ||
		!bytes.Equal(b[8:24], boot[:]) || !bytes.Equal(b[24:40], sb.UUID[:]) {
		return nil, nil
	}
	return b[blockSize:], nil
}

// closedFile is the file of a store that was closed with a superblock.
func closedFile(sb *superblock, boot uuid.UUID) []byte {
	b := make([]byte, 2<<blockShift)
	copy(b, closedMagic[:])
	copy(b[8:], boot[:])
	copy(b[24:], sb.UUID[:])
	sb.encode(b[blockSize:])
	return b
}

// wasClosed tells whether the store was closed in order in this boot, with the superblock that it has, so that nothing in its log counts. A file that cannot be read says nothing.
func wasClosed(runDir string, sb *superblock, boot uuid.UUID) bool {
	if runDir == "" {
		return false
	}
	info, err := os.Stat(pendingPath(runDir, sb.UUID))
	if err != nil || info.Size() != 2<<blockShift {
		return false
	}
	b, err := os.ReadFile(pendingPath(runDir, sb.UUID))
	return err == nil && bytes.Equal(b, closedFile(sb, boot))
}

// newPendingRing makes an empty ring beside the one that a process before may have left, which stays whole. On
// tmpfs its memory is allocated at once: a full tmpfs is an error here and not a SIGBUS later.
func newPendingRing(runDir string, sb *superblock, boot uuid.UUID) (*pendingRing, error) {
	size := sb.pendingBytes()
	if runDir == "" {
		mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return nil, fmt.Errorf("map pending records: %w", err)
		}
		return &pendingRing{mem: mem}, nil
	}
	path := pendingPath(runDir, sb.UUID)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	r := &pendingRing{path: path, fresh: path + ".new"}
	// Whoever left such a file behind died before it was published: the lock on the store makes it ours.
	f, err := os.OpenFile(r.fresh, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := r.fill(f, size, sb.UUID, boot); err != nil {
		return nil, errors.Join(fmt.Errorf("make %s: %w", r.fresh, err), r.discard(), f.Close())
	}
	return r, f.Close()
}

// pendingBytes is the size of the ring's file.
func (s *superblock) pendingBytes() int { return blockSize + int(s.pendingBlocks())<<blockShift }

// publish puts the ring in the place of the one that a process before left. Only then may the records of that one
// be forgotten: they must be in the store's own state by now.
func (r *pendingRing) publish() error {
	if r.path == "" || seeded(bugRingNotPublished) {
		return nil
	}
	return os.Rename(r.fresh, r.path)
}

// openingWasCut tells whether somebody began to open the store and ended before the ring was published: then no
// write was acknowledged since.
func openingWasCut(runDir string, id uuid.UUID) bool {
	_, err := os.Stat(pendingPath(runDir, id) + ".new")
	return err == nil
}

// discard gives up a ring that was not published.
func (r *pendingRing) discard() error {
	err := r.close()
	if r.path == "" {
		return err
	}
	return errors.Join(err, os.Remove(r.fresh))
}

func (r *pendingRing) fill(f *os.File, size int, id, boot uuid.UUID) error {
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(size)); err != nil {
		return fmt.Errorf("allocate %d bytes: %w", size, err)
	}
	flags := unix.MAP_SHARED | unix.MAP_POPULATE
	if seeded(bugRingPrivate) {
		flags = unix.MAP_PRIVATE
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, flags)
	if err != nil {
		return fmt.Errorf("map: %w", err)
	}
	r.mem = mem
	copy(mem, pendingMagic[:])
	copy(mem[8:], boot[:])
	copy(mem[24:], id[:])
	return nil
}

func (r *pendingRing) ring() []byte { return r.mem[blockSize:] }

// leave puts the word that the store was closed in the place of the ring, whose records are all in the store's own state.
func (r *pendingRing) leave(sb *superblock, boot uuid.UUID) error {
	if r.path == "" {
		return nil
	}
	fresh := r.path + ".closed"
	err := os.WriteFile(fresh, closedFile(sb, boot), 0o600)
	if err == nil {
		err = os.Rename(fresh, r.path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(r.path))
	}
	return nil
}

func (r *pendingRing) close() error {
	if r.mem == nil {
		return nil
	}
	mem := r.mem
	r.mem = nil
	return unix.Munmap(mem)
}
