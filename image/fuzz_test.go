package image

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func FuzzManifest(f *testing.F) {
	s := newMemStore()
	goodParts().store(f, s, "v1", nil)
	f.Add(s.tags["v1"])
	f.Add([]byte(`{"schemaVersion":2}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := decodeManifest(data)
		if err != nil {
			return
		}
		again, err := m.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeManifest(again); err != nil {
			t.Errorf("%s came back as %s: %v", data, again, err)
		}
	})
}

func FuzzConfig(f *testing.F) {
	c := &Config{SizeBytes: 1 << 30, ChunkSize: 1 << 16, Root: &PageRef{Offset: 16, Length: 300}, Labels: map[string]string{"a": "b"}}
	c.ContentRoot = contentRoot(c.geometry(), c.Root)
	data, _ := c.encode()
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := decodeConfig(data)
		if err != nil {
			return
		}
		if c.geometry().validate() != nil || c.ContentRoot != contentRoot(c.geometry(), c.Root) {
			t.Errorf("accepted %+v", c)
		}
		again, err := c.encode()
		if err != nil {
			return // a time beyond the year 9999
		}
		if _, err := decodeConfig(again); err != nil {
			t.Errorf("%s came back as %s: %v", data, again, err)
		}
	})
}

func FuzzPage(f *testing.F) {
	table, root := goodParts().table(f)
	f.Add(table[root.Offset:], uint8(0), uint16(1024))
	tree, root := cut(testContent(1, 2000*4096), 4096, 1000).table(f)
	f.Add(tree[root.Offset:], uint8(1), uint16(2))
	f.Fuzz(func(t *testing.T, raw []byte, level uint8, entries uint16) {
		lv, most := int(level%4), int(entries%fanOut)+1
		_ = verifyPage(raw, &PageRef{})
		var p *page
		var err error
		limit(t, 64<<10, func() { p, err = decodePage(raw, lv, most) })
		if err != nil {
			return
		}
		var b pageBuilder
		for i := p.next(0); i < fanOut; i = p.next(i + 1) {
			k, held := p.find(i)
			if !held || i >= most {
				t.Fatalf("entry %d: held %v, of %d", i, held, most)
			}
			if lv == 0 {
				_ = p.chunk(k)
			} else if r, err := p.child(k); err == nil && (r.Length > maxPageSize || r.Offset < 0) {
				t.Errorf("accepted %+v", r)
			}
			b.add(i, p.digest(k), p.place(k))
		}
		if again, _ := b.seal(lv, 16); !bytes.Equal(again, raw) {
			t.Errorf("%x came back as %x", raw, again)
		}
	})
}

func FuzzDigest(f *testing.F) {
	f.Add(Digest{1, 2}.String())
	f.Fuzz(func(t *testing.T, text string) {
		if d, err := ParseDigest(text); err == nil && d.String() != text {
			t.Errorf("%q came back as %q", text, d)
		}
	})
}

// Stored bytes of any kind give the right content or an error, and never more than the chunk.
func FuzzChunk(f *testing.F) {
	p := goodParts()
	ref := p.refs[0]
	f.Add(p.packs[0][:ref.place.stored])
	f.Add(bomb(1 << 20))
	decoder()
	f.Fuzz(func(t *testing.T, stored []byte) {
		buf := bytes.Repeat([]byte{0xee}, 4096+8)
		if err := unpack(buf[:4096], stored, ref.digest); err == nil && !bytes.HasPrefix(buf, []byte("first")) {
			t.Errorf("%x gives %x", stored, buf[:16])
		}
		if !bytes.Equal(buf[4096:], bytes.Repeat([]byte{0xee}, 8)) {
			t.Errorf("%x writes beyond the chunk", stored)
		}
	})
}

func FuzzIndex(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"` + (Digest{}).String() + `","annotations":{"org.opencontainers.image.ref.name":"a:1"}}]}`))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{},{},{}]}`))
	of := &Layout{dir: "fuzz"}
	f.Fuzz(func(t *testing.T, data []byte) {
		index, err := decodeIndex(data, of)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("%v", err)
			}
			return
		}
		for _, tag := range index.tags() {
			if _, _, err := index.find(tag, of); err != nil && !errors.Is(err, ErrCorrupt) {
				t.Errorf("%q is listed, but %v", tag, err)
			}
		}
	})
}

// A journal of any bytes ends somewhere, and what it says fits into what it has.
func FuzzJournal(f *testing.F) {
	path := filepath.Join(f.TempDir(), "journal")
	j, err := newJournal(path, 0, Digest{1})
	if err != nil {
		f.Fatal(err)
	}
	err = errors.Join(j.add(entry{index: 5}), j.mark(packMark{next: 6, size: 100}), j.add(entry{index: 7}), j.close())
	if err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)-1])
	path = filepath.Join(f.TempDir(), "journal")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := openJournal(path, Digest{1})
		if err != nil {
			t.Fatal(err)
		}
		if r == nil {
			return
		}
		defer r.close()
		n := 0
		for ; err == nil; n++ {
			_, err = r.entry()
		}
		if !errors.Is(err, io.EOF) || n*entrySize > len(data)+entrySize || r.at > int64(len(data)) {
			t.Errorf("%d entries of %d bytes, %v", n, len(data), err)
		}
		again, err := openJournal(path, Digest{1})
		if err != nil {
			t.Fatal(err)
		}
		defer again.close()
		marks, err := again.marks()
		if err != nil || len(marks) > 0 && marks[len(marks)-1].end > int64(len(data)) {
			t.Errorf("%+v, %v", marks, err)
		}
	})
}
