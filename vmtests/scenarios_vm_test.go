//go:build vm

package vmtests

import (
	"math"
	"path/filepath"
	"regexp"
	"testing"
)

// In these scenarios the daemon ends while its devices are in use; in these, storage is far away or full, or is indexed. Each has a VM of its own, as have all others together: a VM leaves
// half of two cores idle, and two of them at a time keep both busy to the end only where none takes much longer than others.
var (
	troubled = regexp.MustCompile(`^Test(DaemonIs|GhostWrites)`)
	stored   = regexp.MustCompile(`^Test(LeafOn|FileSystemsOnFullStore|IndexOf)`)
)

// TestScenarios runs the tests of package scenarios, but for those of the tests below, beside which it runs. The guest may write to its root
// images; that nobody did is read from their digests when it is gone.
func TestScenarios(t *testing.T) {
	t.Parallel()
	other := func(name string) bool { return !troubled.MatchString(name) && !stored.MatchString(name) }
	runScenarios(t, other, ImageExt4, ImageGPT, ImagePair, ImageXFS)
}

// TestScenariosOfTrouble runs those in which the daemon ends.
func TestScenariosOfTrouble(t *testing.T) {
	t.Parallel()
	runScenarios(t, troubled.MatchString, ImageExt4)
}

// TestScenariosOfStorage runs those of leaves that are far away or full, and of indexes.
func TestScenariosOfStorage(t *testing.T) {
	t.Parallel()
	runScenarios(t, stored.MatchString, ImageExt4)
}

func runScenarios(t *testing.T, keep func(name string) bool, images ...string) {
	t.Helper()
	b := newBuild(t)
	dir := t.TempDir()
	repo, err := b.ImageDisk(t.Context(), ImageRepo)
	if err != nil {
		t.Fatal(err)
	}
	coppice, err := b.Binary(t.Context(), "./cmd/coppice")
	if err != nil {
		t.Fatal(err)
	}
	next, err := b.OtherVersion(t.Context(), "./cmd/coppice", "next")
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		CPUs: 2, MemMiB: 4096, Disks: []Disk{repo},
		Files: map[string]string{"/usr/local/bin/coppice": coppice, "/usr/local/bin/coppice-next": next},
	}
	before := make(map[string]string)
	for _, name := range images {
		image, err := b.Image(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		copied := filepath.Join(dir, name)
		if _, err := command(t.Context(), "", "cp", "--sparse=always", image, copied); err != nil {
			t.Fatal(err)
		}
		cfg.Disks = append(cfg.Disks, Disk{Name: name, Path: copied})
		before[copied] = rootDigest(t, name, copied)
	}
	t.Run("guest", func(t *testing.T) {
		runGuestTests(t, "./vmtests/scenarios", keep, cfg, []string{"leaf=3G", "remote=2G"}, scenariosLimit)
	})
	for path, digest := range before {
		if rootDigest(t, filepath.Base(path), path) != digest {
			t.Errorf("root image %s was changed", filepath.Base(path))
		} else {
			t.Logf("root image %s: sha256 %s, as before", filepath.Base(path), digest)
		}
	}
}

// rootDigest is the digest of the part of an image that serves as root: all but the second partition of the pair.
func rootDigest(t *testing.T, name, path string) string {
	t.Helper()
	limit := int64(math.MaxInt64)
	if name == ImagePair {
		limit = gapBytes + rootSizeBytes
	}
	digest, _, err := FileDigest(path, limit)
	if err != nil {
		t.Fatal(err)
	}
	return digest
}
