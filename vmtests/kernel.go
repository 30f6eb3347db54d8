package vmtests

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Kernel is an extracted Debian kernel.
type Kernel struct {
	Image   string // vmlinuz
	Modules string // cpio archive of lib/modules/Release, uncompressed
	Release string // as uname -r prints it in the guest
}

// plainModules are stored decompressed with all they depend on: kernels differ in whether they can decompress a module
// themselves, and xz is slow under emulation. All others stay as Debian packs them.
var plainModules = []string{
	"brd", "configfs", "crc32c-intel", "dm-delay", "dm-flakey", "dm-log-writes", "dm-mod", "dm-snapshot", "loop", "nbd",
	"null_blk", "nvme-tcp", "nvmet-tcp", "overlay", "sch_netem", "ublk_drv", "virtio_blk", "virtio_net", "xfs",
}

const kernelPattern = `^linux-image-6\.12\.[0-9].*-cloud-amd64-unsigned$`

// Kernel downloads and extracts the newest 6.12 cloud kernel that the machine's apt sources offer.
func (b *Build) Kernel(ctx context.Context) (Kernel, error) {
	recipe := "kernel 3 " + kernelPattern + strings.Join(plainModules, " ")
	dir, err := b.asset(ctx, "kernel", recipe, b.fillKernel)
	if err != nil {
		return Kernel{}, err
	}
	release, err := os.ReadFile(filepath.Join(dir, "release"))
	if err != nil {
		return Kernel{}, fmt.Errorf("read kernel release: %w", err)
	}
	return Kernel{
		Image:   filepath.Join(dir, "vmlinuz"),
		Modules: filepath.Join(dir, "modules.cpio"),
		Release: string(release),
	}, nil
}

func (b *Build) fillKernel(ctx context.Context, dir string) error {
	if err := b.need(ctx, "depmod", "dpkg-deb", "xz"); err != nil {
		return err
	}
	if err := b.withLists(ctx, func() error { return b.downloadKernel(ctx, dir) }); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("find downloaded kernel package: %d files, %w", len(debs), err)
	}
	tree := filepath.Join(dir, "tree")
	if _, err := command(ctx, dir, "dpkg-deb", "-x", debs[0], tree); err != nil {
		return err
	}
	if err := adopt(filepath.Join(tree, "boot"), "vmlinuz-*", filepath.Join(dir, "vmlinuz")); err != nil {
		return err
	}
	if err := mergeUsr(tree); err != nil {
		return err
	}
	release, err := soleName(filepath.Join(tree, modulesDir))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "release"), []byte(release), 0o644); err != nil {
		return err
	}
	if err := packModules(ctx, tree, release, filepath.Join(dir, "modules.cpio")); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(tree), os.Remove(debs[0]))
}

// modulesDir is where a tree holds modules after mergeUsr.
const modulesDir = "usr/lib/modules"

// mergeUsr makes a package's modules reachable below lib and usr/lib: releases differ in where they and depmod have them.
func mergeUsr(tree string) error {
	lib, merged := filepath.Join(tree, "lib"), filepath.Join(tree, modulesDir)
	if !isDir(merged) {
		err := errors.Join(os.MkdirAll(filepath.Dir(merged), 0o755), os.Rename(filepath.Join(lib, "modules"), merged))
		if err != nil {
			return fmt.Errorf("move modules below usr: %w", err)
		}
	}
	return errors.Join(os.RemoveAll(lib), os.Symlink("usr/lib", lib))
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// downloadKernel fetches the newest package that can be had into dir.
func (b *Build) downloadKernel(ctx context.Context, dir string) error {
	out, err := command(ctx, "", "apt-cache", "search", "--names-only", kernelPattern)
	if err != nil {
		return err
	}
	names := newestFirst(out)
	if len(names) == 0 {
		return errors.New("look up kernel: no package linux-image-6.12.*-cloud-amd64-unsigned in the apt sources; " +
			"add bookworm-security or bookworm-backports (Debian 12) or trixie main (Debian 13)")
	}
	var tried error
	for _, name := range names {
		_, err := command(ctx, dir, "apt-get", "download", "-q", name)
		if err == nil {
			b.log("kernel package %s", name)
			return nil
		}
		tried = errors.Join(tried, err)
	}
	return tried
}

// newestFirst takes the package names from apt-cache search and sorts them by the numbers in them, highest first.
func newestFirst(search string) []string {
	var names []string
	for line := range strings.Lines(search) {
		name, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		if regexp.MustCompile(kernelPattern).MatchString(name) {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(slices.Compare(numbers(b), numbers(a)), strings.Compare(b, a))
	})
	return names
}

func numbers(s string) []int {
	var ns []int
	for _, digits := range regexp.MustCompile(`[0-9]+`).FindAllString(s, -1) {
		n, err := strconv.Atoi(digits)
		if err != nil {
			return ns
		}
		ns = append(ns, n)
	}
	return ns
}

// adopt moves the only file in dir that matches pattern to path.
func adopt(dir, pattern, path string) error {
	files, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(files) != 1 {
		return fmt.Errorf("find %s in %s: %d matches, want 1", pattern, dir, len(files))
	}
	return os.Rename(files[0], path)
}

func soleName(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		return "", fmt.Errorf("read %s: want one entry, have %d: %w", dir, len(entries), err)
	}
	return entries[0].Name(), nil
}

// packModules decompresses plainModules, indexes the tree and writes it as a cpio archive.
func packModules(ctx context.Context, tree, release, archive string) error {
	dir := filepath.Join(tree, modulesDir, release)
	if _, err := command(ctx, "", "depmod", "-b", tree, release); err != nil {
		return err
	}
	files, err := moduleClosure(filepath.Join(dir, "modules.dep"), plainModules)
	if err != nil {
		return err
	}
	for _, f := range files {
		if !strings.HasSuffix(f, ".xz") {
			continue
		}
		if _, err := command(ctx, dir, "xz", "-d", f); err != nil {
			return err
		}
	}
	if _, err := command(ctx, "", "depmod", "-b", tree, release); err != nil {
		return err
	}
	return writeArchive(archive, func(w *cpioWriter) error { return w.addTree(dir, "lib/modules/"+release) })
}

// moduleClosure returns the files of the named modules and of all that they need, relative to the modules.dep file.
func moduleClosure(depFile string, names []string) ([]string, error) {
	text, err := os.ReadFile(depFile)
	if err != nil {
		return nil, err
	}
	wanted := make(map[string]bool, len(names))
	for _, n := range names {
		wanted[strings.ReplaceAll(n, "-", "_")] = true
	}
	files := make(map[string]bool)
	for line := range strings.Lines(string(text)) {
		file, needs, _ := strings.Cut(strings.TrimSpace(line), ":")
		base, _, _ := strings.Cut(filepath.Base(file), ".ko")
		name := strings.ReplaceAll(base, "-", "_")
		if !wanted[name] {
			continue
		}
		delete(wanted, name)
		files[file] = true
		for _, n := range strings.Fields(needs) {
			files[n] = true
		}
	}
	if len(wanted) > 0 {
		return nil, fmt.Errorf("find modules in %s: %v missing from this kernel", depFile, wanted)
	}
	var sorted []string
	for f := range files {
		sorted = append(sorted, f)
	}
	slices.Sort(sorted)
	return sorted, nil
}
