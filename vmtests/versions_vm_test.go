//go:build vm

package vmtests

import (
	"testing"

	"coppice/image"
)

// rebuilt prints what a second version of the Debian system costs that is made of a tree of files, from scratch.
func (l *imageLab) rebuilt(t *testing.T) {
	t.Helper()
	tree, err := l.b.Rebuilt(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	built := runCoppice[image.BuildReport](t, l, "image", "build", l.debian("2"), tree, "--base", l.debian("1"))
	t.Logf("version 2 of %d MiB, rebuilt with --base: %.1f MiB stored, in %.1f s", built.SizeBytes>>20, mib(built.StoredBytes+built.TableBytes), built.TotalMS/1000)
	if all, extra := l.cost(t, l.debian("2")); extra > all/2 {
		t.Errorf("%d bytes of %d are fetched where version 1 is", extra, all)
	}
}

// cost prints, and returns, how much a node fetches of a version: one that has nothing, and one that has version 1.
func (l *imageLab) cost(t *testing.T, ref string) (all, extra int64) {
	t.Helper()
	node := "oci:" + t.TempDir() + ":debian:"
	runCoppice[image.CopyReport](t, l, "image", "copy", l.debian("1"), node+"1")
	copied := runCoppice[image.CopyReport](t, l, "image", "copy", ref, node+"2")
	runCoppice[image.VerifyReport](t, l, "image", "verify", node+"2")
	all, extra = copied.CopiedBytes+copied.SharedBytes, copied.CopiedBytes
	t.Logf("all of it is %.1f MiB, of which a node with version 1 fetches %.1f MiB, %.0f %%", mib(all), mib(extra), 100*float64(extra)/float64(all))
	return all, extra
}
