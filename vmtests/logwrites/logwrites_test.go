package logwrites

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
)

// image builds a log as the recorders write it.
type image struct{ buf bytes.Buffer }

func newImage(entries uint64, sector uint32) *image {
	var m image
	m.sector(sector, magic, version, entries, uint64(sector))
	return &m
}

// sector appends a sector that begins with the words.
func (m *image) sector(size uint32, words ...uint64) {
	p := make([]byte, size)
	for i, w := range words {
		binary.LittleEndian.PutUint64(p[8*i:], w)
	}
	m.buf.Write(p)
}

func (m *image) data(fill string, n int) { m.buf.WriteString(strings.Repeat(fill, n)) }

func (m *image) read() (*Log, error) {
	return Read(bytes.NewReader(m.buf.Bytes()), int64(m.buf.Len()))
}

// small is a log of each kind of entry.
func small() *image {
	m := newImage(5, 512)
	m.sector(512, 8, 2, 0, 0)
	m.data("a", 1024)
	m.sector(512, 0, 0, uint64(Flush), 0)
	m.sector(512, 100, 1<<20, uint64(Discard), 0)
	m.sector(512, 0, 0, uint64(Mark), 5)
	m.sector(512, 1, 1, uint64(FUA|Metadata), 0)
	m.data("b", 512)
	return m
}

func TestRead(t *testing.T) {
	m := small()
	m.data("left of an earlier recording", 40)
	l, err := m.read()
	if err != nil {
		t.Fatal(err)
	}
	want := []Entry{
		{0, 4096, 1024, 1024},
		{Flush, 0, 0, 2560},
		{Discard, 51200, 1 << 29, 3072},
		{Mark, 0, 0, 3584},
		{FUA | Metadata, 512, 512, 4096},
	}
	if !slices.Equal(l.Entries, want) {
		t.Errorf("entries %+v, want %+v", l.Entries, want)
	}
	for i, want := range []string{strings.Repeat("a", 1024), "", "", "", strings.Repeat("b", 512)} {
		got, err := l.Data(l.Entries[i], 0, l.Entries[i].Len)
		if want == "" {
			if !errors.Is(err, ErrFormat) {
				t.Errorf("data of entry %d: %v, want ErrFormat", i, err)
			}
		} else if string(got) != want || err != nil {
			t.Errorf("data of entry %d: %.20q, %v", i, got, err)
		}
	}
	if got, err := l.Data(l.Entries[0], 512, 512); len(got) != 512 || err != nil {
		t.Errorf("second sector: %d bytes, %v", len(got), err)
	}
	if _, err := l.Data(l.Entries[0], 512, 513); !errors.Is(err, ErrFormat) {
		t.Errorf("more than there is: %v, want ErrFormat", err)
	}
}

func TestReadLargeSectors(t *testing.T) {
	m := newImage(1, 4096)
	m.sector(4096, 3, 1, 0, 0)
	m.data("c", 4096)
	l, err := m.read()
	if err != nil || len(l.Entries) != 1 || l.Entries[0] != (Entry{0, 12288, 4096, 8192}) {
		t.Fatalf("%+v, %v", l, err)
	}
}

func TestReadRefuses(t *testing.T) {
	for name, change := range map[string]func(p []byte) []byte{
		"nothing":         func([]byte) []byte { return nil },
		"magic":           func(p []byte) []byte { p[0]++; return p },
		"version":         func(p []byte) []byte { p[8]++; return p },
		"count":           func(p []byte) []byte { p[22] = 1; return p },
		"one entry more":  func(p []byte) []byte { p[16]++; return p },
		"sector size 0":   func(p []byte) []byte { p[25] = 0; return p },
		"sector size 768": func(p []byte) []byte { p[25] = 3; return p },
		"flags":           func(p []byte) []byte { p[512+17] = 1; return p },
		"far away":        func(p []byte) []byte { p[512+7] = 1; return p },
		"too long":        func(p []byte) []byte { p[512+9] = 1; return p },
		"text in a write": func(p []byte) []byte { p[512+24] = 1; return p },
		"long mark":       func(p []byte) []byte { p[3072+25] = 2; return p },
		"cut in data":     func(p []byte) []byte { return p[:len(p)-1] },
		"cut in an entry": func(p []byte) []byte { return p[:3072+100] },
	} {
		p := change(small().buf.Bytes())
		if _, err := Read(bytes.NewReader(p), int64(len(p))); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v, want ErrFormat", name, err)
		}
	}
}

// FuzzRead wants no panic, and of what is accepted that all data can be read.
func FuzzRead(f *testing.F) {
	f.Add(small().buf.Bytes())
	f.Add(newImage(0, 4096).buf.Bytes())
	f.Fuzz(func(t *testing.T, p []byte) {
		l, err := Read(bytes.NewReader(p), int64(len(p)))
		if err != nil {
			return
		}
		for i, e := range l.Entries {
			if !e.HasData() {
				continue
			}
			if got, err := l.Data(e, 0, e.Len); err != nil || int64(len(got)) != e.Len {
				t.Errorf("entry %d: %d bytes, %v", i, len(got), err)
			}
		}
	})
}
