package main

import (
	"context"
	"errors"
	"fmt"

	"coppice/bench"
)

// RAM disks and what they are for. Each is written once, as far as it will be used (the leaf's to its end),
// so that no job pays for the allocation of its pages.
const (
	loopDisk   = "/dev/ram0"
	rootDisk   = "/dev/ram1"
	leafDisk   = "/dev/ram2"
	originDisk = "/dev/ram3"
	copyDisk   = "/dev/ram4"
)

// Room for copies, in sizes of the device: the union's leaf takes overwritten blocks to new places
// until a flush frees the old, and dm-snapshot adds its exception tables.
const (
	leafRoom = 4
	copyRoom = 2
)

// lab holds what devices are made from.
type lab struct {
	size int64
	ours *ours
}

func newLab(size int64) (*lab, error) {
	for disk, room := range map[string]int64{loopDisk: 1, rootDisk: 1, leafDisk: leafRoom, originDisk: 1, copyDisk: copyRoom} {
		if err := fill(disk, size*room, 0xa5); err != nil {
			return nil, fmt.Errorf("prepare RAM disks (module brd, of at least %d MiB): %w", size*leafRoom>>20, err)
		}
	}
	o, err := newOurs(size)
	if err != nil {
		return nil, err
	}
	return &lab{size: size, ours: o}, nil
}

func (l *lab) Close() error { return l.ours.Close() }

// device makes the device that a subject's jobs run on.
func (l *lab) device(ctx context.Context, name bench.SubjectName) (*device, error) {
	switch name {
	case bench.Baseline:
		return newLoop(loopDisk, l.size)
	case bench.LoopFile:
		return newFileLoop(l.size)
	case bench.SnapshotRoot, bench.SnapshotFirst:
		return newSnapshot(originDisk, copyDisk, l.size, l.size*copyRoom)
	case bench.SnapshotLeaf:
		d, err := newSnapshot(originDisk, copyDisk, l.size, l.size*copyRoom)
		return l.filled(d, err)
	case bench.Null:
		return l.ours.null(ctx)
	case bench.Memory:
		return l.filled(l.ours.memory(ctx))
	case bench.RootRead, bench.FirstTouch:
		return l.ours.union(ctx, false)
	case bench.LeafRead, bench.Overwrite:
		return l.filled(l.ours.union(ctx, false))
	case bench.LeafReadChecked:
		return l.filled(l.ours.union(ctx, true))
	}
	return nil, fmt.Errorf("no device for subject %q", name)
}

// filled writes every block of a new device once.
func (l *lab) filled(d *device, err error) (*device, error) {
	if err != nil {
		return nil, err
	}
	if err := fill(d.path, l.size, 0x5a); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}
