//go:build vm && long

package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"coppice/idxshare"
)

const (
	reindexRounds = 3
	// leastFaster is how many times as fast as updatedb the second index must be, and mostRead what share of the blocks of metadata it may read.
	leastFaster = 50
	mostRead    = 0.02
)

// TestReindex indexes a device over a root of 300,000 files anew after 1,000 of them were changed, beside updatedb, which makes its database of the same mount, in turns. Before each, the
// caches of the kernel are dropped. Each round has a device of its own. The host has made the root and its index: TestReindexing of package vmtests. The root is on two disks: of one the
// host has all in its memory, which tells what is left where a disk takes no time; the other one is a disk, and the goals are for that.
func TestReindex(t *testing.T) {
	r := newVMRig(t)
	r.leaf = "/dev/disk/by-id/virtio-leaf"
	r.ok("store", "format", r.leaf)
	d := r.start()
	m := newManyTree(t, r.mnt, manyIndex)
	t.Logf("%d files and directories; %d blocks of metadata: %s", m.inodes, m.metadata, m.counted)
	x := &reindexing{t: t, r: r, cache: filepath.Join(r.dir, "cache")}
	_, process := x.command("version")
	t.Logf("a process that does nothing takes %.3f s", process)
	for _, disk := range []string{"cached", "many"} {
		r.root = "/dev/disk/by-id/virtio-" + disk
		var faster, again, share []float64
		for round := range reindexRounds {
			f := x.round(m, round)
			t.Logf("%s, round %d: %s", disk, round+1, f)
			faster, again, share = append(faster, f.anew/f.index), append(again, f.kept/f.index), append(share, f.share)
		}
		t.Logf("%s, medians of %d rounds: %.1f times as fast as updatedb, %.1f times as fast as with its database of before; %.2f %% of the metadata read", disk, reindexRounds, median(faster), median(again),
			median(share)*100)
		if disk == "many" && median(faster) < leastFaster || slices.Max(share) > mostRead {
			t.Errorf("%s: want at least %d times as fast, and at most %g %%", disk, leastFaster, mostRead*100)
		}
	}
	d.stop()
	r.nothingLeft()
}

// manyIndex is where the host has put the index of the root.
const manyIndex = "/lab/many.index"

// reindexed is what one round took, in seconds.
type reindexed struct {
	index, anew, kept float64
	first             float64 // the first index of what changed: of the mount alone
	share             float64 // of the blocks of metadata, how many were read
	told              float64 // to tell then what changed
	read              leafTotal
}

func (f reindexed) String() string {
	return fmt.Sprintf("index %.3f s, updatedb %.2f s, with its database of before %.2f s; first index %.3f s, to tell the changes %.3f s; paused for %.0f ms, read %d blocks in %d pieces, %.2f %%; %d inodes looked at, %d directories",
		f.index, f.anew, f.kept, f.first, f.told, f.read.PauseMS, f.read.Read.ReadBytes/4096, f.read.Read.Reads, f.share*100, f.read.Read.Inodes, f.read.Read.Directories)
}

// reindexing measures the two ways.
type reindexing struct {
	t     *testing.T
	r     *vmRig
	cache string
}

// round makes a device, and measures what it takes to know what changed there, the second first in every other round.
func (x *reindexing) round(m *manyTree, round int) (f reindexed) {
	x.t.Helper()
	r := x.r
	web := r.create("web1")
	r.sh("mount " + web.Path + " " + r.mnt)
	_, f.first = x.index()
	changed := m.change(x.t)
	steps := []func(){
		func() { f.read, f.index = x.index() },
		func() { f.anew = x.updatedb(true) },
		func() { f.kept = x.updatedb(false) },
	}
	if round%2 == 1 {
		steps = append(steps[1:], steps[0])
	}
	for _, step := range steps {
		step()
	}
	f.share = float64(f.read.Read.ReadBytes) / 4096 / float64(m.metadata)
	var told int
	if told, f.told = x.changes(); told != changed {
		x.t.Errorf("%d changes are told, %d files were changed", told, changed)
	}
	r.sh("umount " + r.mnt)
	r.ok("delete", "web1")
	r.ok("store", "remove", r.leaf, "web1")
	return f
}

// cold drops what the kernel has of any disk.
func (x *reindexing) cold() {
	x.t.Helper()
	x.r.sh("sync && echo 3 >/proc/sys/vm/drop_caches")
}

// index brings the index of the device up to date.
func (x *reindexing) index() (read leafTotal, seconds float64) {
	x.t.Helper()
	out, took := x.command("index", "update", "--on", "web1", "-o", "json", "--index", manyIndex, "--cache", x.cache)
	if err := json.Unmarshal(out, &read); err != nil {
		x.t.Fatal(err)
	}
	return read, took
}

// changes asks what changed.
func (x *reindexing) changes() (n int, seconds float64) {
	x.t.Helper()
	out, took := x.command("changed", "web1", "--files", "-o", "json", "--index", manyIndex, "--cache", x.cache)
	var rep struct {
		Total changedFilesTotal `json:"total"`
	}
	if err := json.Unmarshal(out, &rep); err != nil {
		x.t.Fatal(err)
	}
	return rep.Total.Changes, took
}

// command runs the program itself: what is in the path of tests is one with all tests.
func (x *reindexing) command(args ...string) (out []byte, seconds float64) {
	x.t.Helper()
	x.cold()
	cmd := exec.Command("/usr/local/bin/coppice", args...)
	cmd.Env = append(os.Environ(), "COPPICE_RUN_DIR="+x.r.runDir)
	began := time.Now()
	out, err := cmd.Output()
	if err != nil {
		x.t.Fatalf("coppice %q: %v", args, err)
	}
	return out, time.Since(began).Seconds()
}

// updatedb makes a database anew, or from what the one of before knows.
func (x *reindexing) updatedb(anew bool) float64 {
	x.t.Helper()
	path := filepath.Join(x.r.dir, "locate.db")
	if err := os.Remove(path); anew && err != nil && !errors.Is(err, os.ErrNotExist) {
		x.t.Fatal(err)
	}
	x.cold()
	began := time.Now()
	out, err := exec.Command("updatedb", "-U", x.r.mnt, "-o", path, "--prunepaths", "", "--prunefs", "", "--prunenames", "", "-l", "no").CombinedOutput()
	took := time.Since(began).Seconds()
	if err != nil || len(out) > 0 {
		x.t.Fatalf("updatedb: %v: %s", err, out)
	}
	return took
}

// manyTree is a mount with many files, which are changed as a system does it: packages that are upgraded, files that are edited, made, renamed and deleted, in some hundred directories.
type manyTree struct {
	rng                *rand.Rand
	directories        [][]string // paths of the files of each
	inodes, metadata   int64      // metadata in blocks
	counted            string     // which they are
	changed, made, use int        // files by one change, new files, directories
}

func newManyTree(t *testing.T, mnt, index string) *manyTree {
	t.Helper()
	x, err := idxshare.Open(index)
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	m := &manyTree{rng: rand.New(rand.NewPCG(1000, 1))}
	m.count(t, x)
	files := map[string][]string{}
	err = x.View().Find(t.Context(), idxshare.Query{Type: idxshare.ModeRegular}, func(match idxshare.Match) error {
		path := mnt + string(match.Path)
		files[filepath.Dir(path)] = append(files[filepath.Dir(path)], path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range files {
		if len(list) >= 10 {
			m.directories = append(m.directories, list)
		}
	}
	slices.SortFunc(m.directories, func(a, b []string) int { return cmp.Compare(a[0], b[0]) })
	m.rng.Shuffle(len(m.directories), func(i, k int) { m.directories[i], m.directories[k] = m.directories[k], m.directories[i] })
	return m
}

// count counts the file system's metadata as it is when nothing has been changed: blocks of inode tables with an inode in use, directories, maps of extents, and bitmaps.
func (m *manyTree) count(t *testing.T, x *idxshare.Index) {
	t.Helper()
	v := x.Volumes()[0]
	const inodeSize = 256 // as mke2fs makes them
	perBlock := uint64(v.BlockSize / inodeSize)
	tables, kinds := map[uint64]bool{}, map[idxshare.ExtentKind]int64{}
	err := errors.Join(x.Files(t.Context(), func(f *idxshare.File) error {
		m.inodes++
		tables[(f.Inode-1)/perBlock] = true
		return nil
	}), x.Extents(t.Context(), func(e idxshare.Extent) error {
		kinds[e.Kind] += e.Length
		return nil
	}))
	if err != nil {
		t.Fatal(err)
	}
	groups := (v.Length/int64(v.BlockSize) + 8*int64(v.BlockSize) - 1) / (8 * int64(v.BlockSize))
	m.metadata = int64(len(tables)) + kinds[idxshare.ExtentDirectory] + kinds[idxshare.ExtentTree] + 2*groups
	m.counted = fmt.Sprintf("%d of inode tables, %d of directories, %d of maps of extents, %d bitmaps", len(tables), kinds[idxshare.ExtentDirectory], kinds[idxshare.ExtentTree], 2*groups)
}

// change changes 1,000 files, of which nothing was changed before.
func (m *manyTree) change(t *testing.T) int {
	t.Helper()
	m.changed = 0
	for _, kind := range []struct {
		directories, files int
		do                 func(path string) error
	}{
		{40, 10, m.upgrade},
		{60, 5, m.edit},
		{15, 10, m.create},
		{20, 5, os.Remove},
		{10, 5, m.rename},
	} {
		for range kind.directories {
			list := m.directories[m.use]
			m.use++
			for _, path := range list[:kind.files] {
				if err := kind.do(path); err != nil {
					t.Fatal(err)
				}
				m.changed++
			}
		}
	}
	return m.changed
}

// upgrade replaces a file as dpkg does.
func (m *manyTree) upgrade(path string) error {
	if err := os.WriteFile(path+".dpkg-new", make([]byte, m.rng.IntN(9000)), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".dpkg-new", path)
}

func (m *manyTree) edit(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, 1+m.rng.IntN(200)))
	return errors.Join(err, f.Close())
}

func (m *manyTree) create(path string) error {
	m.made++
	return os.WriteFile(filepath.Join(filepath.Dir(path), fmt.Sprintf("made-%d.log", m.made)), make([]byte, m.rng.IntN(9000)), 0o644)
}

func (m *manyTree) rename(path string) error { return os.Rename(path, path+".old") }
