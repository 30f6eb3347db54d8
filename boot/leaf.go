package boot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"coppice/node"
	"coppice/union"
)

// ramDisk is the memory that a leaf can be in: the first of the kernel's own RAM disks. Its pages belong to the kernel, so that none of them is ever
// swapped out to a file on the disk that it serves, as those of a tmpfs could be.
const ramDisk = "/dev/ram0"

// findLeaf returns the path of the leaf disk, which is a store or may become one.
func (s *starter) findLeaf(ctx context.Context) (string, error) {
	if s.params.Leaf.RAM {
		return s.findRAM(ctx)
	}
	path, err := s.waitDisk(ctx, "leaf disk", s.params.Leaf.Device, s.params.Leaf.Wait)
	if err != nil {
		return "", err
	}
	return path, s.checkLeaf(path)
}

// checkLeaf refuses a disk that is no store and may not become one, or holds something.
func (s *starter) checkLeaf(path string) error {
	l := s.params.Leaf
	formatted, err := isStore(path)
	if err != nil || formatted {
		return err
	}
	holds, err := identify(path)
	switch {
	case err != nil:
		return err
	case !l.Format:
		return problem(node.CodeNotFormatted,
			"if nothing on it is needed, make a store there: give "+keyLeaf+"="+l.Device+",format once, or run coppice store format "+path,
			"leaf disk %s is no leaf store%s, and nothing allows to make one on it", l, holding(holds))
	case holds != "":
		return s.notEmpty(path, holds)
	}
	return nil
}

func (s *starter) notEmpty(path, holds string) error {
	return problem(node.CodeNotFormatted,
		"give another disk; or, if nothing on this one is needed, empty it: blkdiscard -f "+path+", or write zeros over its first and last MiB",
		"leaf disk %s is not formatted: it is not empty%s", s.params.Leaf, holding(holds))
}

// formatLeaf makes a store on a disk that was found, and on which nothing is. One that is there already is never touched, damaged or not.
func (s *starter) formatLeaf(path string) error {
	l := s.params.Leaf
	formatted, err := isStore(path)
	if err != nil || formatted {
		return err
	}
	info, err := union.Format(path, union.FormatOptions{CacheBytes: l.CacheBytes})
	size := ""
	if err == nil {
		size = humanize.IBytes(uint64(info.SizeBytes))
	}
	switch {
	case errors.Is(err, union.ErrNotEmpty):
		return s.notEmpty(path, "")
	case err != nil:
		return err
	case l.RAM:
		s.console.say("leaf is %s of memory: what is written is gone when the machine is switched off", size)
	default:
		s.console.say("leaf disk %s was empty: formatted, %s", l, size)
	}
	return nil
}

func holding(what string) string {
	if what == "" {
		return ""
	}
	return " (it holds " + what + ")"
}

// isStore tells whether a disk is a leaf store. One that is damaged, of another version, or in use is one.
func isStore(path string) (bool, error) {
	_, err := union.Identify(path)
	switch {
	case errors.Is(err, union.ErrNotFormatted):
		return false, nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		return false, err
	}
	return true, nil
}

// findRAM makes a disk of memory.
func (s *starter) findRAM(ctx context.Context) (string, error) {
	want := cmp.Or(s.params.Leaf.RAMBytes, memoryBytes()/2)
	if want > memoryBytes() {
		return "", problem(node.CodeBadLeaf, "give less, or nothing for half of it",
			"%s=ram:%s is more than the memory of this machine, %s", keyLeaf, humanize.IBytes(uint64(want)), humanize.IBytes(uint64(memoryBytes())))
	}
	if _, err := os.Stat(ramDisk); err != nil {
		if err := s.modprobe(ctx, "brd", "rd_nr=1", "max_part=0", fmt.Sprintf("rd_size=%d", want>>10)); err != nil {
			return "", problem(node.CodeBadLeaf, "give a disk for the leaf, or add the module brd to the initramfs", "no memory for the leaf: %v", err)
		}
	}
	return s.waitDisk(ctx, "RAM disk", ramDisk, defaultWait)
}

func memoryBytes() int64 {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0
	}
	return int64(info.Totalram) * int64(info.Unit)
}

// loadDriver makes the driver ready.
func (s *starter) loadDriver(ctx context.Context) error {
	const control = "/dev/ublk-control"
	if _, err := os.Stat(control); err == nil {
		return nil
	}
	err := s.modprobe(ctx, "ublk_drv")
	if err == nil {
		_, err = os.Stat(control)
	}
	if err == nil {
		return nil
	}
	var uts unix.Utsname
	release := "this kernel"
	if unix.Uname(&uts) == nil {
		release = "kernel " + unix.ByteSliceToString(uts.Release[:])
	}
	return problem(node.CodeNoDriver,
		"the initramfs must have the module ublk_drv of the kernel that is booted (Linux 6.1 or later): make it again with update-initramfs -u -k VERSION or dracut --force --kver VERSION",
		"%s has no ublk driver: %v", release, err)
}

// modprobe loads a module.
func (s *starter) modprobe(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "modprobe", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("modprobe %s: %w: %.200s", args[0], err, out)
	}
	return nil
}

// layerOf returns what a store says of a layer, if it has it. The store is not changed.
func layerOf(path, name string) (union.LayerInfo, bool, error) {
	layers, err := union.Layers(path)
	l, found := layers[name]
	return l, found, err
}
