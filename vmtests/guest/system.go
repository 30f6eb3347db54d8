package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// startSystem makes the file system on a disk the root, as [switchRoot] does, and hands this process over to the init that lies there, which does not come
// back. Where it fails after the change of roots, the agent still can say so.
func startSystem(disk string, how uintptr) error {
	const root = "/newroot"
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(disk, root, "ext4", 0, ""); err != nil {
		return fmt.Errorf("mount system %s: %w", disk, err)
	}
	if err := switchRoot(root, how, "/lib/modules"); err != nil {
		return err
	}
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=linux"}
	return fmt.Errorf("start /sbin/init of system %s: %w", disk, unix.Exec("/sbin/init", []string{"/sbin/init"}, env))
}
