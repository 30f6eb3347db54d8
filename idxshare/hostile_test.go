package idxshare

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

func (w *world) bytes(t testing.TB) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "index")
	w.write(t, path, 1)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// exercise asks an index everything, and returns the errors.
func exercise(x *Index) (errs []error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	v := x.View()
	ask := func(err error) {
		if err != nil && !errors.Is(err, ErrNotFound) {
			errs = append(errs, err)
		}
	}
	_, err := tryRead(x)
	ask(err)
	for _, q := range []Query{{Pattern: "caf"}, {Pattern: "n"}, {Pattern: "*0*", Syntax: Glob}, {Pattern: "a.*-1", Syntax: Regexp, WholePath: true}, {Pattern: "caf", WholePath: true}} {
		ask(v.Find(ctx, q, func(Match) error { return nil }))
	}
	for _, volume := range x.Volumes() {
		ask(v.Owners(ctx, volume.Start, volume.Start+min(volume.Length, 1<<24), func(Owner) error { return nil }))
		for inode := range uint64(14) {
			_, err := v.Paths(ctx, volume.ID, inode)
			ask(err)
		}
		_, err := v.Lookup(ctx, volume.ID, "/café-3-0/x")
		ask(err)
	}
	return errs
}

// An index with any damage gives errors that say so, or answers, and neither a panic nor a search without an end.
func TestIdxAnyDamage(t *testing.T) {
	good := randomWorld(rand.New(rand.NewPCG(7, 0)), 300).bytes(t)
	rng := rand.New(rand.NewPCG(8, 0))
	rounds := 150
	if testing.Short() {
		rounds = 30
	}
	refused, wrong := 0, 0
	for range rounds {
		b := bytes.Clone(good)
		switch rng.IntN(4) {
		case 0: // one byte
			b[rng.IntN(len(b))] ^= byte(1 + rng.IntN(255))
		case 1: // bytes of one page
			page := rng.IntN(len(b)/pageSize) * pageSize
			for range 1 + rng.IntN(20) {
				b[page+rng.IntN(pageSize)] = byte(rng.Uint32())
			}
		case 2: // one page where another was
			to, from := rng.IntN(len(b)/pageSize)*pageSize, rng.IntN(len(b)/pageSize)*pageSize
			copy(b[to:to+pageSize], good[from:])
		case 3: // the front of a page, which has its structure
			page := rng.IntN(len(b)/pageSize) * pageSize
			for range 1 + rng.IntN(4) {
				b[page+rng.IntN(16)] = byte(rng.Uint32())
			}
		}
		for _, err := range tryExercise(b) {
			if errors.Is(err, ErrCorrupt) || errors.Is(err, ErrVersion) {
				refused++
			} else {
				wrong++
				t.Errorf("damage is told as %v", err)
			}
		}
	}
	if refused < rounds/4 || wrong > 0 {
		t.Errorf("%d errors tell of %d damages, %d of something else", refused, rounds, wrong)
	}
}

func tryExercise(b []byte) []error {
	x, err := OpenReaderAt(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return []error{err}
	}
	errs := exercise(x)
	if err := x.Close(); err != nil {
		errs = append(errs, err)
	}
	return errs
}

// FuzzIndex opens and asks whatever bytes are there.
func FuzzIndex(f *testing.F) {
	good := randomWorld(rand.New(rand.NewPCG(9, 0)), 60).bytes(f)
	f.Add(uint16(0), []byte{})
	f.Add(uint16(3), []byte{0x0d, 0, 0, 0, 5})
	f.Fuzz(func(t *testing.T, page uint16, patch []byte) {
		b := bytes.Clone(good)
		copy(b[int(page)%(len(b)/16)*16:], patch)
		for _, err := range tryExercise(b) {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
				t.Errorf("damage is told as %v", err)
			}
		}
	})
}

// What is no index, or not this version's, is told apart before SQLite sees it.
func TestIdxRefusedAtOnce(t *testing.T) {
	good := randomWorld(rand.New(rand.NewPCG(10, 0)), 10).bytes(t)
	patched := func(at int, b ...byte) []byte {
		p := bytes.Clone(good)
		copy(p[at:], b)
		return p
	}
	for what, c := range map[string]struct {
		b    []byte
		want error
	}{
		"empty":           {nil, ErrCorrupt},
		"short":           {good[:99], ErrCorrupt},
		"cut off":         {good[:len(good)-pageSize], ErrCorrupt},
		"longer":          {append(bytes.Clone(good), make([]byte, pageSize)...), ErrCorrupt},
		"another program": {patched(68, 1, 2, 3, 4), ErrCorrupt},
		"version 2":       {patched(60, 0, 0, 0, 2), ErrVersion},
		"log beside it":   {patched(18, 2, 2), ErrCorrupt},
		"UTF-16":          {patched(56, 0, 0, 0, 2), ErrCorrupt},
		"page size":       {patched(16, 0x20, 0), ErrCorrupt},
	} {
		if errs := tryExercise(c.b); len(errs) != 1 || !errors.Is(errs[0], c.want) {
			t.Errorf("%s: %v", what, errs)
		}
	}
}

// A database with anything in its schema that indexes do not have is not asked.
func TestIdxForeignSchema(t *testing.T) {
	w := randomWorld(rand.New(rand.NewPCG(11, 0)), 10)
	for _, sql := range []string{
		"CREATE VIEW v AS SELECT 1",
		"CREATE TRIGGER t AFTER INSERT ON name BEGIN SELECT 1; END",
		"CREATE INDEX i ON name(parent)",
		"CREATE TABLE more(x)",
		"DROP TABLE link",
		"DROP TABLE volume; CREATE VIEW volume AS SELECT 1",
		"DROP TABLE trigram; CREATE VIRTUAL TABLE trigram USING fts5(names, content='', columnsize=0, detail=full, tokenize='trigram')",
	} {
		path := filepath.Join(t.TempDir(), "index")
		w.write(t, path, 1)
		if out, err := exec.Command("sqlite3", path, sql).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", sql, err, out)
		}
		if x, err := Open(path); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, %v", sql, x, err)
		}
	}
}

// faultyReader fails or is short in one of its reads.
type faultyReader struct {
	r     io.ReaderAt
	count atomic.Int64
	fail  int64
	err   error
}

func (f *faultyReader) ReadAt(p []byte, off int64) (int, error) {
	if f.count.Add(1) == f.fail {
		return len(p) / 2, f.err
	}
	return f.r.ReadAt(p, off)
}

// An error of the reader is what the caller gets, whichever read it hits, and the next call goes well.
func TestIdxReaderErrors(t *testing.T) {
	good := randomWorld(rand.New(rand.NewPCG(12, 0)), 60).bytes(t)
	broken := errors.New("the cable was pulled")
	hits := 0
	for fail := int64(1); ; fail++ {
		f := &faultyReader{r: bytes.NewReader(good), fail: fail, err: broken}
		if fail%3 == 0 {
			f.err = io.EOF // which a database must not take for zeros
		}
		x, err := OpenReaderAt(f, int64(len(good)))
		errs := []error{err}
		if err == nil {
			errs = exercise(x)
		}
		errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
		if f.count.Load() < fail {
			break
		}
		if len(errs) != 1 || errors.Is(errs[0], ErrCorrupt) || f.err == broken && !errors.Is(errs[0], broken) {
			t.Fatalf("read %d fails: %v", fail, errs)
		}
		hits++
		if err == nil {
			if errs := exercise(x); len(errs) > 0 {
				t.Errorf("after read %d failed: %v", fail, errs)
			}
			if err := x.Close(); err != nil {
				t.Error(err)
			}
		}
		if fail > 40 { // the first ones are those of opening
			fail += 11
		}
		if testing.Short() {
			fail += 7
		}
	}
	if hits < 4 {
		t.Errorf("only %d reads", hits)
	}
}

// Directories that are in themselves, and ones that nothing leads to, end a search neither early nor never.
func TestIdxLoops(t *testing.T) {
	w := &world{header: Header{Source: "s", Size: 1 << 30}, volumes: []Volume{{ID: 1, Length: 1 << 30, BlockSize: 4096}}}
	w.files = []File{{Volume: 1, Inode: 2, Mode: ModeDirectory}}
	w.names = []Name{
		{1, 2, []byte("top"), 11}, {1, 11, []byte("self"), 11}, {1, 11, []byte("file"), 20}, // in itself
		{1, 12, []byte("there"), 13}, {1, 13, []byte("back"), 12}, {1, 12, []byte("filed"), 21}, // in each other
		{1, 99, []byte("lost-file"), 22}, // nowhere
		{1, 2, []byte("root"), 2},
	}
	for i := range uint64(3 * maxDepth) { // deeper than paths are
		w.names = append(w.names, Name{1, 1000 + i, []byte("d"), 1001 + i})
	}
	w.names = append(w.names, Name{1, 2, []byte("deep"), 1000}, Name{1, 1000 + 3*maxDepth, []byte("deep-file"), 23})
	v := w.index(t).View()
	for _, q := range []Query{{Pattern: "file"}, {Pattern: "f?le*", Syntax: Glob}, {Pattern: "file", WholePath: true}, {Pattern: "^file$", Syntax: Regexp, Under: "/"}} {
		q.NamesOnly = true
		if got := findAll(t, v, q); !slices.Equal(got, []string{"/top/file"}) {
			t.Errorf("%+v: %q", q, got)
		}
	}
	if got := findAll(t, v, Query{Pattern: "top", WholePath: true}); !slices.Equal(got, []string{"/top", "/top/file", "/top/self"}) {
		t.Errorf("below a loop: %q", got)
	}
	for _, inode := range []uint64{12, 13, 21, 22, 23} {
		if paths, err := v.Paths(context.Background(), 1, inode); len(paths) != 0 || err != nil {
			t.Errorf("paths of %d: %q, %v", inode, paths, err)
		}
	}
}

func findAll(t *testing.T, v *View, q Query) (all []string) {
	t.Helper()
	if err := v.Find(context.Background(), q, func(m Match) error {
		all = append(all, string(m.Path))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

// A caller who has no more patience gets that error.
func TestCanceled(t *testing.T) {
	x := randomWorld(rand.New(rand.NewPCG(13, 0)), 400).index(t)
	ctx, cancel := context.WithCancel(context.Background())
	err := x.View().Find(ctx, Query{}, func(Match) error {
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if err := x.Files(ctx, func(*File) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// A view is of a base and what stands on it.
func TestIdxViewOfStrangers(t *testing.T) {
	w := randomWorld(rand.New(rand.NewPCG(14, 0)), 10)
	base := w.index(t)
	w.header = Header{Source: "leaf", Size: 1 << 40, Delta: true, Base: "sha256:another"}
	delta := w.index(t)
	for _, pair := range [][2]*Index{{base, delta}, {base, base}, {delta, delta}} {
		if _, err := NewView(context.Background(), pair[0], pair[1]); !errors.Is(err, ErrBadInput) {
			t.Errorf("%v", err)
		}
	}
	if err := base.View().Find(context.Background(), Query{Changed: true}, nil); !errors.Is(err, ErrBadQuery) {
		t.Errorf("changed without a delta: %v", err)
	}
}

// An index of version 1 is read, whatever later versions write, and this one writes it so: one of a root, which has trigrams, and a delta.
func TestIdxGolden(t *testing.T) {
	root := randomWorld(rand.New(rand.NewPCG(15, 0)), 120)
	delta := randomWorld(rand.New(rand.NewPCG(15, 0)), 120)
	delta.header = Header{Source: "sha256:leaf", Size: 1 << 40, Delta: true, Base: "sha256:root", Generation: 77}
	delta.replacedFiles = []Name{{Volume: 1, Inode: 11}, {Volume: 4, Inode: 12}}
	delta.replacedDirectories = []Name{{Volume: 1, Inode: 2}}
	for file, w := range map[string]*world{"testdata/format-v1.index.zst": root, "testdata/format-v1-delta.index.zst": delta} {
		t.Run(filepath.Base(file), func(t *testing.T) { compareWithGolden(t, file, w) })
	}
}

func compareWithGolden(t *testing.T, file string, w *world) {
	written := w.bytes(t)
	if *writeGolden {
		enc, err := zstd.NewWriter(nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, enc.EncodeAll(written, nil), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	stored, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	dec, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	b, err := dec.DecodeAll(stored, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, written) {
		t.Errorf("version 1 is written in another way than it was: %d bytes, not %d", len(written), len(b))
	}
	x, err := OpenReaderAt(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	got := read(t, x)
	if got.header != w.header || len(got.files) != len(w.files) || !slices.EqualFunc(got.names, w.names, func(a, b Name) bool {
		return a.Volume == b.Volume && a.Parent == b.Parent && a.Inode == b.Inode && bytes.Equal(a.Name, b.Name)
	}) || !slices.Equal(got.extents, w.extents) || len(got.replacedFiles) != len(w.replacedFiles) || len(got.replacedDirectories) != len(w.replacedDirectories) {
		t.Errorf("the golden index has other content: %+v", got.header)
	}
}

// The page that describes the format has every table as it is made, and the numbers.
func TestIdxPageHasTheSchema(t *testing.T) {
	b, err := os.ReadFile("../docs/index-format.md")
	if err != nil {
		t.Fatal(err)
	}
	page := strings.Join(strings.Fields(string(b)), " ")
	for _, statement := range schema {
		if !strings.Contains(page, strings.Join(strings.Fields(statement), " ")) {
			t.Errorf("docs/index-format.md lacks\n%s", statement)
		}
	}
	var id [4]byte
	binary.BigEndian.PutUint32(id[:], applicationID)
	for _, text := range []string{"`" + string(id[:]) + "`", "`user_version` is 1", "4,096 bytes", "32 names"} {
		if !strings.Contains(page, text) {
			t.Errorf("docs/index-format.md lacks %q", text)
		}
	}
}
