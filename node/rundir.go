package node

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// runDirNames are what may be in a run directory: the daemon's own, and what packages union and supervise keep.
var runDirNames = []string{lockName, socketName, devicesName, detachesName, namesName, endingName, upgradeName, "stores", "supervisor"}

// makeRunDir makes the directories, closed to others. One that is there is taken only if it is ours
// alone: the modes of, say, /tmp are not to be changed, and nobody may plant files in it.
func makeRunDir(cfg Config) error {
	devices, names := filepath.Join(cfg.RunDir, devicesName), filepath.Join(cfg.RunDir, namesName)
	if err := checkRunDir(cfg.RunDir); err != nil {
		return err
	}
	for _, dir := range []string{devices, names} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return fmt.Errorf("make run directory: %w", err)
		}
	}
	for _, dir := range []string{cfg.RunDir, devices, names} {
		if err := checkOwner(dir); err != nil {
			return err
		}
		if err := os.Chmod(dir, 0o750); err != nil {
			return fmt.Errorf("protect run directory: %w", err)
		}
	}
	if cfg.SocketGroup == 0 {
		return nil
	}
	if err := os.Chown(cfg.RunDir, -1, cfg.SocketGroup); err != nil {
		return fmt.Errorf("give run directory to group: %w", err)
	}
	return nil
}

func checkRunDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("use run directory: %w", err)
	}
	for _, e := range entries {
		if !slices.Contains(runDirNames, e.Name()) {
			return fail(CodeForbidden, "choose a --run-dir of its own for the daemon",
				"use run directory %s: it holds other things (%s)", dir, e.Name())
		}
	}
	return checkOwner(dir)
}

func checkOwner(dir string) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return &fs.PathError{Op: "stat run directory", Path: dir, Err: err}
	}
	const hint = "remove it, or choose another --run-dir"
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid():
		return fail(CodeForbidden, hint, "use run directory %s: not a directory of user %d", dir, os.Geteuid())
	case st.Mode&(unix.S_IWGRP|unix.S_IWOTH) != 0:
		return fail(CodeForbidden, hint, "use run directory %s: others may write to it", dir)
	}
	return nil
}
