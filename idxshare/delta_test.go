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
