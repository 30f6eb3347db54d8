package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
)

const snapshotName = "coppice-bench"

// newSnapshot makes a persistent dm-snapshot with 4 KiB chunks: origin over the RAM disk of
// its name, exceptions to the other, both through loop devices with direct I/O.
func newSnapshot(origin, store string, size, storeSize int64) (d *device, err error) {
	var clean cleanup
	defer func() {
		if err != nil {
			err = errors.Join(err, clean.run())
		}
	}()
	// A first chunk of zeros is what dm-snapshot takes for an empty store.
	if err := fill(store, 64<<10, 0); err != nil {
		return nil, err
	}
	below, err := newLoop(origin, size)
	if err != nil {
		return nil, err
	}
	clean.add(below.close)
	above, err := newLoop(store, storeSize)
	if err != nil {
		return nil, err
	}
	clean.add(above.close)
	table := fmt.Sprintf("0 %d snapshot %s %s P 8", size/512, below.path, above.path)
	if err := dmsetup("create", snapshotName, "--table", table); err != nil {
		return nil, err
	}
	clean.add(func() error { return dmsetup("remove", "--retry", snapshotName) })
	return &device{path: "/dev/mapper/" + snapshotName, close: clean.run}, nil
}

func dmsetup(args ...string) error {
	cmd := exec.Command("dmsetup", args...)
	cmd.Env = append(os.Environ(), "DM_DISABLE_UDEV=1") // there is none to wait for
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run dmsetup %s: %w: %s", args[0], err, output)
	}
	return nil
}
