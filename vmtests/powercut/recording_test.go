package powercut

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"coppice/vmtests/logwrites"
)

// tape builds a recording of a disk with a store of eight pages and one page for marks.
type tape struct {
	t       *testing.T
	entries uint64
	buf     bytes.Buffer
}

const tapePages = 8

func (p *tape) entry(off int64, data []byte, flags logwrites.Flags) {
	var head [SectorBytes]byte
	for i, w := range []uint64{uint64(off) / SectorBytes, uint64(len(data)) / SectorBytes, uint64(flags)} {
		binary.LittleEndian.PutUint64(head[8*i:], w)
	}
	p.entries++
	p.buf.Write(head[:])
	if flags&logwrites.Discard == 0 {
		p.buf.Write(data)
	}
}

func (p *tape) write(off int64, fill byte, n int) { p.entry(off, bytes.Repeat([]byte{fill}, n), 0) }
func (p *tape) flush()                            { p.entry(0, nil, logwrites.Flush) }
func (p *tape) discard(off int64, n int)          { p.entry(off, make([]byte, n), logwrites.Discard) }

func (p *tape) mark(e Event) {
	page := make([]byte, MarkBytes)
	if err := e.Encode(page); err != nil {
		p.t.Fatal(err)
	}
	p.entry(tapePages*BlockBytes, page, 0)
}

func (p *tape) recording() (*Recording, error) {
	var super [SectorBytes]byte
	for i, w := range []uint64{0x6a736677736872, 1, p.entries, SectorBytes} {
		binary.LittleEndian.PutUint64(super[8*i:], w)
	}
	log := append(super[:], p.buf.Bytes()...)
	l, err := logwrites.Read(bytes.NewReader(log), int64(len(log)))
	if err != nil {
		p.t.Fatal(err)
	}
	return NewRecording(l, Range{0, tapePages * BlockBytes}, Range{tapePages * BlockBytes, MarkBytes})
}

// sample has three epochs: one with two writes, an empty one, and one with a discard.
func sample(t *testing.T) *Recording {
	p := &tape{t: t}
	p.write(0, 'a', 2*BlockBytes)
	p.flush()
	p.mark(Event{Kind: Ready})
	p.write(512, 'b', 1024)
	p.mark(Event{Kind: Create, Name: "f"})
	p.write(2*BlockBytes-512, 'c', 1024)
	p.flush()
	p.mark(Event{Kind: Synced, Name: "f"})
	p.flush()
	p.discard(512, BlockBytes)
	p.flush()
	r, err := p.recording()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// text is the disk's first three pages, a letter for each sector.
func (d Disk) text() string {
	var text []byte
	for page := range int64(3) {
		for s := range int64(BlockBytes / SectorBytes) {
			c := byte('.')
			if p := d[page]; p != nil && p[s*SectorBytes] != 0 {
				c = p[s*SectorBytes]
			}
			text = append(text, c)
		}
		text = append(text, ' ')
	}
	return string(text)
}

func TestRecording(t *testing.T) {
	r := sample(t)
	if first, end := r.Epochs(); first != 0 || end != 3 {
		t.Fatalf("epochs %d to %d, want 0 to 3", first, end)
	}
	c := r.Begin()
	events := []int{}
	for epoch, want := range []struct{ nothing, everything string }{
		{"aaaaaaaa aaaaaaaa ........ ", "abbaaaaa aaaaaaac c....... "},
		{"abbaaaaa aaaaaaac c....... ", "abbaaaaa aaaaaaac c....... "},
		{"abbaaaaa aaaaaaac c....... ", "a....... .aaaaaac c....... "},
	} {
		n := 0
		if err := c.Events(epoch, func(Event) error { n++; return nil }); err != nil {
			t.Fatal(err)
		}
		events = append(events, n)
		if err := c.Advance(epoch); err != nil {
			t.Fatal(err)
		}
		for mode, want := range map[Mode]string{Nothing: want.nothing, Everything: want.everything} {
			if d, err := c.Cut(epoch, Cut{Mode: mode}); err != nil || d.text() != want {
				t.Errorf("epoch %d, %s: %s, %v, want %s", epoch, mode, d.text(), err, want)
			}
		}
	}
	if !slices.Equal(events, []int{2, 1, 0}) {
		t.Errorf("events by epoch: %v", events)
	}
}

// Every state of the first epoch that a mode allows is found with some seed, and no other.
func TestModes(t *testing.T) {
	r := sample(t)
	c := r.Begin()
	if err := c.Advance(0); err != nil {
		t.Fatal(err)
	}
	const none, first, second, both = "aaaaaaaa aaaaaaaa ........ ", "abbaaaaa aaaaaaaa ........ ", "aaaaaaaa aaaaaaac c....... ", "abbaaaaa aaaaaaac c....... "
	for mode, want := range map[Mode][]string{
		Prefix:  {none, first, both},
		DropOne: {first, second, both},
		OnlyOne: {none, first, second},
		Subset:  {none, first, second, both},
	} {
		if got := states(t, c, mode); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
			t.Errorf("%s: %q", mode, got)
		}
	}
	if got := states(t, c, Torn); len(got) != 16 {
		t.Errorf("torn: %d states, want all 16: %q", len(got), got)
	}
}

func states(t *testing.T, c *Cursor, mode Mode) []string {
	t.Helper()
	var all []string
	for seed := range uint64(400) {
		d, err := c.Cut(0, Cut{mode, seed})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, d.text())
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func TestRecordingWithoutWork(t *testing.T) {
	p := &tape{t: t}
	p.flush()
	p.mark(Event{Kind: Ready})
	if r, err := p.recording(); err == nil {
		t.Errorf("a recording without a flush after the beginning: %+v", r)
	}
	p.write(tapePages*BlockBytes, 'x', MarkBytes)
	if r, err := p.recording(); err == nil {
		t.Errorf("a recording with a mark that is none: %+v", r)
	}
}

func TestWriteFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	d := Disk{2: bytes.Repeat([]byte{'x'}, BlockBytes)}
	if err := d.WriteFile(path, 5*BlockBytes); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	want := slices.Concat(make([]byte, 2*BlockBytes), d[2], make([]byte, 2*BlockBytes))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}
