package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"

	"aead.dev/minisign"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"coppice/image/imagetest"
)

// attachIndex attaches an index that is of no files, and returns its content.
func attachIndex(t *testing.T, dst Target, tag string, seed uint64) []byte {
	t.Helper()
	im, content := openTest(t, dst, tag), testContent(seed, 300_000)
	r, err := AttachIndex(context.Background(), im, dst, IndexFile{im.ContentRoot(), bytes.NewReader(content), int64(len(content))}, IndexOptions{Scratch: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if s := r.Statement; s.Image != im.ContentRoot() || s.ImageBytes != im.Size() || s.SizeBytes != int64(len(content)) || s.Index != naiveRoot(content, 4096) || r.StoredBytes == 0 || r.StoredBytes > s.SizeBytes {
		t.Errorf("%+v", r)
	}
	return content
}

// openIndexTest opens the index of an image, and closes it when the test ends.
func openIndexTest(t *testing.T, src Source, tag string) *Index {
	t.Helper()
	x, err := OpenIndex(context.Background(), openTest(t, src, tag))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	return x
}

// checkIndex fails where the index of an image is another one, or none; want is nil for none.
func checkIndex(t *testing.T, src Source, tag string, want []byte) {
	t.Helper()
	if want == nil {
		if _, err := OpenIndex(context.Background(), openTest(t, src, tag)); !errors.Is(err, ErrNotFound) || !errors.Is(err, ErrNotAttached) {
			t.Errorf("%s of %s: %v", tag, src, err)
		}
		return
	}
	x := openIndexTest(t, src, tag)
	if !bytes.Equal(readAll(t, x.Image), want) || x.Statement.SizeBytes != int64(len(want)) {
		t.Errorf("%s of %s: another index", tag, src)
	}
}

// In a directory an index is found, replaced, copied, kept and removed with its image, and is none of the images.
func TestIndexInADirectory(t *testing.T) {
	ctx := context.Background()
	l := testLayout(t)
	buildTest(t, l, "os/debian:1", testContent(40, 100_000), small())
	buildTest(t, l, "os/debian:2", testContent(41, 100_000), small())
	checkIndex(t, l, "os/debian:1", nil)
	attachIndex(t, l, "os/debian:1", 60)
	want := attachIndex(t, l, "os/debian:1", 61)
	checkIndex(t, l, "os/debian:1", want)
	checkIndex(t, l, "os/debian:2", nil)
	im := openTest(t, l, "os/debian:2")
	file := IndexFile{openTest(t, l, "os/debian:1").ContentRoot(), bytes.NewReader(want), int64(len(want))}
	if _, err := AttachIndex(ctx, im, l, file, IndexOptions{}); !errors.Is(err, ErrOther) {
		t.Errorf("an index of other content: %v", err)
	}
	file.Root, file.SizeBytes = im.ContentRoot(), 0
	if _, err := AttachIndex(ctx, im, l, file, IndexOptions{}); !errors.Is(err, ErrBadOption) {
		t.Errorf("an empty index: %v", err)
	}
	checkIndex(t, l, "os/debian:2", nil)
	if images, others, err := List(ctx, l); len(images) != 2 || others != 0 || err != nil {
		t.Errorf("%d images, %d others, %v", len(images), others, err)
	}
	if r := gcTest(t, l, GCOptions{}); r.FreedBytes < 50_000 { // the first index
		t.Errorf("%+v", r)
	}
	checkIndex(t, l, "os/debian:1", want)
	if _, err := Promote(ctx, openTest(t, l, "os/debian:1"), l, "os/debian:stable"); err != nil {
		t.Fatal(err)
	}
	checkIndex(t, l, "os/debian:stable", want)
	if err := l.Remove(ctx, "os/debian:1"); err != nil {
		t.Fatal(err)
	}
	checkIndex(t, l, "os/debian:stable", want) // which is the same image

	mirror := testLayout(t)
	r := copyTest(t, openTest(t, l, "os/debian:stable"), mirror, "debian:x")
	if r.CopiedBytes < 150_000 || len(r.Damaged) != 0 {
		t.Errorf("%+v", r)
	}
	if r = copyTest(t, openTest(t, l, "os/debian:stable"), mirror, "debian:x"); r.CopiedBytes != 0 {
		t.Errorf("once more: %+v", r)
	}
	checkIndex(t, mirror, "debian:x", want)
	if v, err := Verify(ctx, openTest(t, mirror, "debian:x"), nil); err != nil || !v.Whole() || len(v.Attached) != 1 || v.Attached[0].SizeBytes != int64(len(want)) {
		t.Errorf("%+v, %v", v, err)
	}
	if err := mirror.Remove(ctx, "debian:x"); err != nil || len(blobNames(t, mirror)) != 0 {
		t.Errorf("%v, %v", err, blobNames(t, mirror))
	}
	// A static web server has it as well.
	s := httptest.NewServer(http.FileServer(http.Dir(l.dir)))
	defer s.Close()
	web := openWeb(t, s.URL, SourceOptions{})
	checkIndex(t, web, "os/debian:stable", want)
	checkIndex(t, web, "os/debian:2", nil)
	copyTest(t, openTest(t, web, "os/debian:stable"), mirror, "debian:y")
	checkIndex(t, mirror, "debian:y", want)
	checkClean(t, l)
}

// referrersOf lists the artifacts about a manifest, of all kinds, as the registry or the list that stands for that does.
func referrersOf(t *testing.T, r *Registry, im *Image) (kinds []string) {
	t.Helper()
	if err := r.repo.Referrers(context.Background(), im.Manifest(), "", func(some []ocispec.Descriptor) error {
		for _, d := range some {
			kinds = append(kinds, d.ArtifactType)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(kinds)
	return kinds
}

// In a registry that knows nothing of referrers the list of them has each kind once, however often one was attached.
func TestIndexInARegistry(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	ctx := context.Background()
	l, r := testLayout(t), openRegistry(t, imagetest.Registry(t, imagetest.RegistryOptions{})+"/os/debian")
	buildTest(t, l, "debian:1", testContent(40, 100_000), small())
	_, annKey := testKey(t, 1)
	_, bobKey := testKey(t, 2)
	signTest(t, l, "debian:1", annKey, Statement{Name: "debian", Serial: 7})
	want := attachIndex(t, l, "debian:1", 60)
	attachTest(t, l, "debian:1", "first")
	copyTest(t, openTest(t, l, "debian:1"), r, "1")
	checkIndex(t, r, "1", want)
	attachIndex(t, r, "1", 61)
	want = attachIndex(t, r, "1", 62)
	checkIndex(t, r, "1", want)
	tr := attachTest(t, r, "1", "second")
	signTest(t, r, "1", bobKey, Statement{Name: "debian", Serial: 8})
	if _, err := SignIndex(ctx, openTest(t, r, "1"), r, annKey); err != nil {
		t.Fatal(err)
	}
	attachTest(t, r, "1", "second") // as it was before
	im := openTest(t, r, "1")
	if got, all := referrersOf(t, r, im), []string{MediaTypeSignatures, MediaTypeIndex, MediaTypeTrace}; !slices.Equal(got, all) {
		t.Errorf("referrers %v, not %v", got, all)
	}
	checkTrace(t, r, "1", &tr)
	checkIndex(t, r, "1", want)
	if all, err := Signatures(ctx, im); len(all) != 2 || err != nil {
		t.Errorf("%d signatures, %v", len(all), err)
	}
	if images, others, err := List(ctx, r); len(images) != 1 || others != 0 || err != nil {
		t.Errorf("%v, %d others, %v", images, others, err)
	}
	mirror := testLayout(t)
	copyTest(t, im, mirror, "debian:x")
	checkIndex(t, mirror, "debian:x", want)
	if err := r.Remove(ctx, "1"); err != nil {
		t.Error(err)
	}
	if _, err := r.Manifest(ctx, indexTag(im.Summary().Manifest)); !errors.Is(err, ErrNotFound) {
		t.Errorf("the index of an image that was removed: %v", err)
	}
}

// An index is signed by itself: a signature of the image, or of another index of it, says nothing of it. Copies and repacked images have it.
func TestSignedIndex(t *testing.T) {
	ctx := context.Background()
	ann, annKey := testKey(t, 1)
	bob, bobKey := testKey(t, 2)
	l := testLayout(t)
	buildTest(t, l, "debian:1", testContent(40, 100_000), small())
	signTest(t, l, "debian:1", annKey, Statement{Name: "debian", Serial: 7})
	attachIndex(t, l, "debian:1", 60)
	signed := func(src Source, tag string, want error, keys ...minisign.PublicKey) {
		t.Helper()
		if err := openIndexTest(t, src, tag).SignedBy(keys); !errors.Is(err, want) {
			t.Errorf("%v, not %v", err, want)
		}
	}
	signed(l, "debian:1", ErrUnsigned, ann)
	for range 2 { // the second time instead of the first
		if s, err := SignIndex(ctx, openTest(t, l, "debian:1"), l, annKey); err != nil || s.Index != openIndexTest(t, l, "debian:1").ContentRoot() {
			t.Fatalf("%+v, %v", s, err)
		}
	}
	signed(l, "debian:1", nil, bob, ann)
	signed(l, "debian:1", ErrUntrusted, bob)
	signed(l, "debian:1", ErrUntrusted)
	if _, err := SignIndex(ctx, openTest(t, l, "debian:1"), l, bobKey); err != nil {
		t.Fatal(err)
	}
	signed(l, "debian:1", nil, bob)
	signed(l, "debian:1", nil, ann)
	if keys := openIndexTest(t, l, "debian:1").Keys(); !slices.Equal(keys, []uint64{ann.ID(), bob.ID()}) {
		t.Errorf("keys %x", keys)
	}
	mirror := testLayout(t)
	copyTest(t, openTest(t, l, "debian:1"), mirror, "debian:x")
	signed(mirror, "debian:x", nil, ann)
	want := attachIndex(t, l, "debian:1", 61)
	signed(l, "debian:1", ErrUnsigned, ann, bob)
	checkIndex(t, l, "debian:1", want)
	buildTest(t, l, "debian:2", testContent(41, 100_000), small())
	if _, err := SignIndex(ctx, openTest(t, l, "debian:2"), l, annKey); !errors.Is(err, ErrNotFound) {
		t.Errorf("signed none: %v", err)
	}
}

// A trace or an index that is damaged is told about, and neither keeps the image from being read, copied and stored again, nor goes along.
func TestDamagedAttachments(t *testing.T) {
	ctx := context.Background()
	spoil := func(t *testing.T, l *Layout, d ocispec.Descriptor) {
		t.Helper()
		path := l.blobPath(mustDigest(t, string(d.Digest)))
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		data[len(data)/2] ^= 1
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	drop := func(t *testing.T, l *Layout, d ocispec.Descriptor) {
		t.Helper()
		if err := os.Remove(l.blobPath(mustDigest(t, string(d.Digest)))); err != nil {
			t.Fatal(err)
		}
	}
	traceManifest := func(t *testing.T, im *Image) ocispec.Descriptor {
		t.Helper()
		data, err := im.referrer(ctx, im.src, traceTag)
		if err != nil {
			t.Fatal(err)
		}
		return descriptor("", data)
	}
	for name, c := range map[string]struct {
		what   string
		damage func(*testing.T, *Layout, *Image, *Index)
		opens  bool // the damage is in the content of the index
	}{
		"events of the trace": {"trace", func(t *testing.T, l *Layout, im *Image, _ *Index) {
			parts, _ := im.traceLayers(ctx)
			spoil(t, l, parts[traceEvents])
		}, true},
		"no events of the trace": {"trace", func(t *testing.T, l *Layout, im *Image, _ *Index) {
			parts, _ := im.traceLayers(ctx)
			drop(t, l, parts[traceEvents])
		}, true},
		"manifest of the trace":  {"trace", func(t *testing.T, l *Layout, im *Image, _ *Index) { spoil(t, l, traceManifest(t, im)) }, true},
		"manifest of the index":  {"index", func(t *testing.T, l *Layout, _ *Image, x *Index) { spoil(t, l, x.Manifest()) }, false},
		"config of the index":    {"index", func(t *testing.T, l *Layout, _ *Image, x *Index) { spoil(t, l, x.manifest.Config) }, false},
		"statement of the index": {"index", func(t *testing.T, l *Layout, _ *Image, x *Index) { spoil(t, l, descriptor("", x.text)) }, false},
		"table of the index":     {"index", func(t *testing.T, l *Layout, _ *Image, x *Index) { spoil(t, l, x.Table()) }, true},
		"pack of the index":      {"index", func(t *testing.T, l *Layout, _ *Image, x *Index) { spoil(t, l, x.Packs()[0]) }, true},
		"no pack of the index":   {"index", func(t *testing.T, l *Layout, _ *Image, x *Index) { drop(t, l, x.Packs()[0]) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			l := testLayout(t)
			content := testContent(40, 100_000)
			buildTest(t, l, "a:1", content, small())
			tr := attachTest(t, l, "a:1", "whole")
			index := attachIndex(t, l, "a:1", 60)
			im := openTest(t, l, "a:1")
			c.damage(t, l, im, openIndexTest(t, l, "a:1"))

			mirror := testLayout(t)
			r, err := Copy(ctx, im, mirror, "a:1", CopyOptions{})
			if err != nil || len(r.Damaged) != 1 || !strings.HasPrefix(r.Damaged[0], c.what+": ") {
				t.Fatalf("%+v, %v", r, err)
			}
			checkBuilt(t, mirror, "a:1", content)
			if c.what == "trace" {
				checkTrace(t, mirror, "a:1", nil)
				checkIndex(t, mirror, "a:1", index)
			} else {
				checkTrace(t, mirror, "a:1", &tr)
				checkIndex(t, mirror, "a:1", nil)
			}
			v, err := Verify(ctx, im, nil)
			if err != nil || v.BadBytes != 0 || len(v.Problems) != 0 || v.Whole() || len(v.Attached) != 2 {
				t.Fatalf("%+v, %v", v, err)
			}
			for _, a := range v.Attached {
				if (len(a.Problems) == 0) == (a.Kind == c.what) {
					t.Errorf("%+v", a)
				}
			}
			x, err := OpenIndex(ctx, im)
			if c.opens != (err == nil) || err != nil && (!errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "index of image a:1")) {
				t.Fatal(err)
			}
			if err == nil {
				err = errors.Join(x.Read(ctx, make([]byte, x.Size()), 0), x.Close())
				if (err == nil) == (c.what == "index") {
					t.Errorf("%v", err)
				}
			}
			// What is attached again is whole again.
			index = attachIndex(t, l, "a:1", 61)
			tr = attachTest(t, l, "a:1", "again")
			checkIndex(t, l, "a:1", index)
			checkTrace(t, l, "a:1", &tr)
			if r := copyTest(t, im, mirror, "a:2"); len(r.Damaged) != 0 {
				t.Errorf("%+v", r)
			}
			checkIndex(t, mirror, "a:2", index)
		})
	}
}

// Where an image is stored again, what is beside it and whole goes along.
func TestRepackWithIndex(t *testing.T) {
	for _, damaged := range []bool{false, true} {
		l := testLayout(t)
		old := testContent(46, 1<<20)
		buildTest(t, l, "a:1", old, BuildOptions{ChunkSize: 4096})
		content := bytes.Clone(old)
		copy(content, testContent(47, 400<<10))
		buildTest(t, l, "a:2", content, BuildOptions{ChunkSize: 4096, Base: openTest(t, l, "a:1")})
		_, key := testKey(t, 1)
		index := attachIndex(t, l, "a:2", 60)
		if _, err := SignIndex(context.Background(), openTest(t, l, "a:2"), l, key); err != nil {
			t.Fatal(err)
		}
		attachTest(t, l, "a:2", "whole")
		if damaged {
			parts, err := openTest(t, l, "a:2").traceLayers(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(l.blobPath(mustDigest(t, string(parts[traceChunks].Digest))), 3); err != nil {
				t.Fatal(err)
			}
		}
		removeTest(t, l, "a:1", RemoveOptions{})
		r := gcTest(t, l, GCOptions{RepackBelow: 80})
		if len(r.Repacked) != 1 || (len(r.Repacked[0].Damaged) == 1) != damaged {
			t.Fatalf("%+v", r)
		}
		gcTest(t, l, GCOptions{})
		checkBuilt(t, l, "a:2", content)
		checkIndex(t, l, "a:2", index)
		if keys := openIndexTest(t, l, "a:2").Keys(); len(keys) != 1 {
			t.Errorf("keys %x", keys)
		}
		tags, err := l.Tags(context.Background())
		if want := 3; err != nil || damaged && len(tags) != want-1 || !damaged && len(tags) != want { // with one index, and one trace
			t.Errorf("%v, %v", tags, err)
		}
	}
}

// Opening reads what is small, a read what it needs, and replicas of the image are replicas of its index.
func TestIndexIsReadLazily(t *testing.T) {
	ctx := context.Background()
	l := testLayout(t)
	buildTest(t, l, "a:1", testContent(40, 100_000), small())
	want := attachIndex(t, l, "a:1", 60)
	mirror := testLayout(t)
	copyTest(t, openTest(t, l, "a:1"), mirror, "a:1")
	x := openIndexTest(t, l, "a:1")
	if s := x.ReadStats(); s != (ReadStats{}) {
		t.Errorf("opening has read %+v", s)
	}
	p := make([]byte, 100)
	if n, err := x.ReadAt(p, 123_456); n != len(p) || err != nil || !bytes.Equal(p, want[123_456:][:len(p)]) {
		t.Errorf("%d, %v", n, err)
	}
	if s := x.ReadStats(); s.Requests != 2 || s.Bytes > 10_000 { // a page of the table and a chunk
		t.Errorf("one read has read %+v", s)
	}
	var refs []Ref
	for _, at := range []*Layout{l, mirror} {
		ref, err := ParseRef(at.String() + ":a:1")
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, ref.Index(openTest(t, at, "a:1").Summary().Manifest))
	}
	set, err := OpenSet(ctx, refs, x.ContentRoot(), SetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	got := make([]byte, set.Size())
	if err := set.Read(ctx, got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v, or other content", err)
	}
	if set.ContentRoot() != x.Statement.Index {
		t.Errorf("content root %s", set.ContentRoot())
	}
	if set, err := OpenSet(ctx, refs[:1], Digest{1}, SetOptions{}); !errors.Is(err, ErrOther) {
		t.Errorf("another index: %v, %v", set, err)
	}
	none := refs[0].Index(Digest{1})
	if set, err := OpenSet(ctx, []Ref{none}, Digest{}, SetOptions{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("no index: %v, %v", set, err)
	}
}

// What is wrong with an index is an error that names the image, and little memory is spent on it.
func TestHostileIndex(t *testing.T) {
	_, key := testKey(t, 1)
	for name, change := range map[string]func(*memStore, *ocispec.Manifest, *IndexStatement){
		"nothing":          func(_ *memStore, m *ocispec.Manifest, _ *IndexStatement) { m.Layers = nil },
		"no table":         func(_ *memStore, m *ocispec.Manifest, _ *IndexStatement) { m.Layers = m.Layers[:2] },
		"no statement":     func(_ *memStore, m *ocispec.Manifest, _ *IndexStatement) { m.Layers = m.Layers[1:] },
		"the wrong way":    func(_ *memStore, m *ocispec.Manifest, _ *IndexStatement) { slices.Reverse(m.Layers) },
		"another artifact": func(_ *memStore, m *ocispec.Manifest, _ *IndexStatement) { m.ArtifactType = MediaTypeTrace },
		"an image":         func(_ *memStore, m *ocispec.Manifest, _ *IndexStatement) { m.ArtifactType = MediaTypeImage },
		"a later version":  func(_ *memStore, m *ocispec.Manifest, _ *IndexStatement) { m.ArtifactType = anyVersionOfIndex + "v2" },
		"huge statement":   func(_ *memStore, m *ocispec.Manifest, _ *IndexStatement) { m.Layers[0].Size = maxStatement + 1 },
		"huge signature":   func(_ *memStore, m *ocispec.Manifest, _ *IndexStatement) { m.Layers[1].Size = 1 << 50 },
		"many signatures": func(_ *memStore, m *ocispec.Manifest, _ *IndexStatement) {
			m.Layers = slices.Insert(m.Layers, 1, slices.Repeat(m.Layers[1:2], maxSignatures)...)
		},
		"huge config":       func(_ *memStore, m *ocispec.Manifest, _ *IndexStatement) { m.Config.Size = 1 << 40 },
		"negative":          func(_ *memStore, m *ocispec.Manifest, _ *IndexStatement) { m.Layers[0].Size = -1 },
		"no digest":         func(_ *memStore, m *ocispec.Manifest, _ *IndexStatement) { m.Layers[2].Digest = "sha256:0" },
		"statement missing": func(s *memStore, m *ocispec.Manifest, _ *IndexStatement) { delete(s.blobs, string(m.Layers[0].Digest)) },
		"statement damaged": func(s *memStore, m *ocispec.Manifest, _ *IndexStatement) {
			s.blobs[string(m.Layers[0].Digest)][20] ^= 1
		},
		"signature damaged": func(s *memStore, m *ocispec.Manifest, _ *IndexStatement) {
			s.blobs[string(m.Layers[1].Digest)][20] ^= 1
		},
		"no signature": func(s *memStore, m *ocispec.Manifest, _ *IndexStatement) {
			m.Layers[1] = s.put(MediaTypeMinisig, []byte("by me"))
		},
		"config damaged":       func(s *memStore, m *ocispec.Manifest, _ *IndexStatement) { s.blobs[string(m.Config.Digest)][20] ^= 1 },
		"of another image":     func(_ *memStore, _ *ocispec.Manifest, s *IndexStatement) { s.Image[0] ^= 1 },
		"of another size":      func(_ *memStore, _ *ocispec.Manifest, s *IndexStatement) { s.ImageBytes++ },
		"another index":        func(_ *memStore, _ *ocispec.Manifest, s *IndexStatement) { s.Index[0] ^= 1 },
		"another index's size": func(_ *memStore, _ *ocispec.Manifest, s *IndexStatement) { s.SizeBytes-- },
		"another statement":    func(_ *memStore, _ *ocispec.Manifest, s *IndexStatement) { s.Type = statementType },
	} {
		s := newMemStore()
		goodParts().store(t, s, "a:1", nil)
		im := openTest(t, s, "a:1")
		index := cut(testContent(60, 300_000), 4096, 1000)
		index.store(t, s, "index", nil)
		x := openTest(t, s, "index")
		st := IndexStatement{indexStatementType, im.ContentRoot(), im.Size(), x.ContentRoot(), x.Size()}
		text, err := json.Marshal(st)
		if err != nil {
			t.Fatal(err)
		}
		tag := indexTag(im.Summary().Manifest)
		make := func() ocispec.Manifest {
			m := ocispec.Manifest{ArtifactType: MediaTypeIndex, Config: x.manifest.Config, Layers: []ocispec.Descriptor{
				s.put(MediaTypeIndexStatement, text), s.put(MediaTypeMinisig, minisign.Sign(key, text)), x.Table(),
			}}
			m.Layers = append(m.Layers, x.Packs()...)
			s.tags[tag], _ = json.Marshal(m)
			return m
		}
		m := make()
		good, err := OpenIndex(context.Background(), im)
		if err != nil {
			t.Fatalf("%s: untouched: %v", name, err)
		}
		good.Close()
		before := st
		change(s, &m, &st)
		if st != before {
			if text, err = json.Marshal(st); err != nil {
				t.Fatal(err)
			}
			m = make()
		}
		s.tags[tag], _ = json.Marshal(m)
		var bad *Index
		limit(t, 2<<20, func() { bad, err = OpenIndex(context.Background(), im) })
		if err == nil || bad != nil || errors.Is(err, ErrNotAttached) || !strings.Contains(err.Error(), "index of image a:1") {
			t.Errorf("%s: %v", name, err)
		}
		if name == "a later version" && !errors.Is(err, ErrVersion) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzIndexManifest(f *testing.F) {
	f.Add([]byte(`{"artifactType":"` + MediaTypeIndex + `","config":{},"layers":[{},{}]}`))
	d := descriptor("", nil).Digest
	f.Add([]byte(`{"artifactType":"` + MediaTypeIndex + `","config":{"mediaType":"` + MediaTypeConfig + `","digest":"` + string(d) + `","size":1},"layers":[` +
		`{"mediaType":"` + MediaTypeIndexStatement + `","digest":"` + string(d) + `","size":9},{"mediaType":"` + MediaTypeMinisig + `","digest":"` + string(d) + `","size":9},` +
		`{"mediaType":"` + MediaTypeTable + `","digest":"` + string(d) + `","size":9},{"mediaType":"` + MediaTypePack + `","digest":"` + string(d) + `","size":9}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := decodeIndexManifest(data)
		if err != nil {
			return
		}
		if len(l.sigs) > maxSignatures || l.statement.Size > maxStatement || l.content.Config.Size > maxConfig {
			t.Errorf("accepted %+v", l)
		}
		for _, b := range l.blobs() {
			if _, err := ParseDigest(string(b.Digest)); err != nil || b.Size < 1 {
				t.Errorf("accepted %+v, %v", b, err)
			}
		}
		s := newMemStore()
		if err := l.put(context.Background(), targetOf{s}, ocispec.Descriptor{Digest: d}); err != nil {
			t.Fatal(err)
		}
		for _, again := range s.tags {
			if _, err := decodeIndexManifest(again); err != nil {
				t.Errorf("%s came back as %s: %v", data, again, err)
			}
		}
	})
}

// targetOf is a memory that manifests are put into.
type targetOf struct{ *memStore }

func (s targetOf) HasBlob(context.Context, ocispec.Descriptor) (bool, error) { return true, nil }
func (s targetOf) Remove(context.Context, string) error                      { return ErrReadOnly }
func (s targetOf) PutBlob(context.Context, ocispec.Descriptor, io.Reader) error {
	return ErrReadOnly
}

func (s targetOf) PutManifest(_ context.Context, tag string, data []byte) error {
	s.tags[tag] = data
	return nil
}

func FuzzIndexStatement(f *testing.F) {
	f.Add([]byte(`{"type":"` + indexStatementType + `","image":"` + (Digest{}).String() + `","image_size":1,"index":"` + (Digest{}).String() + `","size":2}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := decodeIndexStatement(data)
		if err != nil {
			return
		}
		again, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := decodeIndexStatement(again); err != nil || *back != *s {
			t.Errorf("%s came back as %s: %v", data, again, err)
		}
	})
}
