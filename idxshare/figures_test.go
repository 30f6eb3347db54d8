package idxshare

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

var (
	figuresFile = flag.String("figures", "", "measure, and write the page to this file")
	figureNames = flag.Int("names", 1_000_000, "how many names are made up for the figures")
)

// TestIdxFigures measures how long an index is and how fast it answers, beside plocate in the same run. Without -figures, it only proves on little that it can be measured.
func TestIdxFigures(t *testing.T) {
	root, names, rounds := "/etc", 3000, 1
	if *figuresFile != "" {
		root, names, rounds = "/", *figureNames, 5
		if names > manyNames {
			rounds = 1
		}
	}
	page := fmt.Sprintf("# Figures of the index\n\nWritten by `make figures` on %s, with Go %s on %d CPUs, all in one run. Times are medians, in rounds in which all of a table take turns: %d of them.\n",
		time.Now().UTC().Format("2006-01-02"), strings.TrimPrefix(runtime.Version(), "go"), runtime.NumCPU(), rounds)
	page += sizeFigures(t, root)
	page += findFigures(t, names, rounds)
	t.Log(page)
	if *figuresFile != "" {
		if err := os.WriteFile(*figuresFile, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// sizeFigures indexes the files of a root without and with digests.
func sizeFigures(t *testing.T, root string) string {
	page := "\n## Size\n\nThe index of all files below " + root + " of the Debian system that this ran on, with names, extents and trigrams; cut into chunks of 64 KiB and compressed " +
		"chunk by chunk, as images are.\n\n| | files | written in | bytes a file | compressed |\n| --- | --- | --- | --- | --- |\n"
	for _, digests := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "index")
		files, took := indexTree(t, root, path, digests)
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		what, each := "without digests", float64(compressedSize(t, path))/float64(files)
		if digests {
			what = "with digests"
		}
		if each > 120 {
			t.Errorf("%s: %.1f bytes a file, and 120 are the most", what, each)
		}
		page += fmt.Sprintf("| %s | %d | %.1f s | %.1f | %.1f |\n", what, files, took.Seconds(), float64(st.Size())/float64(files), each)
	}
	return page
}

// manyNames is how many names are so many that each question is asked once: what millions of them answer takes minutes, beside which the noise is small.
const manyNames = 5_000_000

// findFigures asks an index of names that are made up, and plocate with the same names.
func findFigures(t *testing.T, names, rounds int) string {
	dir := t.TempDir()
	path, db := filepath.Join(dir, "index"), filepath.Join(dir, "plocate.db")
	began := time.Now()
	writeSynthetic(t, path, names)
	written := time.Since(began)
	x := openTest(t, path)
	began = time.Now()
	if left, err := x.View().ExportPlocate(context.Background(), 1, "", db); err != nil || left > 0 {
		t.Fatal(left, err)
	}
	page := fmt.Sprintf("\n## Asking\n\n%d names that are made up, written in %.1f s, and given to plocate in %.1f s. An answer is the paths of all that match; the index is opened anew for each question, "+
		"and plocate begins as a process, which takes it some 1 ms.\n\n| asked for | in | found | index | plocate | plocate's time, of the index's |\n| --- | --- | --- | --- | --- | --- |\n",
		names, written.Seconds(), time.Since(began).Seconds())
	for _, q := range []Query{{Pattern: "kalasu"}, {Pattern: "babadi", WholePath: true}, {Pattern: "nothing-like-it"}, {Pattern: "so-"}, {Pattern: ".json"}, {Pattern: "a"},
		{Pattern: "KALASU", IgnoreCase: true}, {Pattern: "ka[ls]u.*7f", Syntax: Regexp}, {Pattern: "^[a-d]+[0-9]+$", Syntax: Regexp}, {Pattern: "(lasu|dibo).*[.]json", Syntax: Regexp, WholePath: true}} {
		q.NamesOnly = true
		var times [2][]float64
		found := [2]int{}
		for range rounds {
			for i, ask := range []func(*testing.T, string, Query) int{askIndex, askPlocate} {
				began := time.Now()
				found[i] = ask(t, []string{path, db}[i], q)
				times[i] = append(times[i], time.Since(began).Seconds()*1e3)
			}
		}
		if found[0] != found[1] {
			t.Errorf("%+v: the index finds %d, plocate %d", q, found[0], found[1])
		}
		where := "names"
		if q.WholePath {
			where = "paths"
		}
		what := q.Syntax.String()
		if q.IgnoreCase {
			what += ", any case"
		}
		slices.Sort(times[0])
		slices.Sort(times[1])
		mine, theirs := times[0][rounds/2], times[1][rounds/2]
		page += fmt.Sprintf("| `%s` (%s) | %s | %d | %.1f ms | %.1f ms | %.2f |\n", strings.ReplaceAll(q.Pattern, "|", "\\|"), what, where, found[0], mine, theirs, theirs/mine)
	}
	return page
}

func askIndex(t *testing.T, path string, q Query) (n int) {
	x, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	if err := x.View().Find(context.Background(), q, func(Match) error {
		n++
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

func askPlocate(t *testing.T, db string, q Query) int {
	args := []string{"--database", db, "--literal"}
	if !q.WholePath {
		args = append(args, "--basename")
	}
	if q.IgnoreCase {
		args = append(args, "--ignore-case")
	}
	if q.Syntax == Regexp {
		args = append(args, "--regex")
	}
	cmd := exec.Command("plocate", append(args, "--", q.Pattern)...)
	var lines lineCounter
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &lines, &stderr
	err := cmd.Run()
	var failed *exec.ExitError
	if err != nil && !(errors.As(err, &failed) && failed.ExitCode() == 1 && stderr.Len() == 0) { // 1: nothing was found
		t.Fatalf("plocate: %v: %s", err, stderr.Bytes())
	}
	return int(lines)
}

// lineCounter counts lines, and keeps nothing: of 27 million names there are gigabytes.
type lineCounter int

func (c *lineCounter) Write(p []byte) (int, error) {
	*c += lineCounter(bytes.Count(p, []byte("\n")))
	return len(p), nil
}

// indexTree indexes the file system that a directory is on as it is mounted: attributes by statx, extents by FIEMAP.
func indexTree(t testing.TB, root, path string, digests bool) (files int, took time.Duration) {
	t.Helper()
	w, err := Create(path, Header{Source: root, Size: 1 << 42, Digests: digests})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if err := w.AddVolume(Volume{ID: 1, Length: 1 << 42, Type: "ext4", BlockSize: 4096, Mapped: true}); err != nil {
		t.Fatal(err)
	}
	seen := map[uint64]bool{}
	inodes := map[string]uint64{}
	var device [2]uint32
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // gone meanwhile
		}
		var st unix.Statx_t
		if err := unix.Statx(unix.AT_FDCWD, p, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st); err != nil {
			return nil
		}
		if p == root {
			device = [2]uint32{st.Dev_major, st.Dev_minor}
		}
		if device != [2]uint32{st.Dev_major, st.Dev_minor} {
			return fs.SkipDir
		}
		if d.IsDir() {
			inodes[p] = st.Ino
		}
		if p != root {
			if err := w.AddName(Name{Volume: 1, Parent: inodes[filepath.Dir(p)], Name: []byte(d.Name()), Inode: st.Ino}); err != nil {
				return err
			}
		}
		if seen[st.Ino] {
			return nil
		}
		seen[st.Ino] = true
		f := File{Volume: 1, Inode: st.Ino, Mode: uint32(st.Mode), UID: st.Uid, GID: st.Gid, Size: int64(st.Size), Links: st.Nlink, Blocks: int64(st.Blocks),
			Rdev: unix.Mkdev(st.Rdev_major, st.Rdev_minor), Mtime: nano(st.Mtime), Atime: nano(st.Atime), Ctime: nano(st.Ctime), Crtime: nano(st.Btime)}
		if d.Type()&fs.ModeSymlink != 0 {
			target, err := os.Readlink(p)
			if err != nil {
				return nil
			}
			f.Target = []byte(target)
		}
		if digests && d.Type().IsRegular() {
			sum := sha256.Sum256(binary.BigEndian.AppendUint64(nil, st.Ino)) // any will do: none can be compressed
			f.Digest = sum[:]
		}
		files++
		if err := w.AddFile(&f); err != nil {
			return err
		}
		if d.IsDir() || d.Type().IsRegular() {
			return fileExtents(p, func(e Extent) error {
				e.Volume, e.Inode = 1, st.Ino
				if d.IsDir() {
					e.Kind = ExtentDirectory
				}
				return w.AddExtent(e)
			})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	return files, time.Since(began)
}

func nano(t unix.StatxTimestamp) int64 { return t.Sec*1e9 + int64(t.Nsec) }

// fileExtents asks the file system where a file is: linux/fiemap.h. Where it does not tell, there are none.
func fileExtents(path string, fn func(Extent) error) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	type fiemapExtent struct {
		logical, physical, length uint64
		_                         [2]uint64
		flags                     uint32
		_                         [3]uint32
	}
	var m struct {
		start, length        uint64
		flags, mapped, count uint32
		_                    uint32
		extents              [64]fiemapExtent
	}
	for {
		m.length, m.count = ^uint64(0), uint32(len(m.extents))
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), 0xC020660B, uintptr(unsafe.Pointer(&m))); errno != 0 || m.mapped == 0 {
			return nil
		}
		for _, e := range m.extents[:m.mapped] {
			m.start = e.logical + e.length
			if e.flags&0x2ff == 0 || e.flags&^0x801 == 0 { // neither unknown, delayed nor inline; unwritten is well
				if err := fn(Extent{Logical: int64(e.logical >> 12), Physical: int64(e.physical >> 12), Length: int64(e.length >> 12), Unwritten: e.flags&0x800 != 0}); err != nil {
					return err
				}
			}
			if e.flags&1 != 0 {
				return nil
			}
		}
	}
}

// compressedSize returns how long a file is when it is stored as an image: chunks of 64 KiB, compressed one by one.
func compressedSize(t testing.TB, path string) int64 {
	t.Helper()
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false))
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	total := int64(0)
	for off := 0; off < len(b); off += 64 << 10 {
		total += int64(len(enc.EncodeAll(b[off:min(off+64<<10, len(b))], nil)))
	}
	return total
}
