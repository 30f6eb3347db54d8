//go:build vm

package vmtests

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"coppice/vmtests/powercut"
)

const (
	cutStoreBytes = 96 << 20 // small, so that checkpoints come often
	cutMarksBytes = 1 << 20
	cutExt4Bytes  = 32 << 20
	cutXFSBytes   = 64 << 20
)

var (
	cutStore = powercut.Range{Off: gapBytes, Len: cutStoreBytes}
	cutMarks = powercut.Range{Off: gapBytes + cutStoreBytes, Len: cutMarksBytes}
)

// TestPowerCut records a leaf disk while three devices on it are worked on, then builds the disk as a power cut would have left it
// at each flush and between them, recovers it, and wants all that was promised: the store sound, both file systems clean, every file and
// block that had been made durable.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	b := newBuild(t)
	if err := b.need(t.Context(), "e2fsck", "debugfs", "mkfs.xfs", "xfs_repair", "sfdisk"); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(b.dir, "powercut") // kept where the test fails: with it the cuts can be made again
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	roots := makeCutRoots(t, dir)
	began := time.Now()
	t.Run("record", func(t *testing.T) { record(t, dir) })
	if t.Failed() {
		return
	}
	t.Logf("recorded in %.1f s", time.Since(began).Seconds())
	j := newJudge(t, b, dir, roots)
	j.cutAll()
	j.noticesLies()
	if !t.Failed() {
		os.RemoveAll(dir)
	}
}

// makeCutRoots makes both root images, with the files that package powercut expects.
func makeCutRoots(t *testing.T, dir string) map[string]string {
	t.Helper()
	tree := filepath.Join(dir, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, e := range powercut.Initial("") {
		p := make([]byte, e.Size)
		powercut.Fill(p, e.ID, 0)
		if e.Kind != powercut.Create {
			continue
		}
		if err := os.WriteFile(filepath.Join(tree, e.Name), p, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	roots := make(map[string]string)
	for _, disk := range []string{powercut.Ext4Disk, powercut.XFSDisk, powercut.RawDisk} {
		roots[disk] = filepath.Join(dir, disk)
	}
	raw := make([]byte, powercut.RawBytes)
	powercut.Fill(raw, 1, 0)
	err := errors.Join(
		os.WriteFile(roots[powercut.RawDisk], raw, 0o644),
		ext4FromTree(t.Context(), tree, roots[powercut.Ext4Disk], cutExt4Bytes, ""),
		xfsFromTree(t.Context(), tree, roots[powercut.XFSDisk], cutXFSBytes))
	if err != nil {
		t.Fatal(err)
	}
	return roots
}

// record runs the guest's part. The recording is dir/log.
func record(t *testing.T, dir string) {
	leaf, log := filepath.Join(dir, powercut.LeafDisk), filepath.Join(dir, "log")
	if err := errors.Join(SparseFile(log, 0), emptyPartitions(t.Context(), leaf, cutStoreBytes, cutMarksBytes)); err != nil {
		t.Fatal(err)
	}
	coppice, err := newBuild(t).Binary(t.Context(), "./cmd/coppice")
	if err != nil {
		t.Fatal(err)
	}
	runGuestPackage(t, "./vmtests/powercut", Config{
		Files: map[string]string{"/usr/local/bin/coppice": coppice},
		Disks: []Disk{
			{Name: powercut.LeafDisk, Path: leaf, WriteLog: log},
			{Name: powercut.Ext4Disk, Path: filepath.Join(dir, powercut.Ext4Disk), ReadOnly: true},
			{Name: powercut.XFSDisk, Path: filepath.Join(dir, powercut.XFSDisk), ReadOnly: true},
			{Name: powercut.RawDisk, Path: filepath.Join(dir, powercut.RawDisk), ReadOnly: true},
		},
	}, nil, 10*time.Minute)
}
