package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

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
// until a flush frees the old, and dm-snapshot and qcow2 add their tables.
const (
	leafRoom = 4
	copyRoom = 2
)

// Seeds of what disks are filled with.
const (
	rootSeed = 0xa5
	newSeed  = 0x5a
)

// chainLayers is how long a chain can be.
const chainLayers = 64

// lab holds what devices are made from.
type lab struct {
	size    int64
	ours    *ours
	disk    string // virtio disk whose flushes reach the host
	daemons map[bool]*daemon
	image   string // reference of an image of the root, once it has been built
}

func newLab(size int64, diskName string) (*lab, error) {
	for disk, room := range map[string]int64{loopDisk: 1, rootDisk: 1, leafDisk: leafRoom, originDisk: 1, copyDisk: copyRoom} {
		if err := fill(disk, size*room, rootSeed); err != nil {
			return nil, fmt.Errorf("prepare RAM disks (module brd, of at least %d MiB): %w", size*leafRoom>>20, err)
		}
	}
	disk, err := filepath.EvalSymlinks(diskName)
	if err != nil {
		return nil, fmt.Errorf("find the virtio disk: %w", err)
	}
	bytes, err := diskSize(disk)
	if err == nil {
		err = fill(disk, bytes, rootSeed)
	}
	if err != nil {
		return nil, fmt.Errorf("prepare the virtio disk: %w", err)
	}
	// The daemon's numbers are had over the loopback interface, and nbd devices want nothing of the network.
	if err := command("ip", "link", "set", "lo", "up"); err != nil {
		return nil, err
	}
	// qemu-nbd wants its socket in /var/lock, which leads there.
	if err := os.MkdirAll("/run/lock", 0o755); err != nil {
		return nil, err
	}
	o, err := newOurs(size)
	if err != nil {
		return nil, err
	}
	return &lab{size: size, ours: o, disk: disk, daemons: map[bool]*daemon{}}, nil
}

// diskSize returns the size of a block device in bytes.
func diskSize(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.Seek(0, 2)
}

func (l *lab) Close() error {
	var errs []error
	for _, d := range l.daemons {
		errs = append(errs, d.stop())
	}
	return errors.Join(append(errs, l.ours.Close())...)
}

// daemon returns the one that verifies what it reads from leaves, or the one that does not. They run until the lab is closed, so that the
// one with the image has it in memory from its first use on.
func (l *lab) daemon(verify bool) (*daemon, error) {
	if d, ok := l.daemons[verify]; ok {
		return d, nil
	}
	d, err := startDaemon(verify, l.size)
	if err != nil {
		return nil, err
	}
	l.daemons[verify] = d
	return d, nil
}

// device makes the device that a subject's jobs run on.
func (l *lab) device(ctx context.Context, name bench.SubjectName) (*device, error) {
	switch name {
	case bench.Baseline:
		return newLoop(loopDisk, l.size, true)
	case bench.LoopBuffered:
		return newLoop(loopDisk, l.size, false)
	case bench.NullBlk:
		return &device{path: "/dev/nullb0", close: func() error { return nil }}, nil
	case bench.SnapshotRoot, bench.SnapshotFirst:
		return newSnapshot(originDisk, copyDisk, l.size, l.size*copyRoom)
	case bench.SnapshotLeaf:
		return l.filled(newSnapshot(originDisk, copyDisk, l.size, l.size*copyRoom))
	case bench.QemuRoot, bench.QemuFirst:
		return newQemu(originDisk, copyDisk, l.size)
	case bench.QemuLeaf:
		return l.filled(newQemu(originDisk, copyDisk, l.size))
	case bench.NbdkitRoot, bench.NbdkitFirst:
		return newNbdkit(originDisk, l.size)
	case bench.NbdkitLeaf:
		return l.filled(newNbdkit(originDisk, l.size))
	case bench.VirtioPlain:
		return &device{path: l.disk, close: func() error { return nil }}, nil
	case bench.VirtioUnion:
		return l.union(true, rootDisk, l.disk)
	case bench.VirtioSnapshot:
		return newSnapshot(originDisk, l.disk, l.size, 0)
	case bench.VirtioQemu:
		return newQemu(originDisk, l.disk, l.size)
	case bench.Null:
		return l.ours.null(ctx)
	case bench.Memory:
		return l.filled(l.ours.memory(ctx))
	}
	return l.unionDevice(name)
}

// unionDevice makes a device of the daemon.
func (l *lab) unionDevice(name bench.SubjectName) (*device, error) {
	switch name {
	case bench.Cached:
		return l.cached()
	case bench.RootRead, bench.FirstTouch:
		return l.union(true, rootDisk, leafDisk)
	case bench.LeafReadChecked, bench.Overwrite:
		return l.filled(l.union(true, rootDisk, leafDisk))
	case bench.LeafRead:
		return l.filled(l.union(false, rootDisk, leafDisk))
	case bench.Chain1:
		return l.chain(1)
	case bench.Chain64:
		return l.chain(chainLayers)
	}
	return nil, fmt.Errorf("no device for subject %q", name)
}

func (l *lab) union(verify bool, root, leaf string) (*device, error) {
	d, err := l.daemon(verify)
	if err != nil {
		return nil, err
	}
	return d.create(root, leaf)
}

// cached makes a device on an image whose chunks are all in the daemon's memory.
func (l *lab) cached() (*device, error) {
	if l.image == "" {
		ref := "oci:/tmp/coppice-bench-image:root:1"
		if err := command(coppiceBinary, "image", "build", ref, rootDisk); err != nil {
			return nil, err
		}
		l.image = ref
	}
	d, err := l.union(true, l.image, leafDisk)
	if err != nil {
		return nil, err
	}
	if err := readAll(d.path, l.size); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

// chain makes a device on sealed layers which together hold all of its blocks, and neighbouring stripes in different ones. It does not
// verify: what the depth costs is to be seen.
func (l *lab) chain(layers int64) (_ *device, err error) {
	d, err := l.union(false, rootDisk, leafDisk)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	for part := range int64(chainLayers) {
		if err := fillPart(d.path, l.size, newSeed, part, chainLayers); err != nil {
			return nil, err
		}
		if (part+1)%(chainLayers/layers) == 0 {
			if err := l.daemons[false].run("freeze", deviceName, "--crash-consistent", "--as", "sealed"+strconv.FormatInt(part, 10)); err != nil {
				return nil, err
			}
		}
	}
	// Views are built in the background, and by reading what they are about.
	if err := readAll(d.path, l.size); err != nil {
		return nil, err
	}
	return d, nil
}

// filled writes every block of a new device once.
func (l *lab) filled(d *device, err error) (*device, error) {
	if err != nil {
		return nil, err
	}
	if err := fill(d.path, l.size, newSeed); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}
