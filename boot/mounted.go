package boot

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"
)

// rootDevice is where the root is.
var rootDevice = fmt.Sprintf("/dev/ublkb%d", rootID)

// Mounted does what is to be done between the mount of the root at dir and its own init: see the package. It does all that it can, whatever fails, and returns
// what did, joined: a node that comes up without its name is of more use than one that does not.
func Mounted(g Given, dir string, out io.Writer) error {
	c := &console{w: out}
	errs := []error{checkModules(c, dir), keepNetwork("/")}
	grow, traits := g.SizeBytes > 0, g.traits()
	if !grow && len(traits) == 0 {
		return errors.Join(errs...)
	}
	back, err := writable(dir)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	if grow {
		errs = append(errs, grown(c, dir))
	}
	names, err := givePersonality(dir, traits)
	for _, name := range names {
		c.say("the node was given its %s", name)
	}
	return errors.Join(append(errs, err, back())...)
}

// checkModules tells of a kernel whose modules the system lacks: it runs, but whatever has not been loaded by now will be missing.
func checkModules(c *console, dir string) error {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return fmt.Errorf("find out which kernel this is: %w", err)
	}
	release := unix.ByteSliceToString(uts.Release[:])
	if _, err := os.Stat("/proc/modules"); err != nil {
		return nil // a kernel without modules
	}
	for _, lib := range []string{"lib/modules", "usr/lib/modules"} {
		if _, err := os.Stat(filepath.Join(dir, lib, release)); err == nil {
			return nil
		}
	}
	c.say("WARNING: the root has no modules of the kernel that runs, %s: it has %s. Drivers that are not loaded yet will be missing.", release, kernelsIn(dir))
	c.say("  to do: boot a kernel that the image has, or install this one's package in the image and build it again")
	return nil
}

func kernelsIn(dir string) string {
	var found []string
	for _, pattern := range []string{"lib/modules/*", "usr/lib/modules/*"} {
		names, _ := filepath.Glob(filepath.Join(dir, pattern)) // it fails on bad patterns alone
		for _, name := range names {
			found = append(found, filepath.Base(name))
		}
		if len(found) > 0 {
			return fmt.Sprintf("those of %q", found)
		}
	}
	return "none"
}

// writable makes the mounted root writable where it is not, and returns what takes that back.
func writable(dir string) (back func() error, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return nil, fmt.Errorf("find out how the root is mounted: %w", err)
	}
	if st.Flags&unix.ST_RDONLY == 0 {
		return func() error { return nil }, nil
	}
	// The flags that statfs(2) shows are those of mount(2), but for MS_RELATIME and what is about mounts alone.
	keep := uintptr(st.Flags) & (unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME | unix.MS_NODIRATIME | unix.MS_SYNCHRONOUS)
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|keep, ""); err != nil {
		return nil, fmt.Errorf("make the root writable: %w", err)
	}
	return func() error {
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY|keep, ""); err != nil {
			return fmt.Errorf("make the root read-only again: %w", err)
		}
		return nil
	}, nil
}

func grown(c *console, dir string) error {
	before, after, err := growFS(dir, rootDevice)
	if err != nil {
		return fmt.Errorf("grow the root's file system to its device: %w", err)
	}
	if after > before {
		c.say("the root's file system was grown from %s to %s", humanize.IBytes(uint64(before)), humanize.IBytes(uint64(after)))
	}
	return nil
}
