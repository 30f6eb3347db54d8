package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"coppice/image/imagetest"
)

// attachTest attaches a trace that is of no device, and returns it.
func attachTest(t *testing.T, dst Target, tag, text string) Trace {
	t.Helper()
	im := openTest(t, dst, tag)
	tr := Trace{Root: im.ContentRoot(), Chunks: []byte("chunks " + text), Events: []byte("events " + text)}
	if err := AttachTrace(context.Background(), im, dst, tr); err != nil {
		t.Fatal(err)
	}
	return tr
}

// checkTrace fails where the trace of an image is another one, or none; want is nil for none.
func checkTrace(t *testing.T, src Source, tag string, want *Trace) {
	t.Helper()
	im := openTest(t, src, tag)
	chunks, chunksErr := TraceChunks(context.Background(), im)
	events, eventsErr := TraceEvents(context.Background(), im)
	if want == nil {
		if !errors.Is(chunksErr, ErrNotFound) || !errors.Is(eventsErr, ErrNotFound) {
			t.Errorf("%s of %s: %q, %q, %v, %v", tag, src, chunks, events, chunksErr, eventsErr)
		}
		return
	}
	if chunksErr != nil || eventsErr != nil || !bytes.Equal(chunks, want.Chunks) || !bytes.Equal(events, want.Events) {
		t.Errorf("%s of %s: %q, %q, %v, %v", tag, src, chunks, events, chunksErr, eventsErr)
	}
}

// In a directory a trace is found, replaced, copied, kept and removed with its image, and is none of the images.
func TestTraceInADirectory(t *testing.T) {
	ctx := context.Background()
	l := testLayout(t)
	buildTest(t, l, "os/debian:1", testContent(40, 100_000), small())
	buildTest(t, l, "os/debian:2", testContent(41, 100_000), small())
	checkTrace(t, l, "os/debian:1", nil)
	attachTest(t, l, "os/debian:1", "first")
	tr := attachTest(t, l, "os/debian:1", "second")
	checkTrace(t, l, "os/debian:1", &tr)
	checkTrace(t, l, "os/debian:2", nil)
	if err := AttachTrace(ctx, openTest(t, l, "os/debian:2"), l, tr); !errors.Is(err, ErrOther) {
		t.Errorf("a trace of other content: %v", err)
	}
	for name, bad := range map[string]Trace{
		"empty": {Root: tr.Root}, "no events": {Root: tr.Root, Chunks: tr.Chunks}, "large": {Root: tr.Root, Chunks: make([]byte, MaxTraceChunks+1), Events: tr.Events},
	} {
		if err := AttachTrace(ctx, openTest(t, l, "os/debian:1"), l, bad); !errors.Is(err, ErrBadOption) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if images, others, err := List(ctx, l); len(images) != 2 || others != 0 || err != nil {
		t.Errorf("%d images, %d others, %v", len(images), others, err)
	}
	if r := gcTest(t, l, GCOptions{}); r.FreedBytes == 0 { // the first trace
		t.Errorf("%+v", r)
	}
	checkTrace(t, l, "os/debian:1", &tr)

	mirror := testLayout(t)
	copyTest(t, openTest(t, l, "os/debian:1"), mirror, "debian:x")
	checkTrace(t, mirror, "debian:x", &tr)
	if err := mirror.Remove(ctx, "debian:x"); err != nil || len(blobNames(t, mirror)) != 0 {
		t.Errorf("%v, %v", err, blobNames(t, mirror))
	}
	// A static web server has it as well.
	s := httptest.NewServer(http.FileServer(http.Dir(l.dir)))
	defer s.Close()
	checkTrace(t, openWeb(t, s.URL, SourceOptions{}), "os/debian:1", &tr)
	checkTrace(t, openWeb(t, s.URL, SourceOptions{}), "os/debian:2", nil)
	copyTest(t, openTest(t, openWeb(t, s.URL, SourceOptions{}), "os/debian:1"), mirror, "debian:y")
	checkTrace(t, mirror, "debian:y", &tr)
}

// In a registry that knows nothing of referrers, it is listed under the tag that stands for that list, too.
func TestTraceInARegistry(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	ctx := context.Background()
	l, r := testLayout(t), openRegistry(t, imagetest.Registry(t, imagetest.RegistryOptions{})+"/os/debian")
	buildTest(t, l, "debian:1", testContent(40, 100_000), small())
	tr := attachTest(t, l, "debian:1", "first")
	copyTest(t, openTest(t, l, "debian:1"), r, "1")
	checkTrace(t, r, "1", &tr)
	tr = attachTest(t, r, "1", "second")
	checkTrace(t, r, "1", &tr)
	copyTest(t, openTest(t, r, "1"), r, "stable")
	checkTrace(t, r, "stable", &tr)
	if images, others, err := List(ctx, r); len(images) != 2 || others != 0 || err != nil {
		t.Errorf("%v, %d others, %v", images, others, err)
	}
	im := openTest(t, r, "1")
	var listed []ocispec.Descriptor
	if err := r.repo.Referrers(ctx, im.Manifest(), MediaTypeTrace, func(some []ocispec.Descriptor) error {
		listed = append(listed, some...)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	now, err := r.Manifest(ctx, traceTag(im.Summary().Manifest))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(listed, func(d ocispec.Descriptor) bool { return d.Digest == descriptor("", now).Digest }) {
		t.Errorf("the trace is none of the referrers %+v", listed)
	}
	mirror := testLayout(t)
	copyTest(t, im, mirror, "debian:x")
	checkTrace(t, mirror, "debian:x", &tr)
	if err := r.Remove(ctx, "1"); err != nil {
		t.Error(err)
	}
	if _, err := r.Manifest(ctx, traceTag(im.Summary().Manifest)); !errors.Is(err, ErrNotFound) {
		t.Errorf("the trace of an image that was removed: %v", err)
	}
}

// What is wrong with a trace is an error, and never taken for one; nothing large is read for it.
func TestHostileTrace(t *testing.T) {
	for name, change := range map[string]func(*memStore, *ocispec.Manifest){
		"nothing":          func(_ *memStore, m *ocispec.Manifest) { m.Layers = nil },
		"half":             func(_ *memStore, m *ocispec.Manifest) { m.Layers = m.Layers[:1] },
		"more":             func(_ *memStore, m *ocispec.Manifest) { m.Layers = append(m.Layers, m.Layers...) },
		"the wrong way":    func(_ *memStore, m *ocispec.Manifest) { slices.Reverse(m.Layers) },
		"another artifact": func(_ *memStore, m *ocispec.Manifest) { m.ArtifactType = MediaTypeSignatures },
		"huge list":        func(_ *memStore, m *ocispec.Manifest) { m.Layers[0].Size = MaxTraceChunks + 1 },
		"huge events":      func(_ *memStore, m *ocispec.Manifest) { m.Layers[1].Size = 1 << 50 },
		"negative":         func(_ *memStore, m *ocispec.Manifest) { m.Layers[0].Size = -1 },
		"no digest":        func(_ *memStore, m *ocispec.Manifest) { m.Layers[0].Digest = "sha256:0" },
		"missing":          func(s *memStore, m *ocispec.Manifest) { delete(s.blobs, string(m.Layers[0].Digest)) },
		"damaged":          func(s *memStore, m *ocispec.Manifest) { s.blobs[string(m.Layers[0].Digest)][2] ^= 1 },
	} {
		s := newMemStore()
		goodParts().store(t, s, "a:1", nil)
		im := openTest(t, s, "a:1")
		m := ocispec.Manifest{ArtifactType: MediaTypeTrace, Layers: []ocispec.Descriptor{
			s.put(MediaTypeTraceChunks, []byte("chunks")), s.put(MediaTypeTraceEvents, []byte("events")),
		}}
		tag := traceTag(im.Summary().Manifest)
		s.tags[tag], _ = json.Marshal(m)
		if data, err := TraceChunks(context.Background(), im); err != nil || string(data) != "chunks" {
			t.Fatalf("%s: untouched: %q, %v", name, data, err)
		}
		change(s, &m)
		s.tags[tag], _ = json.Marshal(m)
		var data []byte
		var err error
		limit(t, 1<<20, func() { data, err = TraceChunks(context.Background(), im) })
		if err == nil || data != nil || name != "missing" && errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "a:1") {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}
}

func FuzzTraceManifest(f *testing.F) {
	f.Add([]byte(`{"artifactType":"` + MediaTypeTrace + `","layers":[{},{}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if layers, err := decodeTrace(data); err == nil && (len(layers) != 2 || layers[0].Size > MaxTraceChunks || layers[1].Size > MaxTraceEvents) {
			t.Errorf("accepted %+v", layers)
		}
	})
}
