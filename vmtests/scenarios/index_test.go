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

	"coppice/idxshare"
)

// TestIndexOfDebian compares the index of a Debian system, made from its blocks, with what other programs say of it: find of the mounted file system, entry for entry, debugfs of the blocks of
// every file and directory, and sha256sum of the contents, as far as the time allows.
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
	known, sums := entriesOf(t, x.View())
	seen := strings.Split(sh(t, `cd `+dir+` && find . -mindepth 1 -printf '/%P %i %y %m %U %G %s %n %T@ %l\0'`), "\x00")
	seen = seen[:len(seen)-1]
	slices.Sort(seen)
	if len(seen) < 5000 {
		t.Errorf("find found %d entries", len(seen))
	}
	sameLines(t, "find", known, seen)
	blocks := extentsOf(t, x.View())
	sameLines(t, "debugfs", blocks, debugfsExtents(t, device, blocks))
	t.Logf("%d entries, %d extents, %d digests", len(seen), len(blocks), len(sums))
	if indexDigests {
		text := sh(t, `cd `+dir+` && find . -type f -print0 | xargs -0 sha256sum -z`)
		lines := strings.Split(strings.ReplaceAll(text, "  ./", "  /"), "\x00")
		lines = lines[:len(lines)-1]
		slices.Sort(lines)
		sameLines(t, "sha256sum", sums, lines)
	}
}

// entriesOf returns what an index knows of each name as find is told to print it, and digests as sha256sum prints them.
func entriesOf(t *testing.T, v *idxshare.View) (entries, sums []string) {
	t.Helper()
	types := map[uint32]string{
		idxshare.ModeRegular: "f", idxshare.ModeDirectory: "d", idxshare.ModeSymlink: "l", idxshare.ModeBlock: "b", idxshare.ModeCharacter: "c", idxshare.ModeFIFO: "p", idxshare.ModeSocket: "s",
	}
	err := v.Find(context.Background(), idxshare.Query{}, func(m idxshare.Match) error {
		f := m.File
		entries = append(entries, fmt.Sprintf("%s %d %s %o %d %d %d %d %d.%09d0 %s", m.Path, f.Inode, types[f.Mode&idxshare.ModeType], f.Mode&^idxshare.ModeType, f.UID, f.GID, f.Size, f.Links,
			f.Mtime/1e9, f.Mtime%1e9, f.Target))
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
	return entries, sums
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

func extentsOf(t *testing.T, v *idxshare.View) []string {
	t.Helper()
	var list []fileExtent
	err := v.Extents(context.Background(), func(e idxshare.Extent) error {
		if e.Kind == idxshare.ExtentData || e.Kind == idxshare.ExtentDirectory {
			list = append(list, fileExtent{e.Inode, e.Logical, e.Physical, e.Length})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return showExtents(list)
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
	number := func(s string) int64 {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	var list []fileExtent
	inode := int64(0)
	for line := range strings.Lines(sh(t, "debugfs -f "+script+" "+device+" 2>/dev/null")) {
		if m := askedInode.FindStringSubmatch(line); m != nil {
			inode = number(m[1])
		} else if m := shownLeaf.FindStringSubmatch(line); m != nil && m[1] == m[2] {
			list = append(list, fileExtent{uint64(inode), number(m[3]), number(m[4]), number(m[5])})
		}
	}
	return showExtents(list)
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
