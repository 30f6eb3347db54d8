//go:build vm

package vmtests

import (
	"testing"

	"coppice/image"
	"coppice/image/imagetest"
)

// versions prints what second versions of the Debian system cost: the one that the guest made by upgrades in a device and published in a
// registry, and one of a tree of files that was made from scratch.
func (l *imageLab) versions(t *testing.T) {
	t.Helper()
	tree, err := l.b.Rebuilt(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	runCoppice[image.BuildReport](t, l, "image", "build", l.debian("3"), tree, "--base", l.debian("1"))
	t.Logf("%-32s %12s %12s   (MiB; version 1 is a disk of %d)", "version 2", "all of it", "not in 1", rootSizeBytes>>20)
	published := "oci:" + l.dir + "/published:debian:2"
	imagetest.Skopeo(t, "--src-cert-dir", l.dir+"/trusted", "docker://"+l.registry+"/mirror/debian:2", published)
	if all, extra := l.cost(t, "upgraded in place", published); extra > all/2 {
		t.Errorf("%d bytes of %d are fetched where version 1 is", extra, all)
	}
	l.cost(t, "rebuilt from scratch, with --base", l.debian("3"))
}

// cost prints, and returns, how much a node fetches of a version: one that has nothing, and one that has version 1.
func (l *imageLab) cost(t *testing.T, made, ref string) (all, extra int64) {
	t.Helper()
	node := "oci:" + t.TempDir() + ":debian:"
	runCoppice[image.CopyReport](t, l, "image", "copy", l.debian("1"), node+"1")
	copied := runCoppice[image.CopyReport](t, l, "image", "copy", ref, node+"2")
	runCoppice[image.VerifyReport](t, l, "image", "verify", node+"2")
	all, extra = copied.CopiedBytes+copied.SharedBytes, copied.CopiedBytes
	t.Logf("%-32s %12.1f %12.1f   %.0f %%", made, mib(all), mib(extra), 100*float64(extra)/float64(all))
	return all, extra
}
