package main

import (
	"errors"
	"fmt"
)

const snapshotName = "coppice-bench"

// newSnapshot makes a persistent dm-snapshot with 4 KiB chunks: origin over the RAM disk of
// its name through a loop device with direct I/O, exceptions to the store, which is reached through another one where its size is given.
func newSnapshot(origin, store string, size, storeSize int64) (d *device, err error) {
	var clean cleanup
	defer func() {
		if err != nil {
			err = errors.Join(err, clean.run())
		}
	}()
	// A first chunk of zeros is what dm-snapshot takes for an empty store.
	if err := wipe(store); err != nil {
		return nil, err
	}
	below, err := newLoop(origin, size, true)
	if err != nil {
		return nil, err
	}
	clean.add(below.close)
	if storeSize > 0 {
		above, err := newLoop(store, storeSize, true)
		if err != nil {
			return nil, err
		}
		clean.add(above.close)
		store = above.path
	}
	table := fmt.Sprintf("0 %d snapshot %s %s P 8", size/512, below.path, store)
	if err := dmsetup("create", snapshotName, "--table", table); err != nil {
		return nil, err
	}
	clean.add(func() error { return dmsetup("remove", "--retry", snapshotName) })
	return &device{path: "/dev/mapper/" + snapshotName, close: clean.run}, nil
}

func dmsetup(args ...string) error { return command("dmsetup", args...) }
