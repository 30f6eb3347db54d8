package union

import (
	"errors"
	"fmt"
	"syscall"

	"coppice/internal/directio"
)

// Grow takes up more of what the store lies on: all of a block device that has become larger, or a regular file that this
// extends to the size. Zero means the size that there is now. Requests go on meanwhile, and those that wait for space then
// have it. A crash leaves the store with the old size or the new one.
func (s *Store) Grow(sizeBytes int64) (StoreInfo, error) {
	s.mu.Lock()
	err := s.growLocked(sizeBytes)
	s.mu.Unlock()
	if err != nil {
		return StoreInfo{}, fmt.Errorf("grow store %s: %w", s.path, err)
	}
	s.spaceFreed()
	return s.Info(), nil
}

func (s *Store) growLocked(sizeBytes int64) error {
	switch {
	case s.closed:
		return ErrClosed
	case s.readOnly:
		return ErrReadOnly
	case s.log.hasFailed():
		return errFailed
	case sizeBytes < 0:
		return fmt.Errorf("a size of %d bytes", sizeBytes)
	}
	have := int64(s.sb.SizeBlocks) << blockShift
	if sizeBytes != 0 && sizeBytes>>blockShift<<blockShift < have {
		return fmt.Errorf("%d bytes asked for, it has %d: %w", sizeBytes, have, ErrCannotShrink)
	}
	d, ok := s.disk.(growable)
	if !ok {
		return errors.New("what it lies on cannot grow")
	}
	there, err := d.Grow(sizeBytes)
	if err != nil {
		return err
	}
	if sizeBytes == 0 {
		sizeBytes = there
	}
	switch blocks := uint64(sizeBytes) >> blockShift; {
	case blocks > maxBlock:
		return fmt.Errorf("%d bytes: a store has at most 4 PiB", sizeBytes)
	case blocks < s.sb.SizeBlocks:
		return fmt.Errorf("there are only %d bytes, it has %d: %w", sizeBytes, have, ErrCannotShrink)
	case blocks > s.sb.SizeBlocks:
		return s.takeUp(blocks)
	}
	return nil
}

// takeUp writes superblocks that name the new size and then hands out the new slots. Only when both copies name them may
// anything lie there: a recovery that has to go back to the older copy must find all that the log names.
func (s *Store) takeUp(blocks uint64) error {
	next := s.sb
	next.Generation++
	next.SizeBlocks = blocks
	next.fillSlots()
	if err := s.writeSuperblocks(&next); err != nil {
		s.fail(err)
		return fmt.Errorf("write superblock: %w", err)
	}
	// What requests read of sb, without mu, never changes.
	s.sb.Generation, s.sb.SizeBlocks, s.sb.Slots = next.Generation, next.SizeBlocks, next.Slots
	s.slots.grow(next.Slots)
	s.space.resize(next.Slots)
	return nil
}

// Grow extends a regular file to sizeBytes, durably, and returns how large the file or device is now. A block device
// that is smaller than asked for is an error.
func (d *fileDisk) Grow(sizeBytes int64) (int64, error) {
	size, err := directio.Size(d.f)
	if err != nil {
		return 0, err
	}
	if size < sizeBytes {
		if d.block {
			return 0, fmt.Errorf("%d bytes asked for, the device has %d: make the device larger first: %w", sizeBytes, size, ErrTooSmall)
		}
		if err := extendFile(d, sizeBytes); err != nil {
			return 0, err
		}
		size = sizeBytes
	}
	d.size = size
	return size, nil
}

// extendFile gives the file its size durably: a superblock must never name what a power cut could take back.
func extendFile(d *fileDisk, sizeBytes int64) error {
	if err := d.f.Truncate(sizeBytes); err != nil {
		if errors.Is(err, syscall.EFBIG) || errors.Is(err, syscall.EINVAL) {
			return fmt.Errorf("extend the file to %d bytes, which its file system cannot: %w", sizeBytes, err)
		}
		return fmt.Errorf("extend the file: %w", err)
	}
	if err := d.f.Sync(); err != nil {
		return fmt.Errorf("extend the file: %w", err)
	}
	return nil
}
