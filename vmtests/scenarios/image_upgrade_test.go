//go:build vm && long

package scenarios

import (
	"crypto/md5"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestImageUpgrade upgrades packages of a Debian system whose root is in a registry, and publishes what came of it as version 2 there. A device
// on that has what the first one had.
func TestImageUpgrade(t *testing.T) {
	network(t)
	leaf := disk(t, "leaf")
	format(t, leaf)
	startDaemon(t)
	dev := createForTest(t, "web1", lab(t, "registry")+"1", leaf)
	dir := mountPoint(t, dev.Path, "-t ext4 -o noatime")
	upgrade(t, dir)
	t.Log(strings.TrimSpace(coppice(t, "freeze", "web1", "--as", "v2")))
	publish(t, leaf+":v2")
	second := createForTest(t, "web2", lab(t, "registry")+"2", leaf)
	same := mountPoint(t, second.Path, "-t ext4 -o ro")
	for _, part := range []string{"usr/bin", "var/lib/dpkg"} {
		digestTree(t, filepath.Join(dir, part), md5.New).same(t, digestTree(t, filepath.Join(same, part), md5.New))
	}
	unmount(t, same)
	coppice(t, "delete", "web2")
	unmount(t, dir)
	coppice(t, "delete", "web1")
}

// publish makes version 2 of a sealed layer, in a directory that has version 1, and copies it to the registry.
func publish(t *testing.T, layer string) {
	t.Helper()
	dir := mountPoint(t, disk(t, "images"), "-t ext4")
	version := "oci:" + dir + "/images:debian:2"
	patiently(t, "coppice", "image", "build", version, "--from-layer", layer, "--ca", "/lab/ca.pem")
	patiently(t, "coppice", "image", "copy", version, lab(t, "registry")+"2", "--ca", "/lab/ca.pem")
	unmount(t, dir)
}

// upgrade brings the system at dir up to date from the local repository.
func upgrade(t *testing.T, dir string) {
	t.Helper()
	versions := func() string { return sh(t, "chroot "+dir+" dpkg-query -W | sort") }
	old := versions()
	began := time.Now()
	enter(t, dir)
	// ca-certificates hashes its certificates one by one, for minutes.
	patiently(t, "sh", "-ec", "cd "+dir+"; chroot . apt-mark hold ca-certificates; "+aptGet+"upgrade")
	leave(t, dir)
	changed := 0
	for line := range strings.Lines(versions()) {
		if !strings.Contains(old, line) {
			changed++
		}
	}
	if t.Logf("upgraded %d packages in %.1f s", changed, time.Since(began).Seconds()); changed == 0 {
		t.Error("the repository has no upgrades: version 2 would be version 1")
	}
}

// patiently runs what may take many minutes where machines are slow.
func patiently(t *testing.T, argv ...string) {
	t.Helper()
	out, err := command(t, 20*time.Minute, argv...)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(strings.TrimSpace(out))
}
