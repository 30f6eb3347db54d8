// Command fsread mounts a file system, which replays its journal, reads all files in its top directory, and unmounts it again. It prints
// what it found as a line of JSON. It runs in a guest of the harness, and needs no userland.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"coppice/vmtests/powercut"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: fsread TYPE DEVICE OPTIONS")
		os.Exit(2)
	}
	found, err := read(os.Args[1], os.Args[2], os.Args[3])
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(found)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "fsread:", err)
		os.Exit(1)
	}
}

func read(fstype, device, options string) (found []powercut.Found, err error) {
	if err := dropCache(device); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "fsread-")
	if err != nil {
		return nil, err
	}
	if err := unix.Mount(device, dir, fstype, 0, options); err != nil {
		return nil, fmt.Errorf("mount %s: %w", device, err)
	}
	found, err = powercut.ReadTree(dir)
	if err := errors.Join(err, unix.Unmount(dir, 0)); err != nil {
		return nil, err
	}
	return found, os.Remove(dir)
}

// dropCache makes the kernel forget what it has read of the device: the host changes what is on it.
func dropCache(device string) error {
	f, err := os.Open(device)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.BLKFLSBUF, 0); err != nil {
		return fmt.Errorf("flush buffers of %s: %w", device, err)
	}
	return nil
}
