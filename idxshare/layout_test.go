package idxshare

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// A leaf that changes the partition table: what is new is indexed, what is gone has nothing any more and is there again when it comes back, and what is longer is the same.
func TestDeltaOfPartitions(t *testing.T) {
	dir := t.TempDir()
	first, err := os.ReadFile(newImage(t, filepath.Join(dir, "one")))
	mustDo(t, err)
	second, err := os.ReadFile(newImage(t, filepath.Join(dir, "two"), "-L", "two"))
	mustDo(t, err)
	disk := func(name string, thirdAt int64, entries ...[]byte) string {
		device := make([]byte, 48*mib)
		putTable(device, 0, entries...)
		put(device, map[int64][]byte{mib: first, 14 * mib: second})
		if thirdAt > 0 {
			put(device, map[int64][]byte{thirdAt: second})
		}
		path := filepath.Join(dir, name)
		mustDo(t, os.WriteFile(path, device, 0o600))
		return path
	}
	one, two, third := mbrEntryOf(0x83, 2048, 12*2048), mbrEntryOf(0x83, 14*2048, 12*2048), mbrEntryOf(0x83, 30*2048, 12*2048)
	root := disk("root", 0, one, two)
	index := filepath.Join(dir, "index")
	indexWhole(t, root, index, "root", true)
	base, err := Open(index)
	mustDo(t, err)
	defer base.Close()
	var previous *Index
	before := root
	for n, step := range []struct {
		image string
		how   []VolumeHow // of volumes, by their numbers
	}{
		{disk("second for third", 30*mib, one, mbrEntryOf(0, 0, 0), third), []VolumeHow{VolumeUntouched, VolumeGone, VolumeWhole}},
		{disk("back", 30*mib, one, two), []VolumeHow{VolumeUntouched, VolumeWhole, VolumeGone}},
		{disk("longer", 30*mib, mbrEntryOf(0x83, 2048, 13*2048), two, third), []VolumeHow{VolumeDelta, VolumeUntouched, VolumeWhole}},
		{disk("none", 0), []VolumeHow{VolumeGone, VolumeGone, VolumeGone}},
		{root, []VolumeHow{VolumeWhole, VolumeWhole, VolumeGone}},
	} {
		delta, report := makeDeltaReported(t, filepath.Join(dir, fmt.Sprint("delta", n)), base, previous, before, step.image)
		defer delta.Close()
		var how []VolumeHow
		for _, v := range report.Volumes {
			how = append(how, v.How)
		}
		if !slices.Equal(how, step.how) {
			t.Errorf("step %d: %+v", n, report.Volumes)
		}
		now, err := NewView(context.Background(), base, delta)
		mustDo(t, err)
		whole := filepath.Join(dir, fmt.Sprint("whole", n))
		indexWhole(t, step.image, whole, "whole", true)
		x := openTest(t, whole)
		if got, want := placesOf(t, now), placesOf(t, x.View()); !slices.Equal(got, want) {
			t.Errorf("step %d: %d paths and places, not %d:\n%.2000q\nnot\n%.2000q", n, len(got), len(want), got, want)
		}
		changes := 0
		mustDo(t, now.Changes(context.Background(), func(Change) error {
			changes++
			return nil
		}))
		if asBefore := n == 1 || n == 4; (changes == 0) != asBefore {
			t.Errorf("step %d: %d changes", n, changes)
		}
		previous, before = delta, step.image
	}

	// A table that contradicts itself is told, and what was known holds on.
	broken, err := os.ReadFile(root)
	mustDo(t, err)
	copy(broken[512:], "EFI PART")
	path := filepath.Join(dir, "broken")
	mustDo(t, os.WriteFile(path, broken, 0o600))
	delta, report := makeDeltaReported(t, filepath.Join(dir, "delta"), base, nil, root, path)
	defer delta.Close()
	now, err := NewView(context.Background(), base, delta)
	mustDo(t, err)
	if report.Table == "" || !slices.Equal(placesOf(t, now), placesOf(t, base.View())) {
		t.Errorf("%+v", report)
	}
}

// placesOf tells of all paths and of whose all bytes are, with partitions in the place of the numbers of volumes.
func placesOf(t *testing.T, v *View) (all []string) {
	t.Helper()
	partitions := map[int]int{}
	for _, volume := range v.Volumes() {
		partitions[volume.ID] = volume.Partition
		all = append(all, fmt.Sprintf("partition %d %d+%d %s %s", volume.Partition, volume.Start, volume.Length, volume.Type, volume.UUID))
	}
	mustDo(t, v.Find(context.Background(), Query{}, func(m Match) error {
		f := *m.File
		f.Volume = partitions[m.Volume]
		all = append(all, fmt.Sprintf("%q %+v", m.Path, f))
		return nil
	}))
	mustDo(t, v.Owners(context.Background(), 0, 48*mib, func(o Owner) error {
		o.Volume = partitions[o.Volume]
		o.Extent.Volume = o.Volume
		all = append(all, fmt.Sprintf("%+v", o))
		return nil
	}))
	slices.SortFunc(all, cmp.Compare[string])
	return all
}
