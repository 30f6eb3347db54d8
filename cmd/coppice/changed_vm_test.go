//go:build vm

package main

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"coppice/idxshare"
)

// On a mounted ext4, what was done to files is what is told of them, the next time only what was done since is read, and what an index of the whole device says in the end is what is known
// of root and layer.
func TestChangedFilesOfMountedDevice(t *testing.T) {
	r := newVMRig(t)
	index, cache := filepath.Join(r.dir, "root.index"), filepath.Join(r.dir, "cache")
	r.sh("mkdir -p " + r.dir + "/files/etc " + r.dir + "/files/many && cd " + r.dir + "/files && seq 1000 >etc/passwd && echo a >etc/gone && echo b >etc/old && " +
		"ln etc/old hard && for i in $(seq 60); do echo $i >many/$i; done && rm " + r.root + " && truncate -s " + rootSize + " " + r.root + " && mkfs.ext4 -q -F -d . " + r.root)
	r.ok("index", "build", r.root, "--to", index)
	d := r.start()
	web := r.create("web1")
	r.sh("mount " + web.Path + " " + r.mnt)
	flags := []string{"--index", index, "--cache", cache}
	changed := func() (files []string, read int64) {
		t.Helper()
		var rep struct {
			Files []changedFile     `json:"files"`
			Total changedFilesTotal `json:"total"`
		}
		out := r.ok(append([]string{"changed", "web1", "--files", "-o", "json"}, flags...)...)
		if err := json.Unmarshal([]byte(out), &rep); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if len(rep.Total.Frozen) != 1 || rep.Total.Changes != len(rep.Files) {
			t.Errorf("%+v, of %d files", rep.Total, len(rep.Files))
		}
		for _, f := range rep.Files {
			line := string(f.Kind) + " " + f.Path
			if f.Kind == idxshare.Renamed {
				line += " from " + f.OldPath
			}
			files = append(files, line)
		}
		slices.Sort(files)
		return files, rep.Total.Read.ReadBytes
	}
	if files, _ := changed(); len(files) > 0 {
		t.Errorf("mounted, and changed: %q", files)
	}
	r.sh("cd " + r.mnt + " && echo c >>etc/passwd && rm etc/gone && mv etc/old many/new && mkdir -p a/b && seq 5000 >a/b/c && ln a/b/c a/d && ln -s c a/b/e && rm many/7 && chmod 600 many/8")
	want := []string{"added /a", "added /a/b", "added /a/b/c", "added /a/b/e", "added /a/d", "deleted /etc/gone", "deleted /many/7", "modified /etc/passwd", "modified /many/8",
		"renamed /many/new from /etc/old"}
	files, first := changed()
	if !slices.Equal(files, want) {
		t.Errorf("changed: %q\nnot %q", files, want)
	}
	r.sh("echo d >>" + r.mnt + "/many/9")
	again, second := changed()
	if want = append(want, "modified /many/9"); !equalSorted(again, want) || second == 0 || second >= first {
		t.Errorf("changed: %q\nnot %q; read %d bytes, and %d before", again, want, second, first)
	}
	t.Logf("read %d bytes, and %d the second time", first, second)
	found := strings.Fields(r.ok(append([]string{"index", "find", "c", "--changed", "--under", "/a"}, flags...)...))
	if !equalSorted(found, []string{"/a/b/c"}) {
		t.Errorf("found %q", found)
	}
	r.sh("umount " + r.mnt)
	whole := filepath.Join(r.dir, "whole.index")
	r.ok("index", "build", web.Path, "--to", whole)
	all := func(args ...string) []string {
		lines := strings.Split(r.ok(append([]string{"index", "find", "", "--long"}, args...)...), "\n")
		slices.Sort(lines)
		return lines
	}
	if got, want := all(flags...), all("--on", whole); !slices.Equal(got, want) {
		t.Errorf("known of root and layer:\n%s\nof the whole device:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	r.ok("delete", "web1")
	d.stop()
	r.nothingLeft()
	r.ok("store", "check", r.leaf)
}

func equalSorted(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}
