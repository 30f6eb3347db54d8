//go:build vm

package scenarios

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestDebianInstall is the main job: a Debian system is mounted through a union device, packages are really installed
// in it, and after the daemon was restarted and the device made again, every file is as it was left. Twice. Then dpkg verifies the files of
// packages that it has installed.
func TestDebianInstall(t *testing.T) {
	root, leaf := disk(t, "debian"), disk(t, "leaf")
	format(t, leaf)
	var before tree
	for round, packages := range installs {
		served := startDaemon(t)
		dev := create(t, "web1", root, leaf)
		dir := mountPoint(t, dev.Path, "-t ext4")
		if before != nil {
			before.same(t, readParts(t, dir))
		}
		began := time.Now()
		install(t, dir, strings.Join(packages, " "))
		t.Logf("round %d: installed %s in %.1f s", round+1, packages, time.Since(began).Seconds())
		before = readParts(t, dir)
		unmount(t, dir)
		sh(t, "e2fsck -fn "+dev.Path)
		t.Log(coppice(t, "inspect", "web1"))
		coppice(t, "delete", "web1")
		served.stop(t)
		checkStore(t, leaf)
	}
	startDaemon(t)
	dev := createForTest(t, "web1", root, leaf)
	dir := mountPoint(t, dev.Path, "-t ext4 -o ro")
	before.same(t, readParts(t, dir))
	for _, name := range slices.Concat(installs...) {
		program := strings.TrimSuffix(name, "-light")
		if found, _ := filepath.Glob(filepath.Join(dir, "usr", "*bin", program)); found == nil {
			t.Errorf("%s is not there", program)
		}
	}
	if changed := strings.TrimSpace(sh(t, "chroot "+dir+" dpkg --verify "+verified)); changed != "" {
		t.Errorf("dpkg --verify found changed files:\n%s", changed)
	}
	unmount(t, dir)
	sh(t, "e2fsck -fn "+dev.Path)
}

// readParts reads the parts of a system that are compared.
func readParts(t *testing.T, dir string) tree {
	t.Helper()
	all := make(tree)
	for _, part := range comparedParts {
		for path, what := range readTree(t, filepath.Join(dir, part)) {
			all[filepath.Join(part, path)] = what
		}
	}
	return all
}

// install installs packages from the local repository into the system at dir, as an administrator would in a chroot.
func install(t *testing.T, dir, packages string) {
	t.Helper()
	enter(t, dir)
	sh(t, "cd "+dir+"; "+aptGet+"install "+packages)
	leave(t, dir)
}

// aptGet runs apt-get in a system, in whose directory the shell is.
const aptGet = "DEBIAN_FRONTEND=noninteractive chroot . apt-get -y -q --no-install-recommends "

// enter makes the system at dir ready for apt-get, with the local repository as its only source.
func enter(t *testing.T, dir string) {
	t.Helper()
	sh(t, `cd `+dir+`
mkdir -p mnt/repo
mount -o ro `+disk(t, "repo")+` mnt/repo
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
echo 'deb [trusted=yes] file:/mnt/repo ./' >etc/apt/sources.list
printf '#!/bin/sh\nexit 101\n' >usr/sbin/policy-rc.d
chmod 755 usr/sbin/policy-rc.d
`+aptGet+`update`)
}

// leave takes away what enter mounted.
func leave(t *testing.T, dir string) {
	t.Helper()
	sh(t, "cd "+dir+`
mount --make-rprivate dev
mount --make-rprivate sys
umount -R dev
umount -R sys
umount proc mnt/repo
sync`)
}
