package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// hostileMemory bounds what opening and reading a hostile image may allocate.
const hostileMemory = 64 << 20

// badText makes a manifest that is the right one after a replacement in its text.
func badText(old, now string) func(*testing.T, *memStore) {
	return func(t *testing.T, s *memStore) {
		goodParts().store(t, s, "v1", nil)
		text := string(s.tags["v1"])
		if !strings.Contains(text, old) {
			t.Fatalf("%s has no %s", text, old)
		}
		s.tags["v1"] = []byte(strings.Replace(text, old, now, 1))
	}
}

// badConfig makes an image whose config was changed, after the content root was computed.
func badConfig(change func(*Config)) func(*testing.T, *memStore) {
	return func(t *testing.T, s *memStore) {
		goodParts().store(t, s, "v1", func(_ *manifest, c *Config) { change(c) })
	}
}

// rootOf makes an image whose config was changed, and whose content root goes with it.
func rootOf(change func(*Config)) func(*testing.T, *memStore) {
	return badConfig(func(c *Config) {
		change(c)
		c.ContentRoot = contentRoot(c.geometry(), c.Root)
	})
}

// configText makes an image with a config of any text.
func configText(text string) func(*testing.T, *memStore) {
	return func(t *testing.T, s *memStore) {
		goodParts().store(t, s, "v1", func(m *manifest, _ *Config) { m.Config = s.put(MediaTypeConfig, []byte(text)) })
	}
}

// badParts makes an image from parts that were changed.
func badParts(change func(*parts)) func(*testing.T, *memStore) {
	return func(t *testing.T, s *memStore) {
		p := goodParts()
		change(p)
		p.store(t, s, "v1", nil)
	}
}

// badEntry makes an image whose first chunk's entry was changed.
func badEntry(change func(*chunkRef)) func(*testing.T, *memStore) {
	return badParts(func(p *parts) {
		ref := p.refs[0]
		change(&ref)
		p.refs[0] = ref
	})
}

// badStored makes an image whose first chunk is stored as something else.
func badStored(stored []byte) func(*testing.T, *memStore) {
	return badParts(func(p *parts) {
		ref := p.refs[0]
		ref.place.pack, ref.place.offset, ref.place.stored = uint32(len(p.packs)), 0, uint32(len(stored))
		p.packs = append(p.packs, stored)
		p.refs[0] = ref
	})
}

// badPage makes an image of one page that was changed, and whose digests go with it.
func badPage(change func(raw []byte) []byte) func(*testing.T, *memStore) {
	return func(t *testing.T, s *memStore) {
		p := goodParts()
		table, root := p.table(t)
		raw := change(bytes.Clone(table[root.Offset:]))
		n := min(contentLen(int(le.Uint16(raw[6:]))), len(raw))
		p.store(t, s, "v1", func(m *manifest, c *Config) {
			c.Root = &PageRef{Digest: sha256.Sum256(raw[:n]), Places: sha256.Sum256(raw[n:]), Offset: root.Offset, Length: len(raw)}
			c.ContentRoot = contentRoot(p.g, c.Root)
			m.Table = s.put(MediaTypeTable, append(table[:root.Offset:root.Offset], raw...))
		})
	}
}

// badTree makes an image of two levels whose root page was changed, and whose digests go with it.
func badTree(change func(raw []byte)) func(*testing.T, *memStore) {
	return func(t *testing.T, s *memStore) {
		p := cut(testContent(1, 2000*4096), 4096, 1000)
		table, root := p.table(t)
		raw := table[root.Offset:]
		change(raw)
		n := contentLen(int(le.Uint16(raw[6:])))
		p.store(t, s, "v1", func(m *manifest, c *Config) {
			c.Root.Digest, c.Root.Places = sha256.Sum256(raw[:n]), sha256.Sum256(raw[n:])
			c.ContentRoot = contentRoot(p.g, c.Root)
			m.Table = s.put(MediaTypeTable, table)
		})
	}
}

// spoiled makes an image whose source changes what it answers.
func spoiled(change func(off int64, p []byte)) func(*testing.T, *memStore) {
	return func(t *testing.T, s *memStore) {
		goodParts().store(t, s, "v1", nil)
		s.spoil = func(_ string, off int64, p []byte) { change(off, p) }
	}
}

func goodParts() *parts {
	content := testContent(3, 5*4096+100)
	copy(content, "first")
	return cut(content, 4096, 2)
}

func bomb(size int) []byte {
	return testEncoder().EncodeAll(make([]byte, size), nil)
}

var hostile = map[string]func(*testing.T, *memStore){
	"manifest: empty":                    func(_ *testing.T, s *memStore) { s.tags["v1"] = nil },
	"manifest: no JSON":                  func(_ *testing.T, s *memStore) { s.tags["v1"] = []byte("<html>") },
	"manifest: two values":               badText(`{"schema`, `{} {"schema`),
	"manifest: too large":                func(_ *testing.T, s *memStore) { s.tags["v1"] = bytes.Repeat([]byte(" "), maxManifest+1) },
	"manifest: nested without end":       func(_ *testing.T, s *memStore) { s.tags["v1"] = bytes.Repeat([]byte("["), maxManifest) },
	"manifest: schema version":           badText(`"schemaVersion":2`, `"schemaVersion":1`),
	"manifest: media type":               badText(ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex),
	"manifest: another artifact":         badText(MediaTypeImage, "application/vnd.example"),
	"manifest: a later version":          badText(MediaTypeImage, "application/vnd.coppice.image.v9"),
	"manifest: config of another type":   badText(MediaTypeConfig, MediaTypePack),
	"manifest: table of another type":    badText(MediaTypeTable, MediaTypePack),
	"manifest: pack of another type":     badText(MediaTypePack, MediaTypeTable),
	"manifest: no layers":                badText(`"layers":[`, `"layers":[],"other":[`),
	"manifest: negative size":            badText(`"size":`, `"size":-`),
	"manifest: size beyond numbers":      badText(`"size":`, `"size":99999999999999999999`),
	"manifest: huge config":              badText(`"size":`, `"size":9999999`),
	"manifest: digest in capitals":       badText(`"sha256:`, `"SHA256:`),
	"manifest: digest of another kind":   badText(`"sha256:`, `"sha512:`),
	"manifest: digest that climbs":       badText(`"sha256:`, `"sha256:../../`),
	"manifest: digest without digits":    badText(`"sha256:`, `"sha256:zz`),
	"manifest: config that is not there": badText(`"digest":"sha256:`, `"digest":"sha256:`+strings.Repeat("0", 64)+`","x":"`),
	"manifest: too many packs": func(t *testing.T, s *memStore) {
		d := s.put(MediaTypePack, []byte("pack"))
		m := &manifest{Config: s.put(MediaTypeConfig, []byte("{}")), Table: s.put(MediaTypeTable, []byte("x"))}
		for range maxPacks + 1 {
			m.Packs = append(m.Packs, d)
		}
		s.tags["v1"], _ = m.encode()
		if len(s.tags["v1"]) > maxManifest {
			t.Error("is refused for its size")
		}
	},
	"manifest: a million layers": func(_ *testing.T, s *memStore) {
		s.tags["v1"] = []byte(`{"schemaVersion":2,"artifactType":"` + MediaTypeImage + `","layers":[` + strings.Repeat("{},", 1<<20) + "{}]}")
	},
	"manifest: a sea of annotations": func(_ *testing.T, s *memStore) {
		s.tags["v1"] = []byte(`{"schemaVersion":2,"artifactType":"` + MediaTypeImage + `","annotations":{` + strings.Repeat(`"":"",`, 600_000) + `"":""}}`)
	},
	"manifest: layers are no list": badText(`"layers":[`, `"layers":{},"other":[`),

	"config: no JSON":              configText("config"),
	"config: empty object":         configText("{}"),
	"config: list":                 configText("[1]"),
	"config: no size":              rootOf(func(c *Config) { c.SizeBytes = 0 }),
	"config: negative size":        rootOf(func(c *Config) { c.SizeBytes = -4096 }),
	"config: absurd size":          rootOf(func(c *Config) { c.SizeBytes = 1 << 62 }),
	"config: chunk size 0":         badConfig(func(c *Config) { c.ChunkSize = 0 }),
	"config: chunk size 1":         rootOf(func(c *Config) { c.ChunkSize = 1 }),
	"config: chunk size 5000":      rootOf(func(c *Config) { c.ChunkSize = 5000 }),
	"config: chunk size 1 GiB":     rootOf(func(c *Config) { c.ChunkSize = 1 << 30 }),
	"config: another size":         badConfig(func(c *Config) { c.SizeBytes++ }),
	"config: another chunk size":   badConfig(func(c *Config) { c.ChunkSize *= 2 }),
	"config: another content root": badConfig(func(c *Config) { c.ContentRoot[5]++ }),
	"config: another root page":    badConfig(func(c *Config) { c.Root.Digest[5]++ }),
	"config: places of another":    badConfig(func(c *Config) { c.Root.Places[5]++ }),
	"config: root page nowhere":    rootOf(func(c *Config) { c.Root.Offset = 1 << 40 }),
	"config: root page before all": rootOf(func(c *Config) { c.Root.Offset = -1 }),
	"config: root page of nothing": rootOf(func(c *Config) { c.Root.Length = 0 }),
	"config: huge root page":       rootOf(func(c *Config) { c.Root.Length = 1 << 40 }),
	"config: a level too few":      rootOf(func(c *Config) { c.SizeBytes = 2000 * 4096 }),
	"config: labels without end": func(t *testing.T, s *memStore) {
		labels := map[string]string{}
		for i := range maxLabels + 1 {
			labels[strings.Repeat("a", i)] = ""
		}
		text, _ := json.Marshal(Config{SizeBytes: 1, ChunkSize: 4096, Labels: labels, ContentRoot: contentRoot(geometry{1, 4096}, nil)})
		configText(string(text))(t, s)
	},

	"page: magic":              badPage(func(raw []byte) []byte { raw[0]++; return raw }),
	"page: version":            badPage(func(raw []byte) []byte { raw[4]++; return raw }),
	"page: level":              badPage(func(raw []byte) []byte { raw[5]++; return raw }),
	"page: reserved":           badPage(func(raw []byte) []byte { raw[9]++; return raw }),
	"page: no entries":         badPage(func(raw []byte) []byte { le.PutUint16(raw[6:], 0); return raw }),
	"page: an entry too many":  badPage(func(raw []byte) []byte { raw[6]++; return raw }),
	"page: entries everywhere": badPage(func(raw []byte) []byte { le.PutUint16(raw[6:], 0xffff); return raw }),
	"page: a bit too few":      badPage(func(raw []byte) []byte { raw[16] &^= 1; return raw }),
	"page: beyond the end":     badPage(func(raw []byte) []byte { raw[16] &^= 1; raw[17] |= 1; return raw }),
	"page: a byte too many":    badPage(func(raw []byte) []byte { return append(raw, 0) }),
	"tree: page nowhere":       badTree(func(raw []byte) { le.PutUint64(raw[contentLen(2):], 1<<40) }),
	"tree: page at -1":         badTree(func(raw []byte) { le.PutUint64(raw[contentLen(2):], 1<<64-1) }),
	"tree: huge page":          badTree(func(raw []byte) { le.PutUint32(raw[contentLen(2)+8:], 1<<31) }),
	"tree: reserved":           badTree(func(raw []byte) { raw[contentLen(2)+12]++ }),
	"tree: page of another":    badTree(func(raw []byte) { raw[digestsAt]++ }),
	"tree: places of another":  badTree(func(raw []byte) { raw[contentLen(2)+16]++ }),
	"tree: the page itself": badTree(func(raw []byte) { // a loop, if digests were not compared
		copy(raw[contentLen(2):], raw[contentLen(2)+pagePlace:])
	}),

	"entry: another digest":       badEntry(func(c *chunkRef) { c.digest[0]++ }),
	"entry: digest of zeros":      badEntry(func(c *chunkRef) { c.digest = sha256.Sum256(make([]byte, 4096)) }),
	"entry: pack nowhere":         badEntry(func(c *chunkRef) { c.place.pack = 1 << 31 }),
	"entry: offset beyond":        badEntry(func(c *chunkRef) { c.place.offset = 1 << 40 }),
	"entry: offset below":         badEntry(func(c *chunkRef) { c.place.offset = -1 }),
	"entry: nothing stored":       badEntry(func(c *chunkRef) { c.place.stored = 0 }),
	"entry: more than a chunk":    badEntry(func(c *chunkRef) { c.place.stored = 5000 }),
	"entry: 4 GiB stored":         badEntry(func(c *chunkRef) { c.place.stored = 1<<32 - 1 }),
	"entry: place of another":     badEntry(func(c *chunkRef) { c.place.offset++ }),
	"chunk: no frame":             badStored([]byte("certainly no frame")),
	"chunk: empty frame":          badStored(bomb(0)),
	"chunk: a byte too few":       badStored(bomb(4095)),
	"chunk: a byte too many":      badStored(bomb(4097)),
	"chunk: a bomb":               badStored(bomb(1 << 27)),
	"chunk: another's content":    badStored(bytes.Repeat([]byte("x"), 4096)),
	"chunk: frame cut short":      badStored(bomb(4096)[:8]),
	"chunk: a pack cut short":     func(t *testing.T, s *memStore) { shorten(t, s, 10) },
	"source: flips a bit":         spoiled(func(_ int64, p []byte) { p[len(p)/2] ^= 4 }),
	"source: answers with zeros":  spoiled(func(_ int64, p []byte) { clear(p) }),
	"source: answers beside it":   spoiled(func(_ int64, p []byte) { copy(p, p[1:]) }),
	"source: flips the last byte": spoiled(func(_ int64, p []byte) { p[len(p)-1] ^= 1 }),
}

// shorten leaves n bytes of each pack, whose descriptors stay.
func shorten(t *testing.T, s *memStore, n int) {
	goodParts().store(t, s, "v1", nil)
	m, err := decodeManifest(s.tags["v1"])
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range m.Packs {
		b := s.blobs[string(p.Digest)]
		s.blobs[string(p.Digest)] = b[:n]
	}
}

// What is wrong is refused, with words, before anything large is allocated.
func TestHostileImagesAreRefused(t *testing.T) {
	decoder()
	for name, make := range hostile {
		t.Run(name, func(t *testing.T) {
			s := newMemStore()
			make(t, s)
			var err error
			limit(t, hostileMemory, func() {
				var im *Image
				if im, err = Open(context.Background(), s, "v1"); err != nil {
					return
				}
				defer im.Close()
				err = im.Read(context.Background(), []byte{0: 1, 4: 1, 4095: 1}, 0)
			})
			if err == nil {
				t.Fatal("is accepted")
			}
			if text := err.Error(); len(text) < 20 || len(text) > 500 || strings.ContainsAny(text, "\n\x00") {
				t.Errorf("error of %d bytes: %.600q", len(text), text)
			}
			if want, ok := map[string]error{
				"manifest: a later version": ErrVersion, "page: version": ErrVersion, "manifest: another artifact": ErrNotImage,
			}[name]; ok && !errors.Is(err, want) {
				t.Errorf("not %v: %v", want, err)
			}
			for _, what := range []string{"page:", "tree:", "entry:", "chunk: a b", "source:"} {
				if strings.HasPrefix(name, what) && name != "page: version" && !errors.Is(err, ErrCorrupt) {
					t.Errorf("not called corrupt: %v", err)
				}
			}
		})
	}
	if len(hostile) < 40 {
		t.Errorf("%d inputs", len(hostile))
	}
}

// Any byte of any blob may be wrong, one at a time: what is read then is right or an error.
func TestAnyFlippedByteIsNoticed(t *testing.T) {
	content := testContent(9, 3*4096+77)
	s := newMemStore()
	cut(content, 4096, 2).store(t, s, "v1", nil)
	m, err := decodeManifest(s.tags["v1"])
	if err != nil {
		t.Fatal(err)
	}
	packs := map[string]bool{} // in which a zstd frame may have another form, and the same content
	for _, d := range m.Packs {
		packs[string(d.Digest)] = true
	}
	for digest, blob := range s.blobs {
		for i := range blob {
			blob[i] ^= 0x10
			im, err := Open(context.Background(), s, "v1")
			if err == nil {
				p := make([]byte, len(content))
				err = im.Read(context.Background(), p, 0)
				if err == nil && !bytes.Equal(p, content) {
					t.Fatalf("byte %d of %s: wrong bytes", i, digest)
				}
				im.Close()
			}
			blob[i] ^= 0x10
			magic := i < len(tableMagic) && bytes.HasPrefix(blob, []byte(tableMagic)) // is for people
			if err == nil && !magic && !packs[digest] {
				t.Errorf("byte %d of %s goes unnoticed", i, digest)
			}
		}
	}
}
