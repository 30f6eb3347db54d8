package vmtests

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The root images: the same real Debian system in several wrappings, and what is installed into it later.
const (
	ImageExt4 = "debian" // ext4 without a partition table
	ImageGPT  = "gpt"    // the ext4 image as the only partition of a GPT disk
	ImagePair = "pair"   // the ext4 image as first partition of a GPT disk, an empty one for a leaf as second
	ImageXFS  = "xfs"    // xfs without a partition table
	ImageRepo = "repo"   // ext4 with a flat apt repository: RepoPackages with all that they need beyond the root, and upgrades of it
)

// ImageNames are all images that ImageDisk knows.
var ImageNames = []string{ImageExt4, ImageGPT, ImagePair, ImageXFS, ImageRepo}

// RepoPackages can be installed offline from ImageRepo into the Debian root.
var RepoPackages = []string{"jq", "nginx-light", "rsync", "sqlite3", "tmux"}

// The root is a release as it came out; what it can be upgraded to is in updateSources.
const releaseSource = "deb http://deb.debian.org/debian " + suite + " main"

var updateSources = []string{
	releaseSource,
	"deb http://deb.debian.org/debian " + suite + "-updates main",
	"deb http://security.debian.org/debian-security " + suite + "-security main",
}

// rootPackages make a small but bootable system together with minbase.
var rootPackages = []string{
	"ca-certificates", "dbus", "ifupdown", "iproute2", "kmod", "less", "nano", "procps", "systemd-sysv", "udev",
}

const (
	rootSizeBytes = 1 << 30
	leafSizeBytes = 2 << 30
	// gapBytes is kept free before the first and after the last partition of a disk.
	gapBytes = 1 << 20
)

// Image returns the path of the named image, made from real packages when it is missing. It must not be written: attach
// it read-only or as snapshot.
func (b *Build) Image(ctx context.Context, name string) (string, error) {
	if !slices.Contains(ImageNames, name) {
		return "", fmt.Errorf("find image %s: unknown; known are %s", name, strings.Join(ImageNames, ", "))
	}
	recipe := fmt.Sprint("debian 2 ", updateSources, rootPackages, RepoPackages, rootSizeBytes, leafSizeBytes)
	dir, err := b.asset(ctx, "debian", recipe, b.fillDebian)
	return filepath.Join(dir, name+".img"), err
}

// ImageDisk returns the named image as a read-only disk of that name.
func (b *Build) ImageDisk(ctx context.Context, name string) (Disk, error) {
	path, err := b.Image(ctx, name)
	return Disk{Name: name, Path: path, ReadOnly: true}, err
}

func (b *Build) fillDebian(ctx context.Context, dir string) error {
	if err := b.need(ctx, "dpkg-deb", "mke2fs", "mkfs.xfs", "mmdebstrap", "sfdisk"); err != nil {
		return err
	}
	tree, debs := filepath.Join(dir, "tree"), filepath.Join(dir, "debs")
	if err := os.Mkdir(debs, 0o755); err != nil {
		return err
	}
	// What the system itself was made of is dropped first: the repository gets what is missing in the root, no more.
	download := `set -e; get="chroot $1 apt-get -y -q --no-install-recommends"; list=$1/etc/apt/sources.list; $get clean; cp $list ` + dir + `
printf '%s\n' '` + strings.Join(updateSources, "' '") + `' >$list; $get update; $get upgrade --download-only
$get install --download-only ` + strings.Join(RepoPackages, " ") + `; cp $1/var/cache/apt/archives/*.deb ` + debs + `; mv ` + dir + `/sources.list $list`
	if err := bootstrap(ctx, tree, []string{releaseSource}, rootPackages, "--customize-hook="+download); err != nil {
		return err
	}
	image := func(name string) string { return filepath.Join(dir, name+".img") }
	if err := ext4FromTree(ctx, tree, image(ImageExt4), rootSizeBytes, ""); err != nil {
		return err
	}
	if err := xfsFromTree(ctx, tree, image(ImageXFS), rootSizeBytes); err != nil {
		return err
	}
	if err := writeRepository(ctx, debs); err != nil {
		return err
	}
	if err := ext4FromTree(ctx, debs, image(ImageRepo), 0, "^has_journal"); err != nil {
		return err
	}
	err := errors.Join(
		partitioned(ctx, image(ImageGPT), image(ImageExt4)),
		partitioned(ctx, image(ImagePair), image(ImageExt4), leafSizeBytes),
	)
	return errors.Join(err, os.RemoveAll(tree), os.RemoveAll(debs))
}

// bootstrap makes a tree of files of packages, and of what they need, from what the sources offer.
func bootstrap(ctx context.Context, tree string, sources, packages []string, options ...string) error {
	args := append([]string{"--mode=root", "--variant=minbase", "--include=" + strings.Join(packages, ",")}, options...)
	_, err := command(ctx, filepath.Dir(tree), "mmdebstrap", append(append(args, suite, tree), sources...)...)
	return err
}

// Rebuilt returns a directory with the tree of files of the Debian root as it is with all upgrades, made from scratch. It must not be written.
func (b *Build) Rebuilt(ctx context.Context) (string, error) {
	dir, err := b.asset(ctx, "rebuilt", fmt.Sprint("rebuilt 1 ", updateSources, rootPackages), func(ctx context.Context, dir string) error {
		if err := b.need(ctx, "mmdebstrap"); err != nil {
			return err
		}
		return bootstrap(ctx, filepath.Join(dir, "tree"), updateSources, rootPackages)
	})
	return filepath.Join(dir, "tree"), err
}

// partitioned makes a GPT disk whose first partition holds the image; empty ones of the given sizes follow.
func partitioned(ctx context.Context, path, image string, empty ...int64) error {
	info, err := os.Stat(image)
	if err != nil {
		return err
	}
	if err := emptyPartitions(ctx, path, append([]int64{info.Size()}, empty...)...); err != nil {
		return err
	}
	_, err = command(ctx, "", "dd", "if="+image, "of="+path, "bs=1M", "seek=1", "conv=sparse,notrunc", "status=none")
	return err
}

// emptyPartitions makes a GPT disk with partitions of the given sizes in bytes, the first at gapBytes, each where the one before ends.
func emptyPartitions(ctx context.Context, path string, sizes ...int64) error {
	var table strings.Builder
	table.WriteString("label: gpt\n")
	end := int64(gapBytes)
	for _, size := range sizes {
		fmt.Fprintf(&table, "start=%d, size=%d, type=linux\n", end>>9, size>>9)
		end += size
	}
	if err := SparseFile(path, end+gapBytes); err != nil {
		return err
	}
	script := path + ".sfdisk"
	if err := os.WriteFile(script, []byte(table.String()), 0o644); err != nil {
		return err
	}
	_, err := command(ctx, "", "sh", "-c", "sfdisk -q --no-reread --no-tell-kernel "+path+" <"+script)
	return errors.Join(err, os.Remove(script))
}

// writeRepository indexes the packages in dir as a flat apt repository.
func writeRepository(ctx context.Context, dir string) error {
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(debs) == 0 {
		return fmt.Errorf("index repository: no packages were downloaded: %w", err)
	}
	var index strings.Builder
	for _, deb := range debs {
		control, err := command(ctx, "", "dpkg-deb", "-f", deb)
		if err != nil {
			return err
		}
		sum, size, err := FileDigest(deb, math.MaxInt64)
		if err != nil {
			return err
		}
		fmt.Fprintf(&index, "%s\nFilename: ./%s\nSize: %d\nSHA256: %s\n\n", strings.TrimRight(control, "\n"), filepath.Base(deb), size, sum)
	}
	return os.WriteFile(filepath.Join(dir, "Packages"), []byte(index.String()), 0o644)
}
