//go:build vm && long

package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"coppice/idxshare"
	"coppice/idxshare/indextest"
)

// Devices on which the files of one root are changed at random, and how often on each: after each time what the index says of the device is compared with what is mounted.
const mutatedDevices, mutatedRounds = 25, 8

// What index find tells of a mounted device is what a walk of the mount finds, whatever was done to its files since the last time; and in the end it is what an index of the whole device says.
func TestFilesOfDeviceUnderRandomOperations(t *testing.T) {
	r := newVMRig(t)
	index, cache := filepath.Join(r.dir, "root.index"), filepath.Join(r.dir, "cache")
	r.sh("mkdir " + r.dir + "/files && cd " + r.dir + "/files && for d in $(seq 6); do mkdir d$d; for i in $(seq 30); do head -c $((i * 700)) /dev/zero >d$d/f$i; done; done && ln d1/f3 d2/link && ln -s d1/f3 symlink && " +
		"rm " + r.root + " && truncate -s 48M " + r.root + " && mkfs.ext4 -q -F -N 4096 -d . " + r.root)
	r.ok("index", "build", r.root, "--to", index)
	d := r.start()
	before := flag.Lookup("rapid.checks").Value.String()
	if err := flag.Set("rapid.checks", strconv.Itoa(mutatedDevices)); err != nil {
		t.Fatal(err)
	}
	defer flag.Set("rapid.checks", before) //nolint:errcheck // it was its own value
	devices, sequences := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		devices++
		name := fmt.Sprint("web", devices)
		web := r.create(name)
		r.sh("mount -o noatime " + web.Path + " " + r.mnt)
		tree, err := indextest.NewTree(r.mnt)
		if err != nil {
			rt.Fatal(err)
		}
		find := func(args ...string) map[string]foundFile {
			return foundIn(rt, r.ok(append([]string{"index", "find", "", "-o", "json"}, args...)...))
		}
		device := []string{"--on", name, "--index", index, "--cache", cache}
		for range mutatedRounds {
			tree.Mutate(rt, 25)
			r.sh("sync -f " + r.mnt)
			want, err := indextest.Walk(r.mnt)
			if err != nil {
				rt.Fatal(err)
			}
			compareFound(rt, find(device...), want)
			sequences++
		}
		if err := tree.Close(); err != nil {
			rt.Fatal(err)
		}
		r.sh("umount " + r.mnt)
		whole := filepath.Join(r.dir, "whole.index")
		r.ok("index", "build", web.Path, "--to", whole)
		compareKnown(rt, find(device...), find("--on", whole))
		r.ok("delete", name)
		r.ok("store", "remove", r.leaf, name)
	})
	t.Logf("%d sequences of operations on %d devices", sequences, devices)
	if devices < mutatedDevices {
		t.Errorf("want %d devices: there was no time for more", mutatedDevices)
	}
	d.stop()
	r.nothingLeft()
	r.ok("store", "check", r.leaf)
}

// foundIn reads what index find has printed, by path.
func foundIn(rt *rapid.T, text string) map[string]foundFile {
	var list struct {
		Files []struct {
			foundFile
			Bytes []byte `json:"path_base64"`
		} `json:"files"`
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		rt.Fatalf("%v\n%s", err, text)
	}
	found := map[string]foundFile{}
	for _, f := range list.Files {
		path := f.Path
		if f.Bytes != nil {
			path = string(f.Bytes)
		}
		found[path] = f.foundFile
	}
	return found
}

// compareKnown demands that what is found of root and layer is what is found of all of the device.
func compareKnown(rt *rapid.T, got, want map[string]foundFile) {
	lines := func(found map[string]foundFile) map[string]bool {
		all := map[string]bool{}
		for path, f := range found {
			line, err := json.Marshal(f)
			if err != nil {
				rt.Fatal(err)
			}
			all[fmt.Sprintf("%q: %s", path, line)] = true
		}
		return all
	}
	of, whole := lines(got), lines(want)
	var wrong []string
	for line := range of {
		if !whole[line] {
			wrong = append(wrong, line+" is of root and layer alone")
		}
	}
	for line := range whole {
		if !of[line] {
			wrong = append(wrong, line+" is of all of the device alone")
		}
	}
	failWith(rt, wrong)
}

// failWith ends the test if something is wrong.
func failWith(rt *rapid.T, wrong []string) {
	if len(wrong) > 0 {
		slices.Sort(wrong)
		rt.Fatalf("%d files:\n%s", len(wrong), strings.Join(wrong[:min(20, len(wrong))], "\n"))
	}
}

// compareFound demands that what was found is what is seen in a mount.
func compareFound(rt *rapid.T, found map[string]foundFile, seen map[string]indextest.Record) {
	show := func(mode string, uid, gid, links uint32, inode uint64, size int64, mtime time.Time) string {
		return fmt.Sprintf("%s %d %d, %d links, inode %d, %d bytes, %s", mode, uid, gid, links, inode, size, mtime.UTC())
	}
	var wrong []string
	for path, w := range seen {
		g, ok := found[path]
		got := show(g.Type+g.Mode, g.UID, g.GID, g.Links, g.Inode, g.SizeBytes, g.Changed)
		want := show(typeOf(w.Mode)+fmt.Sprintf("%04o", w.Mode&^idxshare.ModeType), w.UID, w.GID, w.Links, w.Inode, w.Size, time.Unix(0, w.Mtime))
		if path != "/" && (!ok || got != want) {
			wrong = append(wrong, fmt.Sprintf("%q: %v %s, in the mount %s", path, ok, got, want))
		}
	}
	for path := range found {
		if _, ok := seen[path]; !ok {
			wrong = append(wrong, fmt.Sprintf("%q is not in the mount", path))
		}
	}
	failWith(rt, wrong)
}
