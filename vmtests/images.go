package vmtests

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const suite = "bookworm"

// userlandPackages are the tools that tests and benchmarks use in the guest.
var userlandPackages = []string{
	"dmsetup", "e2fsprogs", "fdisk", "fio", "gdisk", "iproute2", "kmod", "nbd-client", "nbdkit", "nfs-kernel-server", "parted", "plocate", "procps",
	"qemu-utils", "strace", "util-linux", "xfsprogs",
}

// Userland returns an ext4 image with a small Debian system and the tools, made to be mounted read-only.
func (b *Build) Userland(ctx context.Context) (string, error) {
	args := []string{
		"--mode=root", "--variant=minbase", "--include=" + strings.Join(userlandPackages, ","),
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
		"--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=path-exclude=/usr/share/info/*",
	}
	dir, err := b.asset(ctx, "userland", "userland 1 "+suite+strings.Join(args, " "), func(ctx context.Context, dir string) error {
		if err := b.need(ctx, "mmdebstrap", "mke2fs"); err != nil {
			return err
		}
		tree := filepath.Join(dir, "tree")
		if _, err := command(ctx, dir, "mmdebstrap", append(args, suite, tree)...); err != nil {
			return err
		}
		if err := ext4FromTree(ctx, tree, filepath.Join(dir, "image"), 0, "^has_journal"); err != nil {
			return err
		}
		return os.RemoveAll(tree)
	})
	return filepath.Join(dir, "image"), err
}

// ext4FromTree makes a sparse ext4 image of the given size, or just large enough when size is 0, with the tree's content.
func ext4FromTree(ctx context.Context, tree, image string, sizeBytes int64, features string) error {
	if sizeBytes == 0 {
		used, err := treeSize(tree)
		if err != nil {
			return err
		}
		sizeBytes = (used*5/4 + 32<<20) &^ (1<<20 - 1)
	}
	args := []string{"-q", "-t", "ext4", "-m", "0", "-E", "root_owner=0:0,lazy_itable_init=0,nodiscard", "-d", tree}
	if features != "" {
		args = append(args, "-O", features)
	}
	_, err := command(ctx, "", "mke2fs", append(args, image, fmt.Sprintf("%dk", sizeBytes>>10))...)
	return err
}

// treeSize is the space that the files of a tree take, in blocks of 4 KiB.
func treeSize(tree string) (int64, error) {
	var total int64
	err := filepath.WalkDir(tree, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			total += (info.Size() + 4095) &^ 4095
		}
		return err
	})
	return total, err
}
