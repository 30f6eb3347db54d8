package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"aead.dev/minisign"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"coppice/image/imagetest"
)

// testKey is a pair of keys, always the same one for a seed.
func testKey(t testing.TB, seed byte) (minisign.PublicKey, minisign.PrivateKey) {
	t.Helper()
	public, private, err := minisign.GenerateKey(bytes.NewReader(bytes.Repeat([]byte{seed}, 64)))
	if err != nil {
		t.Fatal(err)
	}
	return public, private
}

func signTest(t *testing.T, l Target, tag string, key minisign.PrivateKey, s Statement) {
	t.Helper()
	if _, err := Sign(context.Background(), openTest(t, l, tag), l, key, s); err != nil {
		t.Fatal(err)
	}
}

func TestSignatures(t *testing.T) {
	ctx, now := context.Background(), time.Unix(1_800_000_000, 0)
	ann, annKey := testKey(t, 1)
	bob, bobKey := testKey(t, 2)
	eve, _ := testKey(t, 3)
	l := testLayout(t)
	buildTest(t, l, "os/debian:1", testContent(40, 100_000), small())
	buildTest(t, l, "os/debian:2", testContent(41, 100_000), small())
	im := openTest(t, l, "os/debian:1")
	check := func(im *Image, want error, name string, keys ...minisign.PublicKey) *Statement {
		t.Helper()
		s, err := CheckSignature(ctx, im, keys, name, now)
		if !errors.Is(err, want) {
			t.Errorf("as %s: %v, not %v", name, err, want)
		}
		return s
	}
	check(im, ErrUnsigned, "os/debian", ann)
	signTest(t, l, "os/debian:1", annKey, Statement{Name: "debian", Serial: 7})
	signTest(t, l, "os/debian:1", bobKey, Statement{Name: "os/debian", Serial: 9, Expires: now.Add(time.Hour)})
	if s := check(im, nil, "os/debian", ann); s.Serial != 7 || s.ContentRoot != im.ContentRoot() || s.SizeBytes != im.Size() {
		t.Errorf("%+v", s)
	}
	check(im, nil, "mirror/os/debian", eve, ann)
	check(im, ErrUntrusted, "os/debian", eve)
	check(im, ErrUntrusted, "os/debian")
	check(im, ErrOtherName, "os/mydebian", ann)
	check(im, ErrOtherName, "debian", bob)
	if s := check(im, nil, "os/debian", ann, bob); s.Serial != 9 {
		t.Errorf("%+v", s)
	}
	now = now.Add(time.Hour)
	check(im, ErrExpired, "os/debian", bob)
	if s := check(im, nil, "os/debian", ann, bob); s.Serial != 7 {
		t.Errorf("%+v", s)
	}
	// Signed again by the same key, the old one is gone.
	signTest(t, l, "os/debian:1", annKey, Statement{Name: "debian", Serial: 8})
	if all, err := Signatures(ctx, im); err != nil || len(all) != 2 || check(im, nil, "debian", ann).Serial != 8 {
		t.Errorf("%d signatures, %v", len(all), err)
	}

	// The list is of images, a copy is signed as well, and a removed image leaves no signature.
	if images, others, err := List(ctx, l); len(images) != 2 || others != 0 || err != nil {
		t.Errorf("%d images, %d others, %v", len(images), others, err)
	}
	mirror := testLayout(t)
	copyTest(t, im, mirror, "debian:x")
	check(openTest(t, mirror, "debian:x"), nil, "debian", ann)
	if err := mirror.Remove(ctx, "debian:x"); err != nil || len(blobNames(t, mirror)) != 0 {
		t.Errorf("%v, %v", err, blobNames(t, mirror))
	}

	// The signature of one image does not do for another.
	other := openTest(t, l, "os/debian:2")
	moved, err := l.Manifest(ctx, sigTag(im.Summary().Manifest))
	if err == nil {
		err = l.PutManifest(ctx, sigTag(other.Summary().Manifest), moved)
	}
	if err != nil {
		t.Fatal(err)
	}
	check(other, ErrUntrusted, "os/debian", ann, bob)

	for name, s := range map[string]Statement{"no name": {}, "bad name": {Name: "a b"}, "bad time": {Name: "a", Expires: time.Unix(1<<60, 0)}} {
		if _, err := Sign(ctx, im, l, annKey, s); err == nil {
			t.Errorf("%s is signed", name)
		}
	}
}

// In a registry it is the same.
func TestSignaturesInARegistry(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	ann, annKey := testKey(t, 1)
	l, r := testLayout(t), openRegistry(t, imagetest.Registry(t, imagetest.RegistryOptions{})+"/os/debian")
	buildTest(t, l, "debian:1", testContent(40, 100_000), small())
	copyTest(t, openTest(t, l, "debian:1"), r, "1")
	signTest(t, r, "1", annKey, Statement{Name: "debian", Serial: 1})
	if _, err := CheckSignature(context.Background(), openTest(t, r, "1"), []minisign.PublicKey{ann}, "os/debian", time.Now()); err != nil {
		t.Error(err)
	}
	copyTest(t, openTest(t, r, "1"), r, "stable")
	if images, others, err := List(context.Background(), r); len(images) != 2 || others != 0 || err != nil {
		t.Errorf("%v, %d others, %v", images, others, err)
	}
	if err := r.Remove(context.Background(), "1"); err != nil {
		t.Error(err)
	}
}

// What is wrong with signatures makes an image untrusted, or is an error, and is never taken for a signature.
func TestHostileSignatures(t *testing.T) {
	ann, annKey := testKey(t, 1)
	good := func(s *memStore, change func(*ocispec.Manifest)) {
		goodParts().store(t, s, "a:1", nil)
		im := openTest(t, s, "a:1")
		text, _ := json.Marshal(Statement{Type: statementType, Name: "a", Serial: 1, ContentRoot: im.ContentRoot(), SizeBytes: im.Size()})
		m := ocispec.Manifest{ArtifactType: MediaTypeSignatures, Layers: []ocispec.Descriptor{
			s.put(MediaTypeStatement, text), s.put(MediaTypeMinisig, minisign.Sign(annKey, text)),
		}}
		change(&m)
		s.tags[sigTag(im.Summary().Manifest)], _ = json.Marshal(m)
	}
	statement := func(change func(*Statement)) func(*memStore, *ocispec.Manifest) {
		return func(s *memStore, m *ocispec.Manifest) {
			var st Statement
			_ = json.Unmarshal(s.blobs[string(m.Layers[0].Digest)], &st)
			change(&st)
			text, _ := json.Marshal(st)
			m.Layers[0] = s.put(MediaTypeStatement, text)
		}
	}
	text := func(i int, text string) func(*memStore, *ocispec.Manifest) {
		return func(s *memStore, m *ocispec.Manifest) { m.Layers[i] = s.put(m.Layers[i].MediaType, []byte(text)) }
	}
	cases := map[string]func(*memStore, *ocispec.Manifest){
		"nothing":           func(_ *memStore, m *ocispec.Manifest) { m.Layers = nil },
		"half":              func(_ *memStore, m *ocispec.Manifest) { m.Layers = m.Layers[:1] },
		"the wrong way":     func(_ *memStore, m *ocispec.Manifest) { slices.Reverse(m.Layers) },
		"another artifact":  func(_ *memStore, m *ocispec.Manifest) { m.ArtifactType = MediaTypeImage },
		"too many":          func(_ *memStore, m *ocispec.Manifest) { m.Layers = slices.Repeat(m.Layers, maxSignatures+1) },
		"huge statement":    func(_ *memStore, m *ocispec.Manifest) { m.Layers[0].Size = 1 << 40 },
		"missing":           func(s *memStore, m *ocispec.Manifest) { delete(s.blobs, string(m.Layers[1].Digest)) },
		"damaged":           func(s *memStore, m *ocispec.Manifest) { s.blobs[string(m.Layers[1].Digest)][9] ^= 1 },
		"another serial":    statement(func(s *Statement) { s.Serial = 99 }),
		"another name":      statement(func(s *Statement) { s.Name = "b" }),
		"another root":      statement(func(s *Statement) { s.ContentRoot[0]++ }),
		"another type":      statement(func(s *Statement) { s.Type = "receipt" }),
		"a space":           func(s *memStore, m *ocispec.Manifest) { text(0, string(s.blobs[string(m.Layers[0].Digest)])+" ")(s, m) },
		"no statement":      text(0, "yes"),
		"no signature":      text(1, "signed"),
		"empty signature":   text(1, "\n\n\n\n"),
		"endless signature": text(1, strings.Repeat("A", maxMinisig)),
	}
	for name, change := range cases {
		s := newMemStore()
		good(s, func(m *ocispec.Manifest) { change(s, m) })
		st, err := CheckSignature(context.Background(), openTest(t, s, "a:1"), []minisign.PublicKey{ann}, "a", time.Now())
		if err == nil || st != nil {
			t.Errorf("%s: trusted", name)
		}
	}
	s := newMemStore()
	good(s, func(*ocispec.Manifest) {})
	if _, err := CheckSignature(context.Background(), openTest(t, s, "a:1"), []minisign.PublicKey{ann}, "a", time.Now()); err != nil {
		t.Errorf("untouched: %v", err)
	}
}

func FuzzSignatures(f *testing.F) {
	text, _ := json.Marshal(Statement{Type: statementType, Name: "a", Serial: 1})
	f.Add(text)
	f.Add([]byte(`{"artifactType":"` + MediaTypeSignatures + `","layers":[{},{}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, err := decodeStatement(data); err == nil && (s.Type != statementType || checkName(s.Name) != nil) {
			t.Errorf("accepted %+v", s)
		}
		if layers, err := decodeSignatures(data); err == nil && (len(layers)%2 != 0 || len(layers) > 2*maxSignatures) {
			t.Errorf("accepted %d layers", len(layers))
		}
		var sig minisign.Signature
		_ = sig.UnmarshalText(data)
	})
}
