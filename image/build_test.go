package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// testLayout makes a layout in a directory of the test.
func testLayout(t testing.TB) *Layout {
	t.Helper()
	l, err := CreateLayout(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// small are options that make many packs of little content.
func small() BuildOptions { return BuildOptions{ChunkSize: 4096, packTarget: 64 << 10} }

func buildTest(t testing.TB, l *Layout, name string, content []byte, o BuildOptions) BuildReport {
	t.Helper()
	r, err := Build(context.Background(), l, name, bytes.NewReader(content), int64(len(content)), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// blobNames lists the blobs of a layout, but for manifests and configs where only data is asked for.
func blobNames(t testing.TB, l *Layout) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(l.dir, blobsDir))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// checkClean fails where something was left in the work directory.
func checkClean(t testing.TB, l *Layout) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(l.dir, workDir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range left {
		if !strings.HasSuffix(path, ".lock") {
			t.Errorf("%s was left", path)
		}
	}
}

// checkBuilt compares an image of a layout with what it should hold.
func checkBuilt(t testing.TB, l *Layout, name string, content []byte) *Image {
	t.Helper()
	im := openTest(t, l, name)
	if !bytes.Equal(readAll(t, im), content) {
		t.Errorf("%s has other content", name)
	}
	if want := naiveRoot(content, im.ChunkSize()); im.ContentRoot() != want {
		t.Errorf("%s has content root %s, not %s", name, im.ContentRoot(), want)
	}
	checkClean(t, l)
	return im
}

// The same content gives the same blobs, whoever builds it.
func TestBuildsAreTheSame(t *testing.T) {
	content := testContent(1, 3<<20+777)
	copy(content[2<<20:], content[:1<<20]) // something that occurs twice
	var first []string
	for _, workers := range []int{1, 2, 8} {
		o := small()
		o.Workers = workers
		l := testLayout(t)
		r := buildTest(t, l, "debian:1", content, o)
		checkBuilt(t, l, "debian:1", content)
		if r.NewPacks < 5 || r.Duplicate < 100 || r.Stored+r.Duplicate+r.Zero != r.Chunks {
			t.Errorf("%+v", r)
		}
		if names := blobNames(t, l); first == nil {
			first = names
		} else if !slices.Equal(first, names) {
			t.Errorf("%d workers make other blobs: %v, not %v", workers, names, first)
		}
	}
}

// A build that remembers little stores some chunks several times, always the same ones.
func TestBuildWithLittleMemory(t *testing.T) {
	content := testContent(2, 1<<20)
	content = append(content, content...)
	var first []string
	for range 3 {
		o := small()
		o.Workers, o.remember = 8, 40
		l := testLayout(t)
		r := buildTest(t, l, "a", content, o)
		checkBuilt(t, l, "a", content)
		if r.Stored < 300 {
			t.Errorf("only %d chunks stored", r.Stored)
		}
		if names := blobNames(t, l); first == nil {
			first = names
		} else if !slices.Equal(first, names) {
			t.Errorf("other blobs: %v, not %v", names, first)
		}
	}
}

func TestBuildOfZeros(t *testing.T) {
	l := testLayout(t)
	f, err := os.Create(filepath.Join(t.TempDir(), "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(100 << 30); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("needle"), 70<<30+5); err != nil {
		t.Fatal(err)
	}
	in, err := OpenFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	r, err := Build(context.Background(), l, "sparse:1", in, in.Size(), BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Stored != 1 || r.Zero != r.Chunks-1 {
		t.Errorf("%+v", r)
	}
	p := make([]byte, 6)
	if _, err := openTest(t, l, "sparse:1").ReadAt(p, 70<<30+5); err != nil || string(p) != "needle" {
		t.Errorf("%q, %v", p, err)
	}
	if r = buildTest(t, l, "zeros:1", make([]byte, 10000), small()); r.Stored != 0 || r.NewPacks != 0 {
		t.Errorf("%+v", r)
	}
	checkBuilt(t, l, "zeros:1", make([]byte, 10000))
}

// interrupted is a source that stops a build when it has come so far.
type interrupted struct {
	io.ReaderAt
	at   int64
	stop context.CancelFunc
}

func (s *interrupted) ReadAt(p []byte, off int64) (int, error) {
	if off >= s.at {
		s.stop()
	}
	return s.ReaderAt.ReadAt(p, off)
}

// interrupt builds until the source was read up to some byte.
func interrupt(t *testing.T, l *Layout, content []byte, at int64, o BuildOptions) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	_, err := Build(ctx, l, "a:1", &interrupted{bytes.NewReader(content), at, stop}, int64(len(content)), o)
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("interrupted: %v", err)
	}
}

func TestBuildGoesOn(t *testing.T) {
	content := testContent(3, 4<<20)
	o := small()
	whole := testLayout(t)
	buildTest(t, whole, "a:1", content, o)

	change := func(f func([]byte)) []byte { c := bytes.Clone(content); f(c); return c }
	for name, c := range map[string]struct {
		second  []byte
		resumed bool
	}{
		"same":                       {content, true},
		"changed behind":             {change(func(c []byte) { c[3584<<10]++ }), true},
		"changed before":             {change(func(c []byte) { c[1<<20]++ }), true},
		"changed at once":            {change(func(c []byte) { c[0]++ }), false},
		"zeros where was data":       {change(func(c []byte) { clear(c[1<<20 : 2<<20]) }), true},
		"data where there was a gap": {change(func(c []byte) { copy(c[1<<20:], bytes.Repeat([]byte("x"), 1<<20)) }), true},
	} {
		t.Run(name, func(t *testing.T) {
			l := testLayout(t)
			interrupt(t, l, content, 2560<<10, o)
			r := buildTest(t, l, "a:1", c.second, o)
			if r.Resumed > 0 != c.resumed {
				t.Errorf("%d bytes resumed", r.Resumed)
			}
			checkBuilt(t, l, "a:1", c.second)
			if name == "same" && !slices.Equal(blobNames(t, l), blobNames(t, whole)) {
				t.Error("other blobs than without the interruption")
			}
		})
	}
	// A journal that is damaged is used as far as it goes.
	l := testLayout(t)
	interrupt(t, l, content, 3<<20, o)
	journals, _ := filepath.Glob(filepath.Join(l.dir, buildAt+"*", "journal"))
	data, err := os.ReadFile(journals[0])
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(journals[0], data, 0o644); err != nil {
		t.Fatal(err)
	}
	if r := buildTest(t, l, "a:1", content, o); r.Resumed == 0 || r.Resumed > 2560<<10 {
		t.Errorf("%d bytes resumed", r.Resumed)
	}
	checkBuilt(t, l, "a:1", content)
}

const killedEnv = "COPPICE_TEST_BUILD_TO_BE_KILLED"

// TestMain is a build that waits to be killed, where it is told to.
func TestMain(m *testing.M) {
	dir := os.Getenv(killedEnv)
	if dir == "" {
		os.Exit(m.Run())
	}
	l, err := CreateLayout(dir)
	if err != nil {
		panic(err)
	}
	content := testContent(3, 8<<20)
	o := small()
	o.Progress = func(done, _ int64) {
		if done > 5<<20 {
			fmt.Println("far enough")
			time.Sleep(time.Hour)
		}
	}
	_, err = Build(context.Background(), l, "a:1", bytes.NewReader(content), int64(len(content)), o)
	panic(err)
}

// What kill -9 leaves is used.
func TestBuildGoesOnAfterAKill(t *testing.T) {
	l := testLayout(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), killedEnv+"="+l.dir)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("far enough"))); err != nil {
		t.Error(err)
	}
	// Meanwhile nobody else builds the same, and no blob is removed.
	content := testContent(3, 8<<20)
	_, err = Build(context.Background(), l, "a:1", bytes.NewReader(content), int64(len(content)), small())
	if !errors.Is(err, ErrBusy) {
		t.Errorf("a second build: %v", err)
	}
	if _, err := l.Collect(); !errors.Is(err, ErrBusy) {
		t.Errorf("collect: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if r := buildTest(t, l, "a:1", content, small()); r.Resumed < 4<<20 {
		t.Errorf("%d bytes resumed", r.Resumed)
	}
	checkBuilt(t, l, "a:1", content)
}

func TestBuildOverABase(t *testing.T) {
	l := testLayout(t)
	v1 := testContent(4, 4<<20)
	buildTest(t, l, "a:1", v1, small())
	base := openTest(t, l, "a:1")
	o := BuildOptions{Base: base, packTarget: 64 << 10}

	// A few changes, and everything moved by a chunk, which only the digests find.
	v2 := append(bytes.Repeat([]byte("new"), 4096/3+1)[:4096], v1...)
	v2[3<<20] ^= 1
	r := buildTest(t, l, "a:2", v2, o)
	im := checkBuilt(t, l, "a:2", v2)
	if r.Stored != 2 || r.NewPacks != 1 || r.FromBase == 0 || r.BasePacks < 10 || r.StoredBytes > 9000 {
		t.Errorf("%+v", r)
	}
	if im.Config().Parent != base.ContentRoot() {
		t.Errorf("parent %s", im.Config().Parent)
	}
	// Nothing new at all, and nothing in common at all.
	if r := buildTest(t, l, "a:3", v1, o); r.Stored != 0 || r.ContentRoot != base.ContentRoot() || len(r.ContentRoot) == 0 {
		t.Errorf("%+v", r)
	}
	checkBuilt(t, l, "a:3", v1)
	other := bytes.Repeat([]byte("other content."), 10000)
	if r := buildTest(t, l, "a:4", other, o); r.FromBase != 0 || r.BasePacks != 0 {
		t.Errorf("%+v", r)
	}
	checkBuilt(t, l, "a:4", other)
	// Over a version that has packs of two versions itself.
	o.Base = im
	v5 := bytes.Clone(v2)
	v5[100]++
	buildTest(t, l, "a:5", v5, o)
	checkBuilt(t, l, "a:5", v5)
}

// Packs of which less than half is in use are not listed, and what is used of them is stored again.
func TestBuildRepacks(t *testing.T) {
	l, other := testLayout(t), testLayout(t)
	v1 := testContent(5, 2<<20)
	buildTest(t, other, "a:1", v1, small())
	base := openTest(t, other, "a:1")
	v2 := testContent(6, 2<<20)
	copy(v2, v1[:1<<20])                        // the first packs whole
	for i := 1 << 20; i < 2<<20; i += 1 << 16 { // of the others, some chunks
		copy(v2[i:i+4*4096], v1[i:i+4*4096])
	}
	r := buildTest(t, l, "a:2", v2, BuildOptions{Base: base, packTarget: 64 << 10})
	checkBuilt(t, l, "a:2", v2) // from another layout: the base's packs came along
	if r.Repacked < 5 || r.BasePacks < 5 || r.BasePacks+r.Repacked > len(base.Packs()) {
		t.Errorf("%+v, the base has %d packs", r, len(base.Packs()))
	}
	again := buildTest(t, testLayout(t), "a:2", v2, BuildOptions{Base: base, packTarget: 64 << 10, Workers: 1})
	if again.Manifest != r.Manifest {
		t.Error("another manifest the second time")
	}
	// Interrupted, it is the same.
	third := testLayout(t)
	ctx, stop := context.WithCancel(context.Background())
	_, err := Build(ctx, third, "a:2", &interrupted{bytes.NewReader(v2), 2<<20 - 4096, stop}, int64(len(v2)), BuildOptions{Base: base, packTarget: 64 << 10})
	if !errors.Is(err, context.Canceled) && err != nil {
		t.Fatal(err)
	}
	stop()
	if r3 := buildTest(t, third, "a:2", v2, BuildOptions{Base: base, packTarget: 64 << 10}); r3.Manifest != r.Manifest {
		t.Error("another manifest after an interruption")
	}
}

func TestBuildRefuses(t *testing.T) {
	l := testLayout(t)
	ctx := context.Background()
	content := bytes.NewReader(make([]byte, 8192))
	buildTest(t, l, "base:1", testContent(1, 8192), small())
	base := openTest(t, l, "base:1")
	for name, c := range map[string]struct {
		name string
		size int64
		o    BuildOptions
		want error
	}{
		"empty":                    {"a", 0, BuildOptions{}, ErrBadOption},
		"negative":                 {"a", -5, BuildOptions{}, ErrBadOption},
		"absurd":                   {"a", math.MaxInt64, BuildOptions{}, ErrBadOption},
		"odd chunks":               {"a", 8192, BuildOptions{ChunkSize: 5000}, ErrBadOption},
		"chunks unlike the base's": {"a", 8192, BuildOptions{ChunkSize: 8192, Base: base}, ErrBadOption},
		"no name":                  {"", 8192, BuildOptions{}, ErrBadRef},
		"name that climbs":         {"../a", 8192, BuildOptions{}, ErrBadRef},
		"name with spaces":         {"a b", 8192, BuildOptions{}, ErrBadRef},
		"source too short":         {"a", 8193, BuildOptions{ChunkSize: 4096}, ErrChanged},
		"too many labels":          {"a", 8192, BuildOptions{Labels: map[string]string{"a": strings.Repeat("x", maxConfig)}}, nil},
	} {
		_, err := Build(ctx, l, c.name, content, c.size, c.o)
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if tags, _ := l.Tags(ctx); !slices.Equal(tags, []string{"base:1"}) {
		t.Errorf("tags %v", tags)
	}
}

// Several programs build into one layout at once, and the index has all of it.
func TestBuildsAtOnce(t *testing.T) {
	l := testLayout(t)
	const n = 8
	errs := make(chan error, n)
	want := []string{}
	for i := range n {
		name := fmt.Sprintf("image:%d", i)
		want = append(want, name)
		go func() {
			mine, err := CreateLayout(l.dir)
			if err != nil {
				errs <- err
				return
			}
			content := testContent(uint64(i/2), 300_000)
			_, err = Build(context.Background(), mine, name, bytes.NewReader(content), int64(len(content)), small())
			errs <- errors.Join(err, mine.Close())
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if tags, err := l.Tags(context.Background()); !slices.Equal(tags, want) {
		t.Errorf("%v, %v", tags, err)
	}
	for i := range n {
		checkBuilt(t, l, want[i], testContent(uint64(i/2), 300_000))
	}
}

// A tag that is built again means the new image; removal frees what only the removed one used, and nothing of others.
func TestRemoval(t *testing.T) {
	l := testLayout(t)
	ctx := context.Background()
	v1, v2 := testContent(7, 1<<20), testContent(8, 1<<20)
	buildTest(t, l, "a:1", v1, small())
	before := blobNames(t, l)
	base := openTest(t, l, "a:1")
	buildTest(t, l, "a:2", append(bytes.Clone(v1), v2...), BuildOptions{Base: base, packTarget: 64 << 10})
	if err := l.Remove(ctx, "a:1"); err != nil {
		t.Fatal(err)
	}
	checkBuilt(t, l, "a:2", append(bytes.Clone(v1), v2...))
	if _, err := Open(ctx, l, "a:1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
	buildTest(t, l, "a:1", v1, small())
	if err := l.Remove(ctx, "a:2"); err != nil {
		t.Fatal(err)
	}
	checkBuilt(t, l, "a:1", v1)
	if names := blobNames(t, l); !slices.Equal(names, before) {
		t.Errorf("%d blobs, not %d", len(names), len(before))
	}
	if err := l.Remove(ctx, "a:2"); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
	// Blobs that a foreign manifest names stay, and so does everything where one cannot be read.
	blob := []byte("of somebody else")
	d := descriptor("application/x", blob)
	m := fmt.Appendf(nil, `{"schemaVersion":2,"config":{"digest":%q},"layers":[]}`, d.Digest)
	md := descriptor(ocispec.MediaTypeImageManifest, m)
	for _, b := range []struct {
		d    ocispec.Descriptor
		data []byte
	}{{d, blob}, {md, m}} {
		if err := l.PutBlob(ctx, b.d, bytes.NewReader(b.data)); err != nil {
			t.Fatal(err)
		}
	}
	add := func(d ocispec.Descriptor) {
		err := l.changeIndex(func(i *ocispec.Index) error { i.Manifests = append(i.Manifests, d); return nil })
		if err != nil {
			t.Fatal(err)
		}
	}
	add(md)
	if freed, err := l.Collect(); freed != 0 || err != nil {
		t.Errorf("%d bytes freed, %v", freed, err)
	}
	add(descriptor(ocispec.MediaTypeImageIndex, []byte("is not there")))
	if err := l.Remove(ctx, "a:1"); err == nil || !slices.Contains(blobNames(t, l), strings.TrimPrefix(string(d.Digest), digestPrefix)) {
		t.Errorf("blobs are removed though not all manifests could be read: %v", err)
	}
}

// Blobs with other bytes than their digest says do not get in, and leave nothing.
func TestBlobsAreComparedAsTheyCome(t *testing.T) {
	l := testLayout(t)
	ctx := context.Background()
	d := descriptor(MediaTypePack, []byte("content"))
	for _, data := range []string{"", "conten", "Content", "contents", strings.Repeat("x", 1<<20)} {
		if err := l.PutBlob(ctx, d, strings.NewReader(data)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%.10q: %v", data, err)
		}
	}
	if has, err := l.HasBlob(ctx, d); has || err != nil || len(blobNames(t, l)) > 0 {
		t.Errorf("%v, %v, %v", has, err, blobNames(t, l))
	}
	checkClean(t, l)
}

// A blob that was damaged is put right by a copy that is told to look, also for who has the image open.
func TestRepair(t *testing.T) {
	ctx := context.Background()
	good, bad := testLayout(t), testLayout(t)
	content := testContent(50, 1<<20)
	buildTest(t, good, "a:1", content, small())
	im := openTest(t, good, "a:1")
	copyTest(t, im, bad, "a:1")
	open := openTest(t, bad, "a:1")
	readAll(t, open)
	pack, _ := ParseDigest(string(im.Packs()[2].Digest))
	data, err := os.ReadFile(bad.blobPath(pack))
	if err != nil {
		t.Fatal(err)
	}
	data[100] ^= 1
	if err := os.WriteFile(bad.blobPath(pack), data, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := open.Read(ctx, make([]byte, len(content)), 0); !errors.Is(err, ErrCorrupt) {
		t.Errorf("%v", err)
	}
	if r := copyTest(t, im, bad, "a:1"); r.CopiedBytes != 0 || r.Repaired != 0 {
		t.Errorf("%+v", r)
	}
	r, err := Copy(ctx, im, bad, "a:1", CopyOptions{Repair: true})
	if err != nil || r.Repaired != 1 || r.CopiedBytes != im.Packs()[2].Size {
		t.Errorf("%+v, %v", r, err)
	}
	if !bytes.Equal(readAll(t, open), content) {
		t.Error("other content")
	}
	// What was removed can be read on by who has it open.
	if err := bad.Remove(ctx, "a:1"); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(readAll(t, open), content) {
		t.Error("other content")
	}
}

func TestLayoutsOfOthers(t *testing.T) {
	dir := t.TempDir()
	if _, err := OpenLayout(filepath.Join(dir, "nowhere")); !errors.Is(err, ErrNotFound) {
		t.Errorf("nowhere: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "letter.txt"), []byte("Dear"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := CreateLayout(dir); !errors.Is(err, ErrExists) {
		t.Errorf("a directory with letters: %v", err)
	}
	if _, err := CreateLayout(filepath.Join(dir, "letter.txt")); err == nil {
		t.Error("a letter is a layout")
	}
	mark := filepath.Join(dir, "oci-layout")
	for text, want := range map[string]error{`{"imageLayoutVersion":"9.9"}`: ErrVersion, "no JSON": nil, strings.Repeat(" ", 5000): ErrCorrupt} {
		if err := os.WriteFile(mark, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenLayout(dir); err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%.20s: %v", text, err)
		}
	}
	l := testLayout(t)
	for _, text := range []string{"", "[]", `{"schemaVersion":1}`, `{"schemaVersion":2,"manifests":[{"digest":"sha256:../../etc/passwd","annotations":{"org.opencontainers.image.ref.name":"a"}}]}`} {
		if err := os.WriteFile(l.path("index.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(context.Background(), l, "a"); !errors.Is(err, ErrCorrupt) {
			t.Errorf("index %.40q: %v", text, err)
		}
	}
}

// What a build left that was given up long ago goes with the next removal.
func TestLeftoversGo(t *testing.T) {
	l := testLayout(t)
	interrupt(t, l, testContent(1, 4<<20), 2<<20, small())
	if err := os.WriteFile(l.path(workDir+"/blob-123"), []byte("half a blob"), 0o600); err != nil {
		t.Fatal(err)
	}
	mine, err := l.createPartial()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Collect(); err != nil {
		t.Fatal(err)
	}
	left, _ := filepath.Glob(l.path(workDir + "/b*-*"))
	if len(left) != 2 {
		t.Errorf("%v are left, not the build and what is written just now", left)
	}
	mine.Close()
	old := time.Now().Add(-2 * staleBuild)
	for _, path := range left {
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Collect(); err != nil {
		t.Fatal(err)
	}
	checkClean(t, l)
}
