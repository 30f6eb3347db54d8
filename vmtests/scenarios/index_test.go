//go:build vm

package scenarios

import (
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"coppice/idxshare"
)

// TestIndexOfDebian compares the index of a Debian system, made from its blocks, with what other programs say of it: find of the mounted file system, entry for entry, debugfs of the blocks of
// every file and directory, filefrag of those that the kernel tells of every file, and sha256sum of the contents, as far as the time allows.
func TestIndexOfDebian(t *testing.T) {
	device, index := disk(t, "debian"), filepath.Join(t.TempDir(), "index")
	args := []string{"index", "build", device, "--to", index}
	if indexDigests {
		args = append(args, "--digests")
	}
	t.Log(coppice(t, args...))
	x, err := idxshare.Open(index)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	dir := mountPoint(t, device, "-t ext4 -o ro")
	known, sums, regular := entriesOf(t, x.View())
	seen := strings.Split(sh(t, `cd `+dir+` && find . -mindepth 1 -printf '/%P %i %y %m %U %G %s %n %T@ %l\0'`), "\x00")
	seen = seen[:len(seen)-1]
	slices.Sort(seen)
	if len(seen) < 5000 {
		t.Errorf("find found %d entries", len(seen))
	}
	sameLines(t, "find", known, seen)
	extents := extentsOf(t, x.View())
	blocks := showExtents(extents)
	sameLines(t, "debugfs", blocks, debugfsExtents(t, device, blocks))
	began := time.Now()
	ofFiles := showExtents(slices.DeleteFunc(extents, func(e fileExtent) bool { return regular[e.inode] == "" }))
	sameLines(t, "filefrag", ofFiles, filefragExtents(t, dir, regular))
	t.Logf("%d entries, %d extents, %d of regular files (%.1f s), %d digests", len(seen), len(blocks), len(ofFiles), time.Since(began).Seconds(), len(sums))
	if indexDigests {
		text := sh(t, `cd `+dir+` && find . -type f -print0 | xargs -0 sha256sum -z`)
		lines := strings.Split(strings.ReplaceAll(text, "  ./", "  /"), "\x00")
		lines = lines[:len(lines)-1]
		slices.Sort(lines)
		sameLines(t, "sha256sum", sums, lines)
	}
}

// entriesOf returns what an index knows of each name as find is told to print it, digests as sha256sum prints them, and a path of each inode that is a regular file.
func entriesOf(t *testing.T, v *idxshare.View) (entries, sums []string, regular map[uint64]string) {
	t.Helper()
	regular = map[uint64]string{}
	types := map[uint32]string{
		idxshare.ModeRegular: "f", idxshare.ModeDirectory: "d", idxshare.ModeSymlink: "l", idxshare.ModeBlock: "b", idxshare.ModeCharacter: "c", idxshare.ModeFIFO: "p", idxshare.ModeSocket: "s",
	}
	err := v.Find(context.Background(), idxshare.Query{}, func(m idxshare.Match) error {
		f := m.File
		entries = append(entries, fmt.Sprintf("%s %d %s %o %d %d %d %d %d.%09d0 %s", m.Path, f.Inode, types[f.Mode&idxshare.ModeType], f.Mode&^idxshare.ModeType, f.UID, f.GID, f.Size, f.Links,
			f.Mtime/1e9, f.Mtime%1e9, f.Target))
		if f.Mode&idxshare.ModeType == idxshare.ModeRegular {
			regular[f.Inode] = string(m.Path)
		}
		if f.Digest != nil {
			sums = append(sums, hex.EncodeToString(f.Digest)+"  "+string(m.Path))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(entries)
	slices.Sort(sums)
	return entries, sums, regular
}

// fileExtent is a run of blocks of a file or directory.
type fileExtent struct {
	inode                     uint64
	logical, physical, length int64
}

func (e fileExtent) String() string {
	return fmt.Sprintf("inode %d from %d on: %d blocks at %d", e.inode, e.logical, e.length, e.physical)
}

// showExtents sorts extents and shows each, those together that follow each other in the file and on the disk.
func showExtents(list []fileExtent) (lines []string) {
	slices.SortFunc(list, func(a, b fileExtent) int {
		return cmp.Or(cmp.Compare(a.inode, b.inode), cmp.Compare(a.logical, b.logical))
	})
	for i := 0; i < len(list); {
		e := list[i]
		for i++; i < len(list) && list[i].inode == e.inode && list[i].logical == e.logical+e.length && list[i].physical == e.physical+e.length; i++ {
			e.length += list[i].length
		}
		lines = append(lines, e.String())
	}
	return lines
}

func extentsOf(t *testing.T, v *idxshare.View) (list []fileExtent) {
	t.Helper()
	err := v.Extents(context.Background(), func(e idxshare.Extent) error {
		if e.Kind == idxshare.ExtentData || e.Kind == idxshare.ExtentDirectory {
			list = append(list, fileExtent{e.Inode, e.Logical, e.Physical, e.Length})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// number reads what a program has printed.
func number(t *testing.T, s string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Of what debugfs prints for ex: the command, and an extent, with its level and how many levels there are.
var (
	askedInode = regexp.MustCompile(`^debugfs: +ex <(\d+)>`)
	shownLeaf  = regexp.MustCompile(`^ *(\d+)/ *(\d+) +\d+/ *\d+ +(\d+) *- *\d+ +(\d+) *- *\d+ +(\d+)`)
)

// debugfsExtents asks debugfs for the extents of all inodes in lines that showExtents has made.
func debugfsExtents(t *testing.T, device string, lines []string) []string {
	t.Helper()
	var commands strings.Builder
	last := ""
	for _, line := range lines {
		if inode := strings.Fields(line)[1]; inode != last {
			fmt.Fprintf(&commands, "ex <%s>\n", inode)
			last = inode
		}
	}
	script := filepath.Join(t.TempDir(), "commands")
	if err := os.WriteFile(script, []byte(commands.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	var list []fileExtent
	inode := int64(0)
	for line := range strings.Lines(sh(t, "debugfs -f "+script+" "+device+" 2>/dev/null")) {
		if m := askedInode.FindStringSubmatch(line); m != nil {
			inode = number(t, m[1])
		} else if m := shownLeaf.FindStringSubmatch(line); m != nil && m[1] == m[2] {
			list = append(list, fileExtent{uint64(inode), number(t, m[3]), number(t, m[4]), number(t, m[5])})
		}
	}
	return showExtents(list)
}

// shownFragment is what filefrag prints of an extent.
var shownFragment = regexp.MustCompile(`^ *\d+: +(\d+)\.\. *\d+: +(\d+)\.\. *\d+: +(\d+):`)

// filefragExtents asks filefrag for the extents of files in a mount, given by paths of inodes.
func filefragExtents(t *testing.T, dir string, files map[uint64]string) []string {
	t.Helper()
	var paths strings.Builder
	inodes := map[string]uint64{}
	for inode, path := range files {
		fmt.Fprintf(&paths, ".%s\x00", path)
		inodes["."+path] = inode
	}
	list := filepath.Join(t.TempDir(), "paths")
	if err := os.WriteFile(list, []byte(paths.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	var extents []fileExtent
	inode, told := uint64(0), 0
	for line := range strings.Lines(sh(t, "cd "+dir+" && xargs -0 filefrag -v <"+list)) {
		if after, ok := strings.CutPrefix(line, "File size of "); ok {
			path := after[:max(0, strings.LastIndex(after, " is "))]
			if inode, ok = inodes[path]; !ok {
				t.Fatalf("filefrag tells of %q", path)
			}
			told++
		} else if m := shownFragment.FindStringSubmatch(line); m != nil {
			extents = append(extents, fileExtent{inode, number(t, m[1]), number(t, m[2]), number(t, m[3])})
		}
	}
	if told != len(files) {
		t.Errorf("filefrag tells of %d files, of %d", told, len(files))
	}
	return showExtents(extents)
}

// sameLines demands that an index and another program say the same.
func sameLines(t *testing.T, program string, index, other []string) {
	t.Helper()
	if slices.Equal(index, other) {
		return
	}
	i := 0
	for i < min(len(index), len(other)) && index[i] == other[i] {
		i++
	}
	line := func(list []string) string {
		if i < len(list) {
			return list[i]
		}
		return "nothing"
	}
	t.Errorf("%d lines, of %s %d; the first %d are the same: next\n%q, of %s\n%q", len(index), program, len(other), i, line(index), program, line(other))
}
