package vmtests

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// packageOf names the Debian package that brings each program the harness runs on the host.
var packageOf = map[string]string{
	"cpio":               "cpio",
	"debugfs":            "e2fsprogs",
	"depmod":             "kmod",
	"dpkg-deb":           "dpkg",
	"dumpe2fs":           "e2fsprogs",
	"e2fsck":             "e2fsprogs",
	"mke2fs":             "e2fsprogs",
	"mkfs.xfs":           "xfsprogs",
	"mmdebstrap":         "mmdebstrap",
	"nbdkit":             "nbdkit",
	"qemu-system-x86_64": "qemu-system-x86",
	"sfdisk":             "fdisk",
	"xfs_repair":         "xfsprogs",
	"xz":                 "xz-utils",
}

// need installs what brings the named programs, where they are missing.
func (b *Build) need(ctx context.Context, programs ...string) error {
	var packages []string
	for _, p := range programs {
		if !haveProgram(p) {
			packages = append(packages, packageOf[p])
		}
	}
	if len(packages) == 0 {
		return nil
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("install %s: not root; run as root or install them by hand", strings.Join(packages, " "))
	}
	unlock, err := lockFile(filepath.Join(b.dir, "apt.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	b.log("installing %s", strings.Join(packages, " "))
	args := append([]string{"install", "-y", "-q", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=600"}, packages...)
	return b.withLists(ctx, func() error {
		_, err := command(ctx, "", "apt-get", args...)
		return err
	})
}

func haveProgram(name string) bool {
	dirs := append(filepath.SplitList(os.Getenv("PATH")), "/usr/local/sbin", "/usr/sbin", "/sbin")
	return slices.ContainsFunc(dirs, func(dir string) bool {
		info, err := os.Stat(filepath.Join(dir, name))
		return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
	})
}

// withLists runs do with the package lists at hand: when it does not succeed with those that are there (none, or
// outdated), they are fetched and it is tried once more.
func (b *Build) withLists(ctx context.Context, do func() error) error {
	lists, _ := filepath.Glob("/var/lib/apt/lists/*_InRelease")
	if len(lists) > 0 && do() == nil {
		return nil
	}
	b.log("fetching package lists")
	if _, err := command(ctx, "", "apt-get", "update", "-q"); err != nil {
		return err
	}
	return do()
}
