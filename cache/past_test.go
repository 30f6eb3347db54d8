package cache

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
)

// Who reads past memory gets what is there from there, and leaves nothing behind.
func TestReadPastLeavesMemoryAsItIs(t *testing.T) {
	disk := newFakeTier()
	c := newCache(t, Options{Disk: disk})
	o := &fakeOrigin{size: 64*64*kib + 100, chunk: 64 * kib, zeros: func(i int64) bool { return i == 20 }}
	v := open(t, c, o).Reader()
	mustRead(t, v, o, 3*64*kib, 64*kib)
	onDisk := o.named(10)
	disk.set(func(d *fakeTier) { d.chunks[onDisk.Key] = o.content(10) })
	eventually(t, "the disk has what was read", func() bool { return disk.has(o.key(3)) })
	held := disk.count()
	o.asked()
	before := c.Stats().Memory
	for _, r := range []readRange{{0, int(o.size)}, {64*kib + 5, 3 * 64 * kib}, {o.size - 1, 1}, {10*64*kib + 7, 9}} {
		p := make([]byte, r.len)
		if err := v.ReadPast(within(t), p, r.off); err != nil || !bytes.Equal(p, o.bytes(r.off, r.len)) {
			t.Fatalf("%+v: %v, or other content", r, err)
		}
	}
	want := []readRange{{0, 3 * 64 * kib}, {4 * 64 * kib, 6 * 64 * kib}, {11 * 64 * kib, 9 * 64 * kib}, {21 * 64 * kib, 43 * 64 * kib}, {64 * 64 * kib, 100},
		{64*kib + 5, 2*64*kib - 5}, {4 * 64 * kib, 5}, {o.size - 1, 1}}
	if got := o.asked(); !slices.Equal(got, want) {
		t.Errorf("the origin was asked for %v, not %v", got, want)
	}
	if after := c.Stats().Memory; after.Chunks != before.Chunks || after.Inserted != before.Inserted || disk.count() != held {
		t.Errorf("memory holds %+v, and held %+v before", after, before)
	}
	lost := errors.New("lost")
	o.set(func() { o.err = lost })
	if err := v.ReadPast(within(t), make([]byte, 10), 0); !errors.Is(err, lost) || v.Stats().Errors != 1 {
		t.Errorf("%v, %+v", err, v.Stats())
	}
}

// What the image does not have is refused, however it is read, and counts as nothing.
func TestReadsBeyondTheImage(t *testing.T) {
	c := newCache(t, Options{})
	o := &fakeOrigin{size: 2*64*kib + 100, chunk: 64 * kib}
	v := open(t, c, o).Reader()
	for _, r := range []readRange{{-1, 10}, {-1 << 63, 10}, {o.size, 1}, {o.size - 1, 2}, {0, int(o.size) + 1}, {3 * 64 * kib, 10}, {1<<63 - 1, 10}} {
		p := make([]byte, r.len)
		if v.TryRead(p, r.off) {
			t.Errorf("%+v is in memory", r)
		}
		for name, read := range map[string]func(context.Context, []byte, int64) error{"read": v.Read, "read past": v.ReadPast} {
			if err := read(within(t), p, r.off); err == nil || !strings.Contains(err.Error(), "beyond the image") {
				t.Errorf("%s %+v: %v", name, r, err)
			}
		}
	}
	if s, asked := v.Stats(), o.asked(); s.Reads != 0 || s.Errors != 0 || len(asked) != 0 {
		t.Errorf("%+v, and the origin was asked for %v", s, asked)
	}
}
