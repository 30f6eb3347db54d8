package cache

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// modelImages are read by the model: chunks of two sizes, some of zeros, and versions that share chunks.
var modelImages = sync.OnceValue(func() []*fakeOrigin {
	zeros := func(i int64) bool { return i%5 == 0 }
	return []*fakeOrigin{
		{size: 1100*4*kib - 7, chunk: 4 * kib, zeros: zeros},
		{seed: 1, size: 90*64*kib - 1, chunk: 64 * kib},
		{seed: 1, size: 100 * 64 * kib, chunk: 64 * kib}, // a version that shares chunks with the one before
	}
})

// Whatever is done, content is right and the threshold is kept.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := newModel(t, rt)
		defer m.close()
		rt.Repeat(map[string]func(*rapid.T){
			"read":   m.read,
			"serve":  m.serve,
			"set":    m.set,
			"drop":   m.drop,
			"reopen": m.reopen,
			"tier":   m.tier,
			"":       m.check,
		})
	})
}

type model struct {
	t       *testing.T
	c       *Cache
	disk    *fakeTier
	roots   []*Root
	readers []*Reader
}

func newModel(t *testing.T, rt *rapid.T) *model {
	m := &model{t: t, disk: newFakeTier()}
	m.c = newCacheFor(t, Options{
		MemoryBytes: MinMemory, Disk: m.disk, Policy: rapid.SampledFrom(Policies()).Draw(rt, "policy"), heap: 16 << 20,
	})
	for _, o := range modelImages() {
		r := m.c.Open(o)
		m.roots, m.readers = append(m.roots, r), append(m.readers, r.Reader())
	}
	return m
}

func (m *model) close() {
	for _, r := range m.roots {
		r.Close()
	}
	if err := m.c.Close(); err != nil {
		m.t.Error(err)
	}
}

func (m *model) read(t *rapid.T) {
	i := rapid.IntRange(0, len(m.roots)-1).Draw(t, "image")
	o := modelImages()[i]
	off := rapid.Int64Range(0, o.size-1).Draw(t, "off")
	n := int(min(o.size-off, rapid.Int64Range(0, 300*kib).Draw(t, "len")))
	want, got := o.bytes(off, n), make([]byte, n)
	if m.readers[i].TryRead(got, off) && !bytes.Equal(got, want) {
		t.Fatalf("memory gave other content")
	}
	if err := m.readers[i].Read(context.Background(), got, off); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read %d bytes at %d: other content, or %v", n, off, err)
	}
}

func (m *model) serve(t *rapid.T) {
	o := rapid.SampledFrom(modelImages()).Draw(t, "image")
	index := rapid.Int64Range(0, (o.size-1)/int64(o.chunk)).Draw(t, "index")
	c := o.named(index)
	if c.Key == (Key{}) {
		return
	}
	got := make([]byte, c.Len)
	if err := m.c.Serve(context.Background(), c, got); err != nil || !bytes.Equal(got, o.content(index)) {
		t.Fatalf("serve chunk %d: other content, or %v", index, err)
	}
}

func (m *model) set(t *rapid.T) {
	if err := m.c.SetMemory(rapid.Int64Range(MinMemory, 12<<20).Draw(t, "bytes")); err != nil {
		t.Fatal(err)
	}
}

func (m *model) drop(t *rapid.T) {
	if err := m.c.Drop(false); err != nil {
		t.Fatal(err)
	}
	if s := m.c.Stats().Memory; s.Chunks != 0 {
		t.Fatalf("%d chunks are left", s.Chunks)
	}
}

func (m *model) reopen(t *rapid.T) {
	i := rapid.IntRange(0, len(m.roots)-1).Draw(t, "image")
	m.roots[i].Close()
	m.roots[i] = m.c.Open(modelImages()[i])
	m.readers[i] = m.roots[i].Reader()
}

func (m *model) tier(t *rapid.T) {
	lie, fail := rapid.Bool().Draw(t, "lie"), rapid.Bool().Draw(t, "fail")
	m.disk.set(func(d *fakeTier) {
		d.lie, d.err = lie, nil
		if fail {
			d.err = errors.New("input/output error")
		}
	})
}

func (m *model) check(t *rapid.T) {
	s := m.c.Stats().Memory
	if s.UsedBytes > s.ThresholdBytes {
		t.Fatalf("%d bytes are used, of %d", s.UsedBytes, s.ThresholdBytes)
	}
	if err := m.c.memory.check(); err != nil {
		t.Fatal(err)
	}
}
