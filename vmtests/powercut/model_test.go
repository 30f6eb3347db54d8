package powercut

import (
	"bytes"
	"testing"
)

func TestContent(t *testing.T) {
	p := make([]byte, 8192)
	Fill(p, 7, 0)
	if id, valid := Recognise(p); id != 7 || valid != 8192 {
		t.Errorf("recognised %d bytes of content %d", valid, id)
	}
	q := make([]byte, 4096)
	Fill(q, 7, 4096)
	if !bytes.Equal(p[4096:], q) {
		t.Error("content filled from its middle differs")
	}
	p[5003]++
	if id, valid := Recognise(p); id != 7 || valid != 5000 {
		t.Errorf("recognised %d bytes of content %d", valid, id)
	}
	if id, valid := Recognise(p[:5]); id != 0 || valid != 0 {
		t.Errorf("recognised %d bytes of content %d in 5", valid, id)
	}
}

func TestEvent(t *testing.T) {
	p := make([]byte, MarkBytes)
	want := Event{Client: "ext4", Kind: Append, Name: "f01", ID: 1 << 60, Off: 3, Size: 5}
	if err := want.Encode(p); err != nil {
		t.Fatal(err)
	}
	if got, err := decodeEvent(p); got != want || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := decodeEvent(make([]byte, MarkBytes)); err == nil {
		t.Error("zeros are a mark")
	}
	if err := want.Encode(p[:100]); err == nil {
		t.Error("a mark fits into 100 bytes")
	}
}

func TestFiles(t *testing.T) {
	const f = "f00"
	created := []Event{{Kind: Create, Name: f, ID: 5, Size: 64}, {Kind: Synced, Name: f}}
	none := []Found{}
	whole := func(id uint64, size int64) []Found { return []Found{{Name: f, ID: id, Size: size, Valid: size}} }
	for name, c := range map[string]struct {
		events []Event
		legal  [][]Found
		wrong  [][]Found
	}{
		"unknown":  {nil, [][]Found{none, whole(1, 8)}, [][]Found{{{Name: f, Err: "I/O error"}}}},
		"created":  {created[:1], [][]Found{none, whole(5, 64), whole(5, 8), {{Name: f}}}, nil},
		"synced":   {created, [][]Found{whole(5, 64)}, [][]Found{none, whole(5, 56), whole(6, 64), {{Name: f, ID: 5, Size: 64, Valid: 56}}}},
		"removed":  {append(created[:2:2], Event{Kind: Remove, Name: f}), [][]Found{whole(5, 64), none}, [][]Found{whole(5, 8)}},
		"gone":     {append(created[:2:2], Event{Kind: Remove, Name: f}, Event{Kind: Synced, Name: f}), [][]Found{none}, [][]Found{whole(5, 64)}},
		"replaced": {append(created[:2:2], Event{Kind: Replace, Name: f, ID: 9, Size: 8}), [][]Found{whole(5, 64), whole(9, 8)}, [][]Found{none, whole(9, 16)}},
		"appended": {append(created[:2:2], Event{Kind: Append, Name: f, Size: 128}),
			[][]Found{whole(5, 64), whole(5, 128), {{Name: f, ID: 5, Size: 128, Valid: 64}}}, [][]Found{none, whole(5, 56), {{Name: f, ID: 5, Size: 128, Valid: 56}}}},
		"longer": {append(created[:2:2], Event{Kind: Append, Name: f, Size: 128}, Event{Kind: Synced, Name: f}), [][]Found{whole(5, 128)}, [][]Found{whole(5, 64)}},
	} {
		fs := Files{}
		for _, e := range c.events {
			fs.Apply(e)
		}
		before := fs.Clone()
		for _, found := range c.legal {
			if wrong := fs.Check(found); len(wrong) > 0 {
				t.Errorf("%s: %q", name, wrong)
			}
		}
		for _, found := range c.wrong {
			if wrong := fs.Check(found); len(wrong) == 0 {
				t.Errorf("%s: %+v is legal", name, found)
			}
		}
		fs.Apply(Event{Kind: Remove, Name: f})
		fs.Apply(Event{Kind: Synced, Name: f})
		if wrong := before.Check(c.legal[0]); len(wrong) > 0 {
			t.Errorf("%s: the copy changed: %q", name, wrong)
		}
	}
	fs := Files{}
	for _, e := range created {
		fs.Apply(e)
	}
	if fs.Durable() != 1 {
		t.Errorf("%d files are durable", fs.Durable())
	}
	if fs.Apply(Event{Kind: Remove, Name: f}); fs.Durable() != 0 {
		t.Errorf("%d files are durable while one is removed", fs.Durable())
	}
}

func TestBlocks(t *testing.T) {
	root := func(p []byte, block int64) error {
		for i := range p {
			p[i] = byte(block + 1)
		}
		return nil
	}
	m := NewBlocks(root)
	device := make([]byte, 4*BlockBytes)
	for b := range int64(4) {
		_ = root(device[b*BlockBytes:][:BlockBytes], b)
	}
	wrong := func(m *Blocks) int {
		t.Helper()
		list, err := m.Check(func(p []byte, b int64) error { copy(p, device[b*BlockBytes:]); return nil }, 4)
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	apply := func(e Event) {
		t.Helper()
		if e.Client = "a"; e.Off >= 2*BlockBytes {
			e.Client = "b"
		}
		if err := m.Apply(e); err != nil {
			t.Fatal(err)
		}
	}
	if wrong(m) != 0 {
		t.Error("the root is wrong")
	}
	// A write over the border of two blocks: each is old or new by itself.
	apply(Event{Kind: Write, ID: 5, Off: 3584, Size: 1024})
	Fill(device[3584:4096], 5, 3584)
	if wrong(m) != 0 {
		t.Error("one block of a write is wrong")
	}
	clear(device[3584:3592])
	if wrong(m) != 1 {
		t.Error("a torn block is legal")
	}
	Fill(device[3584:4608], 5, 3584)
	apply(Event{Kind: Zero, Off: 2 * BlockBytes, Size: BlockBytes})
	before := m.Clone()
	apply(Event{Kind: Flushed})
	if wrong(m) != 0 {
		t.Error("what was written and flushed is wrong")
	}
	apply(Event{Client: "b", Kind: Flushed, Off: 2 * BlockBytes})
	if wrong(m) != 1 {
		t.Error("what was zeroed and flushed need not be there")
	}
	if wrong(before) != 0 {
		t.Error("the copy changed")
	}
	clear(device[2*BlockBytes:][:BlockBytes])
	_ = root(device[:BlockBytes], 0)
	if wrong(m) != 1 {
		t.Error("a flushed write that is not there is legal")
	}
	if wrong(before) != 0 {
		t.Error("a write that was not flushed must be there")
	}
}
