//go:build vm && long

package vmtests

import (
	"path/filepath"
	"testing"
	"time"
)

// reindexLimit is how long TestReindexing may take in the guest: what is read from a disk that others use, too, takes minutes.
const reindexLimit = 45 * time.Minute

// TestReindexing measures what it takes to know which 1,000 of 300,000 files were changed, in a VM that has the root and its index. What the guest reads of one of its two
// disks with that root comes from this machine's disk each time: cold is cold.
func TestReindexing(t *testing.T) {
	t.Parallel()
	b := newBuild(t)
	image, err := b.ManyFiles(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	coppice, err := b.Binary(t.Context(), "./cmd/coppice")
	if err != nil {
		t.Fatal(err)
	}
	index := filepath.Join(t.TempDir(), "many.index")
	began := time.Now()
	out, err := command(t.Context(), "", coppice, "index", "build", image, "--to", index)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s%.1f s natively", out, time.Since(began).Seconds())
	disks, cleanup, err := b.Scratch([]string{"leaf=2G"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cleanup)
	m := &testVM{t: t, b: b, cfg: Config{Name: "reindex", MemMiB: 3072,
		Disks: append(disks, Disk{Name: "many", Path: image, ReadOnly: true, Cache: "none"}, Disk{Name: "cached", Path: image, ReadOnly: true}),
		Files: map[string]string{"/usr/local/bin/coppice": coppice, "/lab/many.index": index}}}
	tests := m.add(commandPackage)
	if err := tests.Select(reindexTests); err != nil {
		t.Fatal(err)
	}
	m.run(t, tests, reindexLimit)
}
