package idxshare

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
)

// A golden file of a released version is never written again.
var writeGolden = flag.Bool("write-golden", false, "write testdata/format-v1*.index.zst anew: only before version 1 is released")

// What is written is read back, whatever the order of writing.
func TestIdxRoundTrip(t *testing.T) {
	for _, files := range []int{0, 3, 900} {
		w := randomWorld(rand.New(rand.NewPCG(1, uint64(files))), files)
		if got := read(t, w.index(t)); !reflect.DeepEqual(got, w) {
			t.Errorf("%d files: read %d files, %d names, %d extents, header %+v; wrote %d, %d, %d, %+v", files, len(got.files), len(got.names), len(got.extents), got.header,
				len(w.files), len(w.names), len(w.extents), w.header)
			for i := range w.files {
				if i < len(got.files) && !reflect.DeepEqual(got.files[i], w.files[i]) {
					t.Fatalf("read %+v\nwrote %+v", got.files[i], w.files[i])
				}
			}
		}
	}
}

// The same input makes the same bytes, so that two who index one image make one artifact.
func TestIdxSameInputSameBytes(t *testing.T) {
	w := randomWorld(rand.New(rand.NewPCG(2, 0)), 2000)
	var first []byte
	for seed := range uint64(3) {
		path := filepath.Join(t.TempDir(), "index")
		w.write(t, path, seed)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = b
		} else if !bytes.Equal(b, first) {
			t.Errorf("another order of adding made other bytes")
		}
	}
}

// Records that do not fit into memory come out in the same order.
func TestIdxSorterSpills(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 0))
	dir := t.TempDir()
	small, large := newSorter(dir, 4096), newSorter(dir, 1<<20)
	defer small.close()
	defer large.close()
	for range 5000 {
		b := make([]byte, rng.IntN(30))
		for i := range b {
			b[i] = byte(rng.IntN(3))
		}
		if err := errors.Join(small.add(b), large.add(b)); err != nil {
			t.Fatal(err)
		}
	}
	collect := func(s *sorter) (all [][]byte) {
		if err := s.each(func(b []byte) error {
			all = append(all, append([]byte{}, b...))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return all
	}
	want := collect(large)
	if len(small.runs) < 10 || len(large.runs) != 0 || len(want) != 5000 {
		t.Fatalf("%d and %d runs, %d records", len(small.runs), len(large.runs), len(want))
	}
	for range 2 { // it can be read again
		if got := collect(small); !reflect.DeepEqual(got, want) {
			t.Errorf("another order with runs")
		}
	}
	for _, s := range []*sorter{small, large} {
		n := 0
		for record, err := range s.all() {
			if err != nil || !bytes.Equal(record, want[n]) {
				t.Fatalf("record %d: %q, %v", n, record, err)
			}
			if n++; n == 100 {
				break
			}
		}
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 0 {
		t.Errorf("%v, %v", files, err)
	}
}

// Nothing is left of an index that was given up, and one that is there stays until the new one is whole.
func TestIdxAbortLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "index")
	w := randomWorld(rand.New(rand.NewPCG(4, 0)), 10)
	w.write(t, path, 0)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	x, err := Create(path, w.header)
	if err != nil {
		t.Fatal(err)
	}
	x.Abort()
	twice := *w
	twice.files = append(twice.files, w.files[0])
	if err := twice.tryWrite(path, 0); !errors.Is(err, ErrBadInput) || !strings.Contains(err.Error(), "added twice") {
		t.Errorf("an inode added twice: %v", err)
	}
	if err := x.Finish(); err == nil {
		t.Error("an aborted index was finished")
	}
	after, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the index that was there is another one: %v", err)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
		t.Errorf("%v, %v", files, err)
	}
}

// What no index can have is refused.
func TestIdxBadInput(t *testing.T) {
	if _, err := Create(filepath.Join(t.TempDir(), "index"), Header{Delta: true}); !errors.Is(err, ErrBadInput) {
		t.Errorf("a delta of nothing: %v", err)
	}
	x, err := Create(filepath.Join(t.TempDir(), "index"), Header{Size: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Abort()
	if err := x.AddVolume(Volume{ID: 1, Length: 1 << 30, BlockSize: 4096}); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"volume beyond the end": x.AddVolume(Volume{ID: 2, Start: 1, Length: 1 << 30, BlockSize: 4096}),
		"odd blocks":            x.AddVolume(Volume{ID: 2, Length: 1 << 20, BlockSize: 1000}),
		"volume again":          x.AddVolume(Volume{ID: 1, Length: 1 << 30, BlockSize: 4096}),
		"volume number":         x.AddVolume(Volume{ID: 256, Length: 1 << 30, BlockSize: 4096}),
		"no such volume":        x.AddFile(&File{Volume: 3}),
		"inode":                 x.AddFile(&File{Volume: 1, Inode: MaxInode + 1}),
		"size":                  x.AddFile(&File{Volume: 1, Size: -1}),
		"digest":                x.AddFile(&File{Volume: 1, Digest: []byte("short")}),
		"slash":                 x.AddName(Name{Volume: 1, Name: []byte("a/b")}),
		"NUL":                   x.AddName(Name{Volume: 1, Name: []byte("a\x00b")}),
		"no name":               x.AddName(Name{Volume: 1}),
		"dot":                   x.AddName(Name{Volume: 1, Name: []byte(".")}),
		"dots":                  x.AddName(Name{Volume: 1, Name: []byte("..")}),
		"long":                  x.AddName(Name{Volume: 1, Name: make([]byte, maxName+1)}),
		"named inode":           x.AddName(Name{Volume: 1, Name: []byte("a"), Inode: 1 << 60}),
		"extent's end":          x.AddExtent(Extent{Volume: 1, Physical: 1<<18 - 1, Length: 2}),
		"extent's overflow":     x.AddExtent(Extent{Volume: 1, Physical: 1, Length: 1<<63 - 1}),
		"extent's length":       x.AddExtent(Extent{Volume: 1, Physical: 1}),
		"extent's kind":         x.AddExtent(Extent{Volume: 1, Physical: 1, Length: 1, Kind: 5}),
		"replaced in a base":    x.ReplaceFile(1, 2),
	} {
		if !errors.Is(err, ErrBadInput) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// Of all that, nothing was taken.
	if err := x.Finish(); err != nil {
		t.Error(err)
	}
}

// The standard program reads an index, and its trigrams lead to names.
func TestIdxSQLiteProgramReadsIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index")
	w := randomWorld(rand.New(rand.NewPCG(5, 0)), 800)
	w.write(t, path, 0)
	ask := func(sql string) string {
		out, err := exec.Command("sqlite3", "-readonly", path, sql).CombinedOutput()
		if err != nil {
			t.Fatalf("sqlite3 %q: %v: %s", sql, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	if got := ask("PRAGMA integrity_check"); got != "ok" {
		t.Errorf("integrity_check: %s", got)
	}
	if got, want := ask("SELECT count(*), (SELECT count(*) FROM name) FROM file"), fmt.Sprintf("%d|%d", len(w.files), len(w.names)); got != want {
		t.Errorf("%s files and names, not %s", got, want)
	}
	want := 0
	for _, n := range w.names {
		if bytes.Contains(n.Name, []byte("caf")) {
			want++
		}
	}
	got := ask(fmt.Sprintf("SELECT count(*) FROM trigram, name WHERE trigram MATCH 'caf' AND name.id BETWEEN trigram.rowid<<%d AND (trigram.rowid<<%d)+%d AND instr(name, 'caf')",
		blockShift, blockShift, 1<<blockShift-1))
	if got != fmt.Sprint(want) || want == 0 {
		t.Errorf("%s names with caf, not %d", got, want)
	}
}

// A call on a closed index fails, and one that is under way goes on.
func TestClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index")
	w := randomWorld(rand.New(rand.NewPCG(6, 0)), 50)
	w.write(t, path, 0)
	x, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	err = x.Files(context.Background(), func(*File) error {
		if n++; n == 1 {
			if err := x.Close(); err != nil {
				t.Error(err)
			}
			if _, err := x.File(context.Background(), 1, 2); !errors.Is(err, ErrClosed) {
				t.Errorf("after Close: %v", err)
			}
		}
		return nil
	})
	if err != nil || n != len(w.files) {
		t.Errorf("%d files, %v", n, err)
	}
	if err := x.Close(); err != nil {
		t.Error(err)
	}
}

// Many who ask one index at once get the same answers, and what is closed meanwhile says so.
func TestConcurrentQueries(t *testing.T) {
	w := randomWorld(rand.New(rand.NewPCG(16, 0)), 60)
	path := filepath.Join(t.TempDir(), "index")
	w.write(t, path, 0)
	x, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	ask := func() (int, error) {
		n := 0
		err := x.View().Find(context.Background(), Query{Pattern: "caf"}, func(Match) error {
			n++
			return nil
		})
		return n, err
	}
	want, err := ask()
	if err != nil || want == 0 {
		t.Fatal(want, err)
	}
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for range 3 {
				if n, err := ask(); err != nil && !errors.Is(err, ErrClosed) || err == nil && n != want {
					t.Errorf("%d names, not %d: %v", n, want, err)
				}
			}
			if i == 0 {
				if err := x.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if _, err := ask(); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// What a writer left that was killed, the next one to the same name removes, and nothing of a writer that lives, nor of another name.
func TestWriterRemovesWhatWasLeft(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "index")
	for _, name := range []string{".index.0123456789ab.partial", ".other.0123456789ab.partial", ".index.0123456789ab.partial.mine", ".index.x.partial"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("left"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	first, err := Create(path, Header{Source: "first", Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer first.Abort()
	second, err := Create(path, Header{Source: "second", Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	for n, w := range []*Writer{first, second} {
		if err := w.Finish(); err != nil {
			t.Fatal(err)
		}
		if x := openTest(t, path); x.Header() != w.header {
			t.Errorf("writer %d left %+v", n, x.Header())
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if want := []string{".index.0123456789ab.partial.mine", ".index.x.partial", ".other.0123456789ab.partial", "index"}; !slices.Equal(names, want) {
		t.Errorf("%q are there, not %q", names, want)
	}
}
