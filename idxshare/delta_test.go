package idxshare

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// newImage makes a file system with files of all kinds, without mounting it.
func newImage(t *testing.T, dir string, options ...string) string {
	t.Helper()
	tree := filepath.Join(dir, "tree")
	for _, d := range []string{"etc", "usr/bin", "usr/share", "empty", "deep/er"} {
		mustDo(t, os.MkdirAll(filepath.Join(tree, d), 0o755))
	}
	for name, size := range map[string]int{"etc/passwd": 100, "etc/hosts": 5000, "usr/bin/tool": 70000, "usr/share/text": 4096, "deep/er/file": 1} {
		mustDo(t, os.WriteFile(filepath.Join(tree, name), bytes.Repeat([]byte(name), size/len(name)+1)[:size], 0o644))
	}
	for i := range 40 {
		mustDo(t, os.WriteFile(fmt.Sprintf("%s/usr/share/f%d", tree, i), make([]byte, i*100), 0o600))
	}
	mustDo(t, os.Symlink("hosts", tree+"/etc/short"))
	mustDo(t, os.Symlink(strings.Repeat("long/", 40), tree+"/etc/long"))
	mustDo(t, os.Link(tree+"/etc/passwd", tree+"/etc/passwd-"))
	image := filepath.Join(dir, "root.img")
	run(t, "mke2fs", append(append([]string{"-q", "-F", "-t", "ext4", "-b", "1024", "-d", tree}, options...), image, "12M")...)
	return image
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
}

// debugfs changes a file system as a kernel would have left it.
func debugfs(t *testing.T, image string, commands ...string) {
	t.Helper()
	cmd := exec.Command("debugfs", "-w", "-f", "-", image)
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("debugfs: %v: %s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if !strings.HasPrefix(line, "debugfs") && !strings.HasPrefix(line, "Allocated inode") && strings.TrimSpace(line) != "" {
			t.Fatalf("debugfs: %s", out)
		}
	}
}

// showChange is a change in one line.
func showChange(c Change) string {
	s := fmt.Sprintf("%s %s", c.Kind, c.Path)
	if c.OldPath != nil {
		s += " from " + string(c.OldPath)
	}
	s += fmt.Sprintf(" %d->%d", c.OldSize, c.NewSize)
	if c.Content {
		s += " content"
	}
	if c.Attributes {
		s += " attributes"
	}
	return s
}

func changesOf(t tester, v *View) (list []string) {
	t.Helper()
	mustDo(t, v.Changes(context.Background(), func(c Change) error {
		list = append(list, showChange(c))
		return nil
	}))
	return list
}

// TestDelta changes a file system in one way after the other. Each time base and delta are the index of all of it, whether the delta is made from the root or from the delta before, and
// what changed is told.
func TestDelta(t *testing.T) {
	dir := t.TempDir()
	big := filepath.Join(dir, "big")
	mustDo(t, os.WriteFile(big, bytes.Repeat([]byte("big"), 60000), 0o644))
	none := "set_inode_field "
	steps := []struct {
		name string
		do   []string
		want []string // of all steps so far
	}{
		{"nothing", nil, nil},
		{"read only", []string{none + "/etc/hosts atime @1700000000"}, nil},
		{"new file", []string{"write " + big + " usr/new"}, []string{"added /usr/new 0->180000"}},
		{"deleted", []string{"rm usr/share/text"}, []string{"added /usr/new 0->180000", "deleted /usr/share/text 4096->0"}},
		{"reused", []string{"mkdir usr/share/dir"}, []string{"added /usr/new 0->180000", "added /usr/share/dir 0->1024", "deleted /usr/share/text 4096->0"}},
		{"hard link", []string{"ln etc/passwd usr/link", none + "etc/passwd links_count 3"},
			[]string{"added /usr/link 0->100", "added /usr/new 0->180000", "added /usr/share/dir 0->1024", "deleted /usr/share/text 4096->0"}},
		{"renamed", []string{"ln usr/bin/tool empty/renamed", "unlink usr/bin/tool"},
			[]string{"added /usr/link 0->100", "added /usr/new 0->180000", "added /usr/share/dir 0->1024", "deleted /usr/share/text 4096->0", "renamed /empty/renamed from /usr/bin/tool 70000->70000"}},
		{"directory renamed", []string{"ln deep/er moved", "unlink deep/er"},
			[]string{"added /usr/link 0->100", "added /usr/new 0->180000", "added /usr/share/dir 0->1024", "deleted /usr/share/text 4096->0", "renamed /empty/renamed from /usr/bin/tool 70000->70000",
				"renamed /moved from /deep/er 1024->1024"}},
		{"in a renamed directory", []string{none + "moved/file mtime @1700000000"},
			[]string{"added /usr/link 0->100", "added /usr/new 0->180000", "added /usr/share/dir 0->1024", "deleted /usr/share/text 4096->0",
				"modified /moved/file from /deep/er/file 1->1 content", "renamed /empty/renamed from /usr/bin/tool 70000->70000", "renamed /moved from /deep/er 1024->1024"}},
		{"attributes", []string{none + "etc/hosts uid 70000", "ea_set etc/short user.x y", none + "etc/short ctime @1700000001", "ea_set usr/share/f30 user.big " + strings.Repeat("v", 700), none + "usr/share/f30 ctime @1700000001"},
			[]string{"added /usr/link 0->100", "added /usr/new 0->180000", "added /usr/share/dir 0->1024", "deleted /usr/share/text 4096->0", "modified /etc/hosts 5000->5000 attributes",
				"modified /etc/short 5->5 attributes", "modified /moved/file from /deep/er/file 1->1 content", "modified /usr/share/f30 3000->3000 attributes",
				"renamed /empty/renamed from /usr/bin/tool 70000->70000", "renamed /moved from /deep/er 1024->1024"}},
	}
	root := newImage(t, dir)
	index := filepath.Join(dir, "root.index")
	indexWhole(t, root, index, "root", true)
	base, err := Open(index)
	mustDo(t, err)
	defer base.Close()
	before, previous := root, (*Index)(nil)
	for i, s := range steps {
		t.Run(s.name, func(t *testing.T) {
			now := filepath.Join(dir, fmt.Sprintf("%d.img", i))
			run(t, "cp", before, now)
			if s.do != nil {
				debugfs(t, now, s.do...)
			}
			whole := filepath.Join(dir, fmt.Sprintf("%d.index", i))
			indexWhole(t, now, whole, "whole", true)
			fresh := makeDelta(t, filepath.Join(dir, fmt.Sprintf("%d.fresh", i)), base, nil, root, now)
			defer fresh.Close()
			next := makeDelta(t, filepath.Join(dir, fmt.Sprintf("%d.delta", i)), base, previous, before, now)
			for _, delta := range []*Index{fresh, next} {
				v, err := NewView(context.Background(), base, delta)
				mustDo(t, err)
				compareWithIndex(t, v, whole)
				got := changesOf(t, v)
				slices.Sort(got)
				if !slices.Equal(got, s.want) {
					t.Errorf("changed:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(s.want, "\n"))
				}
			}
			before, previous = now, next
		})
	}
}

// Content that lies in an inode counts as half a KiB, as stat(2) has it, beside the block that the inode's attributes have.
func TestBlocksOfInlineContent(t *testing.T) {
	dir := t.TempDir()
	image, index := newImage(t, dir, "-O", "inline_data"), filepath.Join(dir, "index")
	debugfs(t, image, "ea_set deep/er/file user.big "+strings.Repeat("v", 700))
	indexWhole(t, image, index, "root", false)
	x := openTest(t, index)
	for path, want := range map[string]int64{"/etc/passwd": 1, "/deep/er/file": 3} {
		f, err := x.View().Lookup(t.Context(), 0, path)
		mustDo(t, err)
		if f.Blocks != want {
			t.Errorf("%s, %d bytes: %d blocks, want %d", path, f.Size, f.Blocks, want)
		}
	}
}

// A device on which another file system was made, or which has none any more, or whose file system has become larger, is indexed as it is, volumes and free blocks included.
func TestDeltaOfAnotherFileSystem(t *testing.T) {
	dir := t.TempDir()
	root := newImage(t, dir, "-U", "5f2f3a1e-0c9e-4b3c-9d5e-5a3f0c8e7b11")
	small := filepath.Join(dir, "small.img")
	run(t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-d", filepath.Join(dir, "tree"), small, "8M")
	mustDo(t, os.Truncate(small, 12<<20))
	run(t, "rm", "-r", filepath.Join(dir, "tree", "usr", "share"))
	mkfs := func(options ...string) []string {
		return append(append([]string{"mke2fs", "-q", "-F", "-t", "ext4", "-d", filepath.Join(dir, "tree")}, options...), "IMAGE")
	}
	for _, c := range []struct {
		name, root string
		do         []string
		how        VolumeHow // "": as it may
	}{
		{"larger blocks", root, mkfs("-b", "4096"), VolumeWhole},
		{"the same UUID", root, mkfs("-b", "1024", "-U", "5f2f3a1e-0c9e-4b3c-9d5e-5a3f0c8e7b11"), ""},
		{"none", root, []string{"dd", "if=/dev/zero", "of=IMAGE", "bs=64k", "count=1", "conv=notrunc", "status=none"}, VolumeGone},
		{"grown", small, []string{"resize2fs", "-f", "IMAGE", "12M"}, VolumeDelta},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			index, now, whole := filepath.Join(dir, "root.index"), filepath.Join(dir, "now.img"), filepath.Join(dir, "whole.index")
			indexWhole(t, c.root, index, "root", true)
			base, err := Open(index)
			mustDo(t, err)
			defer base.Close()
			run(t, "cp", c.root, now)
			for i, arg := range c.do {
				c.do[i] = strings.ReplaceAll(arg, "IMAGE", now)
			}
			run(t, c.do[0], c.do[1:]...)
			delta, report := makeDeltaReported(t, filepath.Join(dir, "delta"), base, nil, c.root, now)
			defer delta.Close()
			if len(report.Volumes) != 1 || c.how != "" && report.Volumes[0].How != c.how {
				t.Errorf("%+v", report.Volumes)
			}
			v, err := NewView(context.Background(), base, delta)
			mustDo(t, err)
			if c.how == VolumeGone {
				if k := allOf(t, v); len(k.files)+len(k.names)+len(k.extents) > 0 {
					t.Errorf("left: %d files, %d names, %d extents", len(k.files), len(k.names), len(k.extents))
				}
				back := makeDelta(t, filepath.Join(dir, "back"), base, delta, now, c.root)
				defer back.Close()
				v, err := NewView(context.Background(), base, back)
				mustDo(t, err)
				compareWithIndex(t, v, index)
				return
			}
			indexWhole(t, now, whole, "whole", true)
			compareWithIndex(t, v, whole)
			again := filepath.Join(dir, "again.img")
			run(t, "cp", now, again)
			debugfs(t, again, "mkdir once", "rm etc/hosts")
			next := makeDelta(t, filepath.Join(dir, "next"), base, delta, now, again)
			defer next.Close()
			then, err := NewView(context.Background(), base, next)
			mustDo(t, err)
			indexWhole(t, again, filepath.Join(dir, "again.index"), "whole", true)
			compareWithIndex(t, then, filepath.Join(dir, "again.index"))
			x, err := Open(whole)
			mustDo(t, err)
			defer x.Close()
			if got, want := fmt.Sprint(v.Volumes()), fmt.Sprint(x.Volumes()); got != want {
				t.Errorf("volumes %s, not %s", got, want)
			}
			if got, want := ownersOf(t, v), ownersOf(t, x.View()); !slices.Equal(got, want) {
				t.Errorf("owners:\n%v\nnot\n%v", got, want)
			}
		})
	}
}

func ownersOf(t *testing.T, v *View) (owners []Owner) {
	t.Helper()
	mustDo(t, v.Owners(context.Background(), 0, 12<<20, func(o Owner) error {
		owners = append(owners, o)
		return nil
	}))
	return owners
}

// The map by which a file system can grow is not read because a directory beside its inode changed.
func TestDeltaLeavesMapsOfItsOwn(t *testing.T) {
	dir := t.TempDir()
	before := newImage(t, dir, "-O", "resize_inode")
	after, index := filepath.Join(dir, "after.img"), filepath.Join(dir, "index")
	run(t, "cp", before, after)
	debugfs(t, after, "set_inode_field / uid 7")
	indexWhole(t, before, index, "root", false)
	base, err := Open(index)
	mustDo(t, err)
	defer base.Close()
	x, report := makeDeltaReported(t, filepath.Join(dir, "delta"), base, nil, before, after)
	defer x.Close()
	if report.Files != 1 || report.ReadBytes > 64<<10 {
		t.Errorf("the delta has %d files, and %d bytes were read for it", report.Files, report.ReadBytes)
	}
	v, err := NewView(context.Background(), base, x)
	mustDo(t, err)
	whole := filepath.Join(dir, "whole")
	indexWhole(t, after, whole, "after", false)
	compareWithIndex(t, v, whole)
}
