package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"coppice/bench"
)

// hugeSize is the size of the roots that devices are made on.
const hugeSize = 10 << 40

// hugeRoot is a sparse file on tmpfs.
const hugeRoot = "/run/coppice-bench-10T"

// maker makes a device as a shell would, and returns its path and how it is removed.
type maker func() (path string, undo func() error, err error)

// creations makes devices, one after the other, and reads the first block of each.
func (r *runner) creations(ctx context.Context, round int, s bench.Subject) error {
	produce, err := r.lab.maker(s.Name)
	if err != nil {
		return err
	}
	return r.timed(round, s, bench.Create, func() (bench.Figure, error) {
		var times []time.Duration
		for range bench.Creations {
			if err := ctx.Err(); err != nil {
				return bench.Figure{}, err
			}
			began := time.Now()
			path, undo, err := produce()
			if err != nil {
				return bench.Figure{}, err
			}
			err = readAll(path, fillBlock)
			times = append(times, time.Since(began))
			if err := errors.Join(err, undo()); err != nil {
				return bench.Figure{}, err
			}
		}
		slices.Sort(times)
		median := times[len(times)/2]
		us := float64(median.Microseconds())
		return bench.Figure{IOPS: 1 / median.Seconds(), MeanUS: us, P50US: us, IOs: bench.Creations}, nil
	})
}

// maker prepares what is there before the first command.
func (l *lab) maker(name bench.SubjectName) (maker, error) {
	f, err := os.OpenFile(hugeRoot, os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = errors.Join(f.Truncate(hugeSize), f.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("make sparse root: %w", err)
	}
	if err := wipe(copyDisk); err != nil {
		return nil, err
	}
	switch name {
	case bench.CreateLoop:
		return func() (string, func() error, error) { return losetup("--direct-io=on", hugeRoot) }, nil
	case bench.CreateSnapshot:
		return hugeSnapshot, nil
	case bench.CreateQemu:
		return hugeQemu, nil
	case bench.CreateUnionRaw:
		return l.hugeUnion(hugeRoot)
	case bench.CreateUnion:
		ref := "oci:/tmp/coppice-bench-10T:root:1"
		if err := command(coppiceBinary, "image", "build", ref, hugeRoot); err != nil {
			return nil, err
		}
		return l.hugeUnion(ref)
	}
	return nil, fmt.Errorf("nothing makes a device for subject %q", name)
}

func losetup(args ...string) (string, func() error, error) {
	path, err := output("losetup", append([]string{"--find", "--show"}, args...)...)
	return path, func() error { return command("losetup", "--detach", path) }, err
}

func hugeSnapshot() (string, func() error, error) {
	root, undo, err := losetup("--direct-io=on", "--read-only", hugeRoot)
	if err != nil {
		return "", nil, err
	}
	const name = "coppice-bench-10T"
	if err := dmsetup("create", name, "--table", fmt.Sprintf("0 %d snapshot %s %s P 8", int64(hugeSize)/512, root, copyDisk)); err != nil {
		return "", nil, errors.Join(err, undo())
	}
	return "/dev/mapper/" + name, func() error { return errors.Join(dmsetup("remove", "--retry", name), undo()) }, nil
}

func hugeQemu() (string, func() error, error) {
	if err := command("qemu-img", "create", "-q", "-f", "qcow2", "-b", hugeRoot, "-F", "raw", copyDisk, strconv.FormatInt(hugeSize, 10)); err != nil {
		return "", nil, err
	}
	device := "/dev/" + nbdDevice
	if err := command("qemu-nbd", "--connect="+device, "--format=qcow2", "--cache=none", "--aio=native", copyDisk); err != nil {
		return "", nil, err
	}
	// It goes into the background before the device has a size.
	if err := await(func() bool { return nbdSize() > 0 }); err != nil {
		return "", nil, fmt.Errorf("wait for qemu-nbd: %w", err)
	}
	return device, func() error {
		return errors.Join(command("qemu-nbd", "--disconnect", device), await(func() bool { return nbdSize() == 0 }))
	}, nil
}

// hugeUnion makes devices on one store, which is formatted now, and on a layer of its own each.
func (l *lab) hugeUnion(root string) (maker, error) {
	d, err := l.daemon(true)
	if err != nil {
		return nil, err
	}
	if err := command(coppiceBinary, "store", "format", "--force", leafDisk); err != nil {
		return nil, err
	}
	n := 0
	return func() (string, func() error, error) {
		n++
		made, err := d.createOn("huge"+strconv.Itoa(n), root, leafDisk)
		if err != nil {
			return "", nil, err
		}
		return made.path, made.close, nil
	}, nil
}
